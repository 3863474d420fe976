// Figures as people read them. Every function takes a missing or odd value, and says "not yet" for it.

export const NOT_YET = "not yet";

/** Return a finite number, or null for anything else. */
export const numberOf = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);

const orNotYet = (say) => (value) => {
  const number = numberOf(value);
  return number === null ? NOT_YET : say(number);
};

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** Return a count: 12,345. */
export const count = orNotYet((number) => grouped.format(number));

const short = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

/** Return a number with no more places than it needs: 24, 0.5. */
export const plain = orNotYet((number) => short.format(number));

/** Return a share: 12.4 %. */
export const percent = orNotYet((share) => `${(100 * share).toFixed(1)} %`);

/** Return a number with so many places. */
export const decimal = (places) => orNotYet((number) => number.toFixed(places));

/** Return a duration in the unit that fits it: 840 ms, 12.3 s, 4.2 min, 3.1 h, 2.3 d. */
export const duration = orNotYet((seconds) => {
  const size = Math.abs(seconds);
  if (size < 0.9995) return `${Math.round(1000 * seconds)} ms`;
  if (size < 99.95) return `${seconds.toFixed(1)} s`;
  if (size < 5_400) return `${(seconds / 60).toFixed(1)} min`;
  if (size < 172_800) return `${(seconds / 3_600).toFixed(1)} h`;
  return `${grouped.format(seconds / 86_400)} d`;
});

/** Return the local time of day of epoch milliseconds, with the date where it is another day than `now`. */
export const clock = (timeMs, now = Date.now()) => {
  const time = momentOf(timeMs);
  if (time === null) return NOT_YET;
  const at = new Date(time);
  const day = at.toDateString() === new Date(now).toDateString() ? "" : `${dateOf(at)} `;
  return day + at.toTimeString().slice(0, 8);
};

const dateOf = (at) =>
  [at.getFullYear(), at.getMonth() + 1, at.getDate()].map((n) => String(n).padStart(2, "0")).join("-");

/** Return how long ago something was, no finer than seconds; clocks that differ by a little make it now. */
export const ago = (timeMs, now) => {
  const time = momentOf(timeMs);
  if (time === null) return NOT_YET;
  const seconds = (now - time) / 1000;
  if (seconds < 1) return "just now";
  return seconds < 99.5 ? `${Math.round(seconds)} s ago` : `${duration(seconds)} ago`;
};

/** Return epoch milliseconds, or null for a time that nobody knows; 0 stands for that in older events. */
export const momentOf = (timeMs) => numberOf(timeMs) || null;

/** Return the seconds from one time to another, or null where one is missing. */
export const secondsBetween = (fromMs, toMs) => {
  const [from, to] = [momentOf(fromMs), momentOf(toMs)];
  return from === null || to === null ? null : (to - from) / 1000;
};

/** Return a name as words: upload_to_first_shown is "upload to first shown". */
export const words = (name) => String(name).replaceAll("_", " ");

/** Return the entries of an object that may be missing. */
export const entries = (object) => (object && typeof object === "object" ? Object.entries(object) : []);

/** Return a list that may be missing. */
export const list = (found) => (Array.isArray(found) ? found : []);
