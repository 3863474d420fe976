// Which model answers, what it was swapped for and when, and how well each did on watches before it learned them.

import { html } from "./lib.js";
import { NOT_YET, ago, clock, count, decimal, entries, list, numberOf, percent, words } from "./format.js";
import { Lines, seriesOf } from "./chart.js";

export const Models = ({ figures, replicas, now }) => html`
  <section aria-labelledby="models">
    <h2 id="models">Models and swaps</h2>
    <${Versions} figures=${figures} replicas=${Object.values(replicas)} now=${now} />
    <h3>Swaps ${numberOf(figures.swaps) !== null && html`<small>${count(figures.swaps)} made, ${count(figures.swaps_rejected)} refused</small>`}</h3>
    <${Swaps} swaps=${list(figures.swaps_newest)} now=${now} />
  </section>`;

const Versions = ({ figures, replicas, now }) => {
  const served = new Set(replicas.flatMap(({ models }) => Object.keys(models ?? {})));
  const names = [...new Set([...served, ...Object.keys(figures.model_versions ?? {}), ...Object.keys(figures.model_age_s ?? {})])].sort();
  if (!names.length) return html`<p class="nothing">No model answers yet.</p>`;
  const versions = (name, key) =>
    [...new Set(replicas.map(({ models }) => models?.[name]?.[key]).filter((version) => version > 0))].join(", ");
  return html`
    <table>
      <thead>
        <tr>
          <th scope="col">Model</th><th scope="col" class="n">Serving</th>
          <th scope="col" class="n"><abbr title="the one before, loaded, for a rollback at once">Kept</abbr></th>
          <th scope="col" class="n"><abbr title="age of the newest watch that it learned from">Learned until</abbr></th>
        </tr>
      </thead>
      <tbody>
        ${names.map((name) => html`
          <tr key=${name}>
            <th scope="row">${words(name)}</th>
            <td class="n"><strong>${versions(name, "model_version") || figures.model_versions?.[name] || NOT_YET}</strong></td>
            <td class="n">${versions(name, "previous_version") || "–"}</td>
            <td class="n">${learnedUntil(figures, name, now)}</td>
          </tr>`)}
      </tbody>
    </table>`;
};

const learnedUntil = (figures, name, now) => {
  const age = numberOf(figures.model_age_s?.[name]);
  return age === null ? NOT_YET : ago(now - 1000 * age, now);
};

// A log tells a screen reader what is added; so what is told of a swap must not change with time.
const Swaps = ({ swaps, now }) => html`
  <div class="log" role="log" aria-relevant="additions" aria-label="Newest swaps" tabindex="0">
    ${!swaps.length && html`<p class="nothing">No swap yet.</p>`}
    <ol>
      ${swaps.map((swap) => html`
        <li key=${`${swap.swapped_time_ms} ${swap.replica} ${swap.model_name} ${swap.model_version}`}>
          <time>${clock(swap.swapped_time_ms, now)}</time>
          <span>
            <b>${words(swap.model_name)} ${swap.model_version}</b>
            ${swap.outcome === "succeeded" ? " answers" : html` <em class="bad">${swap.outcome}</em>${swap.reason && `: ${swap.reason}`}`}
          </span>
          <small class="replica">${swap.replica}</small>
        </li>`)}
    </ol>
  </div>`;

export const Prequential = ({ figures }) => {
  const told = list(figures.prequential);
  const names = [...new Set(told.map(({ model_name: name }) => name))].sort();
  const series = names.map((name) => ({
    name,
    number: seriesOf(name, names),
    points: told.filter((one) => one.model_name === name).map((one) => [one.time_ms, one.recall_at_10]),
  }));
  return html`
    <section aria-labelledby="prequential">
      <h2 id="prequential">Prequential recall</h2>
      <p class="note">Of new watches, scored before a round learns from them: how often the video was among the ten that the model would have shown.</p>
      <${Lines} label="Recall at 10, by round" say=${percent} nothing="No round was scored yet." series=${series} />
      <${ByWatches} newest=${told.findLast((one) => one.model_name === "lrm")} />
      <${Codebook} codebook=${figures.codebook} />
    </section>`;
};

// How often a video's watches had been learned before: 0 is the cold start itself.
const ByWatches = ({ newest }) => {
  const told = entries(newest?.by_earlier_watches);
  return told.length > 0 && html`
    <p class="facts-line">
      <span>LRM ${newest.model_version}, by how often the video had been learned before:</span>
      ${told.map(([watches, recall]) => html`<span key=${watches}>${watches} <b>${percent(recall)}</b></span>`)}
    </p>`;
};

const Codebook = ({ codebook }) => {
  if (!codebook || !entries(codebook).length) return null;
  const levels = list(codebook.usage).filter(({ level }) => numberOf(level) !== null);
  return html`
    <h3>Codebook ${codebook.codebook_version ?? ""}</h3>
    <p class="facts-line">
      <span><b>${count(codebook.videos)}</b> semantic IDs</span>
      <span><b>${percent(codebook.unique_share)}</b> with codes of their own</span>
      ${levels.map(({ level, codes_used: used, perplexity }) => html`
        <span key=${level}>level ${level}: <b>${count(used)}</b> codes, perplexity <b>${decimal(0)(perplexity)}</b></span>`)}
    </p>`;
};
