// Ask for recommendations as a product surface would, and for the reason of each.

import { Fragment, html, useState } from "./lib.js";
import { NOT_YET, count, decimal, duration, entries, words } from "./format.js";
import { ask } from "./server.js";
import { Title } from "./uploads.js";

const SURFACES = ["home", "watch_next", "shorts", "search", "music"];
const VIDEOS = 10;

/** `onSaid` is told in words what came of it. */
export const Ask = ({ onOpen, onSaid }) => {
  const [wish, setWish] = useState({ user_id: "", surface: "home", intent: "" });
  const [answered, setAnswered] = useState(null);
  const [problem, setProblem] = useState("");
  const [isAsking, setAsking] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    if (isAsking) return;
    const who = { surface: wish.surface, ...(wish.user_id.trim() && { user_id: wish.user_id.trim() }) };
    const intent = wish.intent.trim();
    setAsking(true);
    try {
      const began = performance.now();
      const { answer } = await ask("v1/recommendations", { body: { ...who, k: VIDEOS, ...(intent && { intent }) } });
      setAnswered({ who, answer, tookS: (performance.now() - began) / 1000 });
      setProblem("");
      onSaid(answer.items.length ? `${answer.items.length} videos recommended.` : "Nothing to recommend.");
    } catch (error) {
      setProblem(error.message);
    }
    setAsking(false);
  };
  const set = (name) => ({ name, id: `ask-${name}`, value: wish[name], onInput: ({ currentTarget }) => setWish({ ...wish, [name]: currentTarget.value }) });
  return html`
    <section aria-labelledby="ask">
      <h2 id="ask">Ask</h2>
      <p class="note">Answered as any surface is: what is shown counts as impressions of the viewer's arm.</p>
      <form class="ask" onSubmit=${submit}>
        <label>User <input ...${set("user_id")} maxlength="256" placeholder="nobody known" autocomplete="off" spellcheck=${false} /></label>
        <label>Surface <select ...${set("surface")}>${SURFACES.map((name) => html`<option value=${name}>${words(name)}</option>`)}</select></label>
        <label class="wide">Intent <input ...${set("intent")} maxlength="512" placeholder="in plain words: something about space" autocomplete="off" /></label>
        <button class="main" aria-disabled=${isAsking}>${isAsking ? "Asking…" : "Recommend"}</button>
      </form>
      <div role="alert">${problem && html`<p class="warning">${problem}</p>`}</div>
      ${answered && html`<${Answer} key=${answered.answer.request_id} ...${answered} onOpen=${onOpen} />`}
    </section>`;
};

const Answer = ({ who, answer, tookS, onOpen }) => html`
  <p class="facts-line">
    <span>arm <b>${words(answer.arm)}</b></span>
    <span>model version <b>${answer.model_version || "none"}</b></span>
    <span>in <b>${duration(tookS)}</b></span>
  </p>
  ${!answer.items.length ? html`<p class="nothing">Nothing to recommend.</p>` : html`
    <div class="scroll" tabindex="0" role="group" aria-label="Recommendations">
      <table class="answer">
        <thead>
          <tr>
            <th scope="col" class="n place">#</th><th scope="col">Title and source</th>
            <th scope="col" class="n"><abbr title="natural logarithm of the probability that the LRM gives it">Score</abbr></th>
            <th scope="col" class="n">Age</th><th scope="col"><span class="unseen">Explanation</span></th>
          </tr>
        </thead>
        <tbody>${answer.items.map((item, place) => html`<${Item} key=${item.video_id} item=${item} place=${place + 1} who=${who} onOpen=${onOpen} />`)}</tbody>
      </table>
    </div>`}`;

const Item = ({ item, place, who, onOpen }) => {
  const [reason, setReason] = useState(null);
  const explain = async () => {
    if (reason) return setReason(null);
    setReason({ text: "Asking…" });
    try {
      const { answer } = await ask("v1/explanations", { body: { ...who, video_id: item.video_id } });
      setReason(answer);
    } catch (error) {
      setReason({ text: error.message });
    }
  };
  return html`
    <${Fragment}>
      <tr>
        <td class="n place">${place}</td>
        <th scope="row">
          <${Title} videoId=${item.video_id} title=${item.title} onOpen=${onOpen} />
          <div><span class=${`source ${item.source}`}>${words(item.source)}</span></div>
        </th>
        <td class="n">${item.score === null ? "–" : decimal(2)(item.score)}</td>
        <td class="n">${duration(item.age_s)}</td>
        <td><button type="button" onClick=${explain} aria-expanded=${Boolean(reason)} aria-label=${`Why ${item.title || item.video_id}?`}>Why?</button></td>
      </tr>
      ${reason && html`<tr class="why"><td class="place"></td><td colspan="4"><div role="status"><${Reason} reason=${reason} /></div></td></tr>`}
    </${Fragment}>`;
};

const Reason = ({ reason: { text, source, model_version: version, evidence } }) => html`
  <p>${text}</p>
  ${source && html`<small>${source === "model" ? `Written by LRM ${version}` : "Made of the evidence"}: ${basis(evidence)}</small>`}`;

const basis = (evidence) =>
  entries(evidence)
    .filter(([, value]) => (Array.isArray(value) ? value.length : value))
    .map(([name, value]) => `${words(name)} ${typeof value === "number" ? count(value) : words([value].flat().join(", "))}`)
    .join("; ") || NOT_YET;
