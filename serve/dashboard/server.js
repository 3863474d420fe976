// The endpoint as the page asks it. A key, where one is needed, stays in this tab's session storage and goes out in a header.

const KEY = "freshet.api_key";
const PATIENCE_S = 25; // the endpoint itself gives up after 20

/** Why there is no answer: status 0 where nobody answers at all. */
export class Unanswered extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Keep the key for this tab. */
export const keepKey = (key) => sessionStorage.setItem(KEY, key);

/** Return whether a key is kept, be it the right one or not. */
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** Return an endpoint's answer and the server's time of it; `body` makes the request a POST. */
export const ask = async (path, { body, signal, patienceS = PATIENCE_S } = {}) => {
  const headers = { accept: "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers["X-API-Key"] = key;
  if (body) headers["content-type"] = "application/json";
  const patience = AbortSignal.timeout(1_000 * patienceS);
  let response, answer;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, patience]) : patience,
      cache: "no-store",
    });
    answer = await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Unanswered(response?.ok === false ? response.status : 0, "The endpoint does not answer.");
  }
  if (!response.ok) throw new Unanswered(response.status, reasonOf(response.status, answer.detail));
  return { answer, timeMs: Date.parse(response.headers.get("date")) || Date.now() };
};

const reasonOf = (status, detail) => {
  if (status === 429) return "Too many requests wait already; try again in a moment.";
  if (Array.isArray(detail)) return detail.map(({ field, message }) => `${field || "request"}: ${message}`).join("; ");
  return typeof detail === "string" ? detail : `The endpoint answered ${status}.`;
};
