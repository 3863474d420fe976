// The newest uploads with where each is on its way, and the question where one's own is.

import { html, useState } from "./lib.js";
import { ago, duration, list, secondsBetween } from "./format.js";

const STEPS = [
  ["uploaded_ms", "uploaded"],
  ["assigned_ms", "has a semantic ID"],
  ["servable_ms", "servable"],
  ["first_shown_ms", "shown"],
  ["first_watched_ms", "watched"],
];

export const Uploads = ({ figures, now, onOpen }) => {
  const uploads = list(figures.newest_uploads);
  return html`
    <section aria-labelledby="uploads">
      <h2 id="uploads">Newest uploads</h2>
      <${Where} onOpen=${onOpen} />
      ${!uploads.length ? html`<p class="nothing">No upload yet.</p>` : html`
        <div class="scroll tall" tabindex="0" role="group" aria-label="Uploads">
          <table class="uploads">
            <thead><tr><th scope="col">Video</th><th scope="col">Way</th><th scope="col" class="n">Uploaded</th></tr></thead>
            <tbody>${uploads.map((upload) => html`<${Upload} key=${upload.video_id} upload=${upload} now=${now} onOpen=${onOpen} />`)}</tbody>
          </table>
        </div>`}
    </section>`;
};

const Where = ({ onOpen }) => {
  const [videoId, setVideoId] = useState("");
  const open = (event) => {
    event.preventDefault();
    if (videoId.trim()) onOpen(videoId.trim());
  };
  return html`
    <form class="inline" onSubmit=${open}>
      <label for="where">Where is my upload?</label>
      <input id="where" value=${videoId} maxlength="256" placeholder="its video id" autocomplete="off" spellcheck=${false}
        onInput=${(event) => setVideoId(event.currentTarget.value)} />
      <button>Trace</button>
    </form>`;
};

const Upload = ({ upload, now, onOpen }) => {
  const last = STEPS.findLastIndex(([key]) => upload[key]);
  const took = last > 0 ? secondsBetween(upload.uploaded_ms, upload[STEPS[last][0]]) : null;
  return html`
    <tr>
      <th scope="row"><${Title} videoId=${upload.video_id} title=${upload.title} onOpen=${onOpen} /></th>
      <td>
        <span class="steps" aria-hidden="true">
          ${STEPS.map(([key, name], step) => html`<i key=${key} title=${name} class=${upload[key] ? "done" : step < last ? "skipped" : ""}></i>`)}
        </span>
        <small>${last < 0 ? "unknown" : STEPS[last][1]}${took !== null && ` after ${duration(took)}`}</small>
      </td>
      <td class="n">${ago(upload.uploaded_ms, now)}</td>
    </tr>`;
};

/** A title that opens the video's trace; a video without one goes by its id. */
export const Title = ({ videoId, title, onOpen }) => html`
  <button type="button" class="title" onClick=${() => onOpen(videoId)} title=${`${videoId}: where it is on its way`}>${title || videoId}</button>`;
