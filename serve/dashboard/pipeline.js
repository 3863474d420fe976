// The two ways through the system, that of an upload and that of a watch, with the delay until each stage.

import { html } from "./lib.js";
import { count, duration, entries, numberOf, words } from "./format.js";

const UPLOAD = ["An upload until it is watched", "uploaded", [
  ["upload_to_sid", "has a semantic ID", "since the upload"],
  ["upload_to_servable", "servable", "since the upload"],
  ["upload_to_first_shown", "first shown", "since the upload"],
  ["upload_to_first_watched", "first watched", "since the upload"],
]];
const WATCH = ["A watch until the model that learned it answers", "watched", [
  ["watch_to_shard", "in a training shard", "since the watch"],
  ["shard_to_checkpoint", "learned", "since the shard"],
  ["checkpoint_to_serving", "serving", "since the checkpoint"],
  ["watch_to_serving", "in all", "since the watch", "sum"],
]];
const SHORTEST_S = 0.01;
const LONGEST_S = 86_400;

export const Pipeline = ({ figures }) => {
  const delays = figures.delays_s ?? {};
  const placed = new Set([UPLOAD, WATCH].flatMap(([, , stages]) => stages.map(([stage]) => stage)));
  const others = entries(delays).filter(([stage]) => !placed.has(stage)).map(([stage]) => [stage, words(stage), ""]);
  return html`
    <section aria-labelledby="pipeline">
      <h2 id="pipeline">Pipeline</h2>
      <p class="note">Median and 99th percentile of what ended in the newest two hours with any. Bars reach from the one to the other, on a scale from 10 ms to a day.</p>
      <${Lane} lane=${UPLOAD} delays=${delays} />
      <${Lane} lane=${WATCH} delays=${delays} />
      ${others.length > 0 && html`<${Lane} lane=${["Other delays", "", others]} delays=${delays} />`}
    </section>`;
};

const Lane = ({ lane: [title, begin, stages], delays }) => html`
  <h3>${title}</h3>
  <ol class="lane">
    ${begin && html`<li class="begin">${begin}</li>`}
    ${stages.map(([stage, name, since, kind]) => html`<${Stage} key=${stage} name=${name} since=${since} kind=${kind} delay=${delays[stage] ?? {}} />`)}
  </ol>`;

/** Return the delays of the newest hours; from who does not tell them apart, all. */
export const recentOf = (delay) => delay?.recent ?? delay ?? {};

const Stage = ({ name, since, kind = "", delay }) => {
  const { count: times, p50, p99 } = recentOf(delay);
  const has = numberOf(p50) !== null;
  return html`
    <li class=${has ? kind : `waits ${kind}`}>
      <span class="name">${name}</span>
      <strong>${duration(p50)}</strong>
      <span class="range" aria-hidden="true">${has && html`<i style=${reach(p50, p99)}></i>`}</span>
      <small>${has && `p99 ${duration(p99)} · ${count(times)}×`}<span class="since">${since}</span>${has && delay.recent && html`<span class="since">all so far ${duration(delay.p50)}</span>`}</small>
    </li>`;
};

const reach = (p50, p99) => {
  const from = placeOf(p50);
  return { left: `${from}%`, width: `${Math.max(2, placeOf(numberOf(p99) ?? p50) - from)}%` };
};

/** Return where on the logarithmic scale a delay is, in percent of its width, two percent left for the bar itself. */
const placeOf = (seconds) =>
  98 * Math.min(1, Math.max(0, Math.log(seconds / SHORTEST_S) / Math.log(LONGEST_S / SHORTEST_S)));
