// One video's whole way, with times and versions, in a dialog that follows it as long as it is open.

import { html, useEffect, useRef, useState } from "./lib.js";
import { clock, duration, list, momentOf, secondsBetween } from "./format.js";
import { ask } from "./server.js";

const EVERY_MS = 2_000;

/** `videoId`: whose; null closes the dialog. */
export const Trace = ({ videoId, figures, onClose, now }) => {
  const dialog = useRef(null);
  const [found, setFound] = useState(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    if (videoId === null) {
      dialog.current.close();
      return undefined;
    }
    setFound(null);
    if (!dialog.current.open) dialog.current.showModal();
    return following(videoId, setFound, setProblem);
  }, [videoId]);
  const state = found?.video_id === videoId ? found : null;
  return html`
    <dialog ref=${dialog} class="trace" aria-labelledby="trace-title" onClose=${() => videoId !== null && onClose()}>
      ${videoId !== null && html`
        <header>
          <h2 id="trace-title">${state?.title || videoId}</h2>
          <form method="dialog"><button aria-label="Close">✕</button></form>
        </header>
        <p class="ids"><span>${videoId}</span>${state?.semantic_id && html` <span class="sid">${state.semantic_id}</span>`}</p>
        <div role="status">${problem && html`<p class="warning">${problem}</p>`}</div>
        ${state ? html`<${Way} state=${withWatch(state, figures)} now=${now} />` : !problem && html`<p class="nothing">Asking…</p>`}`}
    </dialog>`;
};

const following = (videoId, setFound, setProblem) => {
  const leaving = new AbortController();
  let timer;
  const go = async () => {
    try {
      const { answer } = await ask(`v1/videos/${encodeURIComponent(videoId)}`, { signal: leaving.signal });
      setFound(answer);
      setProblem("");
    } catch (error) {
      if (leaving.signal.aborted) return;
      setProblem(error.message);
    }
    if (!leaving.signal.aborted) timer = setTimeout(go, EVERY_MS);
  };
  go();
  return () => {
    leaving.abort();
    clearTimeout(timer);
  };
};

const MILESTONES = [
  ["Uploaded", "upload_append_time_ms", () => "reached the log"],
  ["Featurized", "featurized_time_ms", () => "content encoded"],
  ["Semantic ID", "assigned_time_ms", ({ semantic_id: id }) => id],
  ["Servable", "servable_time_ms", () => "a replica can recommend it"],
  ["Learned", "learned_time_ms", ({ learned_model_version: version }) => `its text, by LRM ${version}`],
  ["First shown", "first_shown_time_ms", ({ first_shown_model_version: version }) => (version ? `by model version ${version}` : "without a model")],
  ["First watched", "first_watched_time_ms", () => ""],
];

// Who answers follows no watches of single videos; the figures tell of the newest ones' first.
const withWatch = (state, figures) => {
  const upload = list(figures.newest_uploads).find((one) => one?.video_id === state.video_id);
  return upload ? { first_watched_time_ms: upload.first_watched_ms, ...state } : state;
};

const Way = ({ state, now }) => {
  if (!state.assigned) {
    return html`
      <p class="nothing">No replica knows this id: it was never uploaded, has no semantic ID yet, or was removed. This page keeps asking.</p>`;
  }
  const uploadedMs = momentOf(state.upload_append_time_ms);
  const place = ([, key]) => momentOf(state[key]) ?? Infinity;
  const ways = MILESTONES.filter(([, key]) => key in state).sort((one, other) => place(one) - place(other) || 0);
  return html`
    <p class="state">${state.servable ? html`<b class="good">Live</b>: it can be recommended now.` : html`<b class="bad">Not live</b>: the replica that answered cannot recommend it.`}</p>
    <ol class="way">
      ${ways.map(([name, key, say]) => {
        const at = momentOf(state[key]);
        const after = secondsBetween(uploadedMs, at);
        return html`
          <li key=${key} class=${at ? "done" : ""}>
            <b>${name}</b>
            <span>${at ? say(state) : "not yet, or nobody knows"}</span>
            <time>${at ? clock(at, now) : ""}</time>
            <small>${at && after !== null && key !== "upload_append_time_ms" ? `+${duration(Math.max(0, after))}` : ""}</small>
          </li>`;
      })}
    </ol>
    <p class="note">Its uploader says ${clock(state.upload_time_ms, now)}.${uploadedMs === null && " It came with a catalogue, not by the stream, so it has no delays."}</p>`;
};
