// Cold start by arm, in Kuaishou's figures: coverage (how much of what is shown is new) and velocity (how fast new videos are seen).

import { html } from "./lib.js";
import { count, decimal, duration, entries, list, numberOf, percent, plain, words } from "./format.js";
import { Lines, Swatch, seriesOf } from "./chart.js";

/** Coverage, velocity and what viewers make of it, by arm; as far as the worker says any of it. */
export const ColdStart = ({ figures }) => {
  const arms = armsOf(figures);
  const names = arms.map(([name]) => name);
  const { new_max_age_h: newH, window_h: windowH, view_threshold: views, newest_hours: hours } = figures.cold_start ?? {};
  return html`
    <section aria-labelledby="cold-start">
      <h2 id="cold-start">Cold start by arm</h2>
      ${numberOf(newH) !== null && html`
        <p class="note">
          A video is new for ${plain(newH)} h after its upload, and has ${plain(windowH)} h to
          gather ${count(views)} views; of an arm, in proportion to its share of the users.
          ${numberOf(hours) !== null && ` Impressions are those of the newest ${plain(hours)} h.`}
        </p>`}
      ${arms.length ? html`<${Arms} arms=${arms} names=${names} />`
        : html`<p class="nothing">Nothing was shown yet. Figures begin with the first recommendations.</p>`}
      ${arms.length > 0 && html`<div class="charts">
        <${Lines} label="Coverage by hour" say=${percent} nothing="No hours to draw yet." series=${hoursOf(arms, names, "coverage")} />
        <${Lines} label="Share that reached its views, by hour of upload" say=${percent} nothing=${`No window is over yet: each is ${plain(windowH)} h long.`} series=${hoursOf(arms, names, "velocity")} />
      </div>`}
      ${arms.some(([, arm]) => entries(arm.surfaces).length) && html`
        <details>
          <summary>By surface</summary>
          <p class="note">On a surface, by the views there alone: compare arms, not one surface with another.</p>
          <${Surfaces} arms=${arms} />
        </details>`}
    </section>`;
};

/** Return the arms with their figures; before the worker has those of cold start, with what it counted by surface. */
const armsOf = (figures) => {
  const told = entries(figures.cold_start?.arms);
  if (told.length) return told.sort();
  return entries(figures.by_arm).sort().map(([name, surfaces]) => {
    const sum = (key) => entries(surfaces).reduce((all, [, shown]) => all + (numberOf(shown?.[key]) ?? 0), 0);
    const impressions = sum("impressions");
    return [name, { impressions, coverage: impressions ? sum("new_impressions") / impressions : null, surfaces }];
  });
};

const hoursOf = (arms, names, key) =>
  arms.map(([name, arm]) => ({
    name,
    number: seriesOf(name, names),
    points: list(arm.hours).filter(({ hour_start_ms: at }) => numberOf(at) !== null).map((hour) => [hour.hour_start_ms, hour[key]]),
  }));

const COLUMNS = [
  ["Coverage", "share of impressions that are new videos"],
  ["New shown", "share of new videos that were shown at least once"],
  ["Reached views", "share of new videos that gathered their views in time"],
  ["Time to views", "median and 90th percentile, from the upload"],
  ["Vocabulary", "videos that 95 % of the impressions go to"],
  ["Clicks", "for each impression"],
  ["Likes", "for each impression"],
  ["Watched", "for each impression"],
  ["Impressions", "videos shown in answers"],
];

const Arms = ({ arms, names }) => {
  const most = Math.max(...arms.map(([, arm]) => numberOf(arm.coverage) ?? 0)) || 1;
  return html`
    <div class="scroll" tabindex="0" role="group" aria-label="Arms">
      <table class="arms">
        <thead>
          <tr><th scope="col">Arm</th>${COLUMNS.map(([name, meaning]) => html`<th scope="col" class="n"><abbr title=${meaning}>${name}</abbr></th>`)}</tr>
        </thead>
        <tbody>${arms.map(([name, arm]) => html`<${Arm} key=${name} name=${name} arm=${arm} number=${seriesOf(name, names)} most=${most} />`)}</tbody>
      </table>
    </div>`;
};

const Arm = ({ name, arm, number, most }) => {
  const { p50, p90 } = arm.time_to_threshold_s ?? {};
  const coverage = numberOf(arm.coverage);
  return html`
    <tr>
      <th scope="row">
        <${Swatch} number=${number} /> ${words(name)}
        ${numberOf(arm.share_of_users) !== null && html`<small>${percent(arm.share_of_users)} of users</small>`}
      </th>
      <td class="n">
        <strong>${percent(coverage)}</strong>
        <span class="bar" aria-hidden="true"><i class=${`series-${number}`} style=${{ width: `${(100 * (coverage ?? 0)) / most}%` }}></i></span>
      </td>
      <${Figure} value=${percent(arm.shown_share)} of=${outOf(arm.new_videos_shown, arm.new_videos)} />
      <${Figure} value=${percent(arm.reached_share)} of=${reached(arm)} />
      <${Figure} value=${duration(p50)} of=${numberOf(p90) !== null && `p90 ${duration(p90)}`} />
      <${Figure} value=${count(arm.effective_vocabulary)} />
      <${Figure} value=${decimal(3)(arm.clicks_per_impression)} />
      <${Figure} value=${decimal(3)(arm.likes_per_impression)} />
      <${Figure} value=${duration(arm.watched_s_per_impression)} />
      <${Figure} value=${count(arm.impressions)} of=${numberOf(arm.new_impressions) !== null && `${count(arm.new_impressions)} new`} />
    </tr>`;
};

const Figure = ({ value, of }) => html`<td class="n">${value}${of && html`<small>${of}</small>`}</td>`;

const outOf = (some, all) => numberOf(all) !== null && `${count(some)} of ${count(all)}`;

const reached = ({ reached: videos, view_threshold: views }) =>
  numberOf(videos) !== null && `${count(videos)} with ${count(views)} ${views === 1 ? "view" : "views"}`;

const Surfaces = ({ arms }) => html`
  <div class="scroll" tabindex="0" role="group" aria-label="Arms by surface">
    <table>
      <thead>
        <tr>
          <th scope="col">Surface and arm</th>
          ${COLUMNS.filter(([name]) => BY_SURFACE.includes(name)).map(([name, meaning]) => html`<th scope="col" class="n"><abbr title=${meaning}>${name}</abbr></th>`)}
        </tr>
      </thead>
      <tbody>
        ${surfacesOf(arms).map(([surface, arm, shown]) => html`
          <tr key=${`${surface} ${arm}`}>
            <th scope="row">${words(surface)}, ${words(arm)}</th>
            <${Figure} value=${percent(shown.coverage)} />
            <${Figure} value=${percent(shown.shown_share)} />
            <${Figure} value=${percent(shown.reached_share)} />
            <${Figure} value=${duration(shown.time_to_threshold_s?.p50)} />
            <${Figure} value=${decimal(3)(shown.clicks_per_impression)} />
            <${Figure} value=${decimal(3)(shown.likes_per_impression)} />
            <${Figure} value=${count(shown.impressions)} />
          </tr>`)}
      </tbody>
    </table>
  </div>`;

const BY_SURFACE = ["Coverage", "New shown", "Reached views", "Time to views", "Clicks", "Likes", "Impressions"];

/** Return surface, arm and figures, a surface's arms together. */
const surfacesOf = (arms) =>
  arms.flatMap(([arm, { surfaces }]) => entries(surfaces).map(([surface, shown]) => [surface, arm, shown ?? {}])).sort();
