// The page, put together: header, state of the connection, sections, and the trace that the address names.

import { Fragment, h, html, render, useEffect, useRef, useState, useErrorBoundary } from "./lib.js";
import { NOT_YET, ago, clock, count, duration, numberOf, percent } from "./format.js";
import { FIGURES_OLD_S, useLive } from "./live.js";
import { hasKey, keepKey } from "./server.js";
import { Ask } from "./ask.js";
import { ColdStart } from "./cold_start.js";
import { Models, Prequential } from "./models.js";
import { Pipeline, recentOf } from "./pipeline.js";
import { Trace } from "./trace.js";
import { Uploads } from "./uploads.js";

const VIDEO = "#video=";

const Page = () => {
  const [live, askAtOnce] = useLive();
  const [videoId, openVideo] = useVideoOfAddress();
  const [said, say] = useState("");
  const now = Date.now() + live.aheadMs;
  useEffect(() => {
    if (live.link === "lost") say("The endpoint does not answer. The figures are the last ones heard.");
    if (live.link === "live") say((before) => (before ? "The endpoint answers." : ""));
  }, [live.link]);
  return html`
    <a class="skip" href="#figures" onClick=${skip}>Skip to the figures</a>
    <header class="top">
      <h1><img src="dashboard/files/icon.svg" alt="" width="26" height="26" /> Freshet</h1>
      <${Link} live=${live} now=${now} />
    </header>
    <p class="unseen" role="status">${said}</p>
    <main id="figures" tabindex="-1" class=${live.link === "live" ? "" : "stale"}>
      ${live.link === "locked" ? html`<${Key} onKey=${askAtOnce} isWrong=${hasKey()} />` : html`<${Trouble} live=${live} now=${now} />`}
      ${(live.heardMs || live.link !== "locked") && html`<${Sections} live=${live} now=${now} openVideo=${openVideo} say=${say} />`}
    </main>
    <${Part} of=${Trace} videoId=${videoId} onClose=${() => openVideo(null)} now=${now} />`;
};

const Sections = ({ live, now, openVideo, say }) => {
  const { figures } = live;
  return html`
    <${Fragment}>
      <${Part} of=${Facts} live=${live} now=${now} />
      <${Part} of=${ColdStart} figures=${figures} />
      <${Part} of=${Pipeline} figures=${figures} />
      <div class="halves">
        <${Part} of=${Prequential} figures=${figures} />
        <${Part} of=${Models} figures=${figures} replicas=${live.replicas} now=${now} />
        <${Part} of=${Uploads} figures=${figures} now=${now} onOpen=${openVideo} />
        <${Part} of=${Ask} onOpen=${openVideo} onSaid=${say} />
      </div>
    </${Fragment}>`;
};

// The address keeps its fragment for the video, so this link moves the focus only.
const skip = (event) => {
  event.preventDefault();
  document.getElementById("figures").focus();
};

/** A part of the page; what it cannot draw takes nothing else down. */
const Part = ({ of, ...props }) => {
  const [error, again] = useErrorBoundary();
  const { figures, now } = props;
  useEffect(() => {
    if (error) again();
  }, [figures, now]);
  if (error) return html`<section><p class="warning" role="alert">This part cannot be drawn: ${error.message}</p></section>`;
  return h(of, props);
};

/** The video in the address's fragment, which no server is sent, and a function that puts one there, or takes it away. */
const useVideoOfAddress = () => {
  const [videoId, setVideoId] = useState(videoOf(location.hash));
  useEffect(() => {
    const change = () => setVideoId(videoOf(location.hash));
    window.addEventListener("hashchange", change);
    return () => window.removeEventListener("hashchange", change);
  }, []);
  const open = (id) => {
    history.pushState(null, "", id === null ? location.pathname + location.search : VIDEO + encodeURIComponent(id));
    setVideoId(id);
  };
  return [videoId, open];
};

const videoOf = (hash) => {
  if (!hash.startsWith(VIDEO)) return null;
  try {
    return decodeURIComponent(hash.slice(VIDEO.length)) || null;
  } catch {
    return null; // half of an escape
  }
};

const LINKS = { starting: "Asking…", live: "Live", busy: "Busy", lost: "No answer", locked: "Locked" };

const Link = ({ live, now }) => html`
  <p class="link">
    <span class=${`lamp ${live.link}`} aria-hidden="true"></span> <b>${LINKS[live.link]}</b>
    ${live.writtenMs && html` <span>figures written ${ago(live.writtenMs, now)}</span>`}
  </p>`;

const Trouble = ({ live, now }) => {
  const old = (now - live.writtenMs) / 1000;
  if (live.link === "lost" || live.link === "busy") {
    const last = live.heardMs ? `The figures are those of ${clock(live.heardMs)}.` : "";
    return html`<p class="warning">${live.reason} ${last} Asking again every 2 seconds.</p>`;
  }
  if (live.link === "live" && !live.writtenMs) return html`<p class="warning">The freshness worker has written no figures yet.</p>`;
  if (live.link === "live" && old > FIGURES_OLD_S) {
    return html`<p class="warning">The freshness worker has written nothing for ${duration(old)}: the figures are old, the answers are not.</p>`;
  }
  return null;
};

const Key = ({ onKey, isWrong }) => {
  const input = useRef(null);
  const submit = (event) => {
    event.preventDefault();
    keepKey(input.current.value);
    onKey();
  };
  return html`
    <form class="key warning" onSubmit=${submit}>
      <label for="key">API key</label>
      <input id="key" ref=${input} type="password" required autocomplete="current-password" aria-describedby="key-note" />
      <button class="main">Unlock</button>
      <p id="key-note">${isWrong ? "The endpoint does not take that key. " : ""}This endpoint asks for a key. It stays in this tab until you close it.</p>
    </form>`;
};

const Facts = ({ live: { figures, replicas }, now }) => {
  const all = Object.values(replicas);
  const ready = all.filter((replica) => replica.ready).length;
  const delays = figures.delays_s ?? {};
  const versions = [...new Set(all.map((replica) => replica.model_version).filter(Boolean))].join(", ");
  const age = numberOf(figures.model_age_s?.lrm);
  return html`
    <dl class="facts">
      <${Fact} name="New among impressions" value=${percent(figures.coverage)}
        more=${numberOf(figures.impressions) !== null && `${count(figures.new_impressions)} of ${count(figures.impressions)}, all so far`} />
      <${Fact} name="Upload to servable" ...${delayOf(delays.upload_to_servable)} />
      <${Fact} name="Watch to serving" ...${delayOf(delays.watch_to_serving)} />
      <${Fact} name="LRM that answers" value=${versions || figures.model_version || NOT_YET}
        more=${age !== null && `learned until ${ago(now - 1000 * age, now)}`} />
      <${Fact} name="Live videos" value=${count(Math.max(...all.map((replica) => replica.live_videos)))}
        more=${all.length > 0 && `${ready} of ${all.length} ${all.length === 1 ? "replica" : "replicas"} ready`} />
    </dl>`;
};

const delayOf = (delay) => {
  const { p50, p99 } = recentOf(delay);
  return { value: duration(p50), more: numberOf(p99) !== null && `p99 ${duration(p99)}` };
};

const Fact = ({ name, value, more }) => html`
  <div><dt>${name}</dt><dd class=${value === NOT_YET ? "waits" : ""}>${value}${more && html`<small>${more}</small>`}</dd></div>`;

render(html`<${Page} />`, document.getElementById("page"));
