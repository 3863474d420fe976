// One video's whole way, with times and versions, in a dialog that follows it as long as it is open.

import { html, useEffect, useRef, useState } from "./lib.js";
import { clock, duration, momentOf, secondsBetween, words } from "./format.js";
import { ask } from "./server.js";

const EVERY_MS = 2_000;

/** `videoId`: whose; null closes the dialog. */
export const Trace = ({ videoId, onClose, now }) => {
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
        ${state ? html`<${Way} state=${state} now=${now} />` : !problem && html`<p class="nothing">Asking…</p>`}`}
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
  ["Edited", "edited_time_ms", () => "semantic ID and model are those of the edit"],
  ["Featurized", "featurized_time_ms", () => "content encoded"],
  ["Semantic ID", "assigned_time_ms", ({ semantic_id: id, codebook_version: version }) => `${id}, codebook ${version}`],
  ["Servable", "servable_time_ms", () => "a replica can recommend it"],
  ["Learned", "learned_time_ms", ({ learned_model_version: version }) => `its text, by LRM ${version}`],
  ["First shown", "first_shown_time_ms", ({ first_shown_model_version: version, first_shown_arm: arm }) => `by ${words(arm)}, ${version ? `model version ${version}` : "without a model"}`],
  ["First watched", "first_watched_time_ms", () => "in a sealed shard"],
  ["Refused", "refused_time_ms", ({ refused_reason: reason }) => words(reason)],
  ["Removed", "removed_time_ms", () => "it is recommended no more"],
];
const ONLY_WHEN_DONE = ["edited_time_ms", "refused_time_ms", "removed_time_ms"];

/** Return what a video's state means, in words. */
const Said = ({ state }) => {
  if (state.state === "removed") return html`<b class="bad">Removed</b>: it cannot be recommended.`;
  if (state.state === "refused") {
    return html`<b class="bad">Refused</b>: ${words(state.refused_reason)}. What was sent is kept in the topic video.uploads.dead_letters; once the cause is mended, send the upload again.`;
  }
  if (state.state === "uploaded") return html`<b>On its way</b>: it reached the log and has no semantic ID yet.`;
  if (state.servable) return html`<b class="good">Live</b>: it can be recommended now.`;
  return html`<b class="bad">Not live</b>: the replica that answered cannot recommend it.`;
};

const Way = ({ state, now }) => {
  if (state.state === "unknown") {
    return html`
      <p class="nothing">No replica knows this id: it was never uploaded, or longer ago than the log tells. Ids are case-sensitive. This page keeps asking.</p>`;
  }
  const uploadedMs = momentOf(state.upload_append_time_ms);
  const place = ([, key]) => momentOf(state[key]) ?? Infinity;
  const isOver = state.state === "removed" || state.state === "refused";
  const ways = MILESTONES.filter(([, key]) => momentOf(state[key]) !== null || !(isOver || ONLY_WHEN_DONE.includes(key)))
    .sort((one, other) => place(one) - place(other) || 0);
  return html`
    <p class="state"><${Said} state=${state} /></p>
    ${state.assigned && !isOver && momentOf(state.refused_time_ms) !== null && html`<p class="warning">Its last edit was refused: ${words(state.refused_reason)}.</p>`}
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
    ${state.assigned && html`<p class="note">Its uploader says ${clock(state.upload_time_ms, now)}.${uploadedMs === null && " It came with a catalogue, not by the stream, so it has no delays."}</p>`}`;
};
