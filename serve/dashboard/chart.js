// Lines over time, with a legend, and the same numbers as a table for whoever does not see them.

import { html, uPlot, useEffect, useRef, useState } from "./lib.js";
import { clock, list, numberOf, words } from "./format.js";

const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [12, 5], [4, 2]];
const HEIGHT = 190;
const ROWS_MAX = 48;
// As uPlot takes them: smallest step in seconds, format, and what a new year, month and day add to it.
const DAYS = ["\n{YYYY}-{MM}-{DD}", "\n{MM}-{DD}", "\n{MM}-{DD}", null, null, null, 1];
const TIMES = [
  [86_400, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
  [60, "{HH}:{mm}", ...DAYS],
  [1, "{HH}:{mm}:{ss}", ...DAYS],
  [0.001, "{ss}.{fff}", ...DAYS],
];

/** Return the number, from 1, of the colour and dash that a name has among others. */
export const seriesOf = (name, names) => (Math.max(0, [...names].sort().indexOf(name)) % DASHES.length) + 1;

/** A stroke as the chart draws it. */
export const Swatch = ({ number }) => html`
  <svg class=${`swatch series-${number}`} viewBox="0 0 24 8" width="24" height="8" aria-hidden="true">
    <line x1="1" y1="4" x2="23" y2="4" stroke-dasharray=${DASHES[number - 1].join(" ")} />
  </svg>`;

/** `series`: name, number, and points [epoch milliseconds, value or null], oldest first; `say` writes a value. */
export const Lines = ({ label, series, say, nothing }) => {
  const drawn = series.filter(({ points }) => points.some(([, value]) => numberOf(value) !== null));
  if (!drawn.length) return html`<p class="nothing">${nothing}</p>`;
  return html`
    <figure class="chart">
      <figcaption>
        <strong>${label}</strong>
        <ul class="legend">
          ${drawn.map(({ name, number, points }) => html`
            <li key=${name}><${Swatch} number=${number} /> ${words(name)} <b>${say(newest(points))}</b></li>`)}
        </ul>
      </figcaption>
      <${Canvas} series=${drawn} say=${say} />
      <details class="as-table">
        <summary>${label}, as a table</summary>
        <${Table} label=${label} series=${drawn} say=${say} />
      </details>
    </figure>`;
};

const newest = (points) => list(points).findLast(([, value]) => numberOf(value) !== null)?.[1];

const Table = ({ label, series, say }) => {
  const byTime = new Map();
  series.forEach(({ points }, column) => points.forEach(([time, value]) => {
    if (!byTime.has(time)) byTime.set(time, []);
    byTime.get(time)[column] = value;
  }));
  const times = [...byTime.keys()].sort((a, b) => b - a).slice(0, ROWS_MAX);
  return html`
    <div class="scroll" tabindex="0" role="group" aria-label=${`${label}, table`}>
      <table>
        <thead><tr><th scope="col">Time</th>${series.map(({ name }) => html`<th scope="col" class="n">${words(name)}</th>`)}</tr></thead>
        <tbody>
          ${times.map((time) => html`
            <tr key=${time}>
              <th scope="row">${clock(time)}</th>
              ${series.map((_, column) => html`<td class="n">${say(byTime.get(time)[column])}</td>`)}
            </tr>`)}
        </tbody>
      </table>
    </div>`;
};

const Canvas = ({ series, say }) => {
  const place = useRef(null);
  const plot = useRef(null);
  const isDark = useDark();
  const shape = series.map(({ name, number }) => `${number} ${name}`).join("\n");
  const data = uPlot.join(series.map(({ points }) => [points.map(([time]) => time / 1000), points.map(([, value]) => numberOf(value))]));
  useEffect(() => {
    const made = (plot.current = new uPlot(options(place.current, series, say), data, place.current));
    const watcher = new ResizeObserver(([{ contentRect }]) => made.setSize({ width: contentRect.width, height: HEIGHT }));
    watcher.observe(place.current);
    return () => {
      watcher.disconnect();
      made.destroy();
    };
  }, [shape, isDark]);
  useEffect(() => plot.current.setData(data), [JSON.stringify(data)]);
  return html`<div class="canvas" ref=${place} aria-hidden="true"></div>`;
};

const options = (place, series, say) => {
  const colour = (name) => getComputedStyle(place).getPropertyValue(`--${name}`).trim();
  const axis = { stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  return {
    width: place.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false } },
    scales: { y: { range: (_, __, highest) => [0, highest > 0 ? 1.1 * highest : 1] } },
    axes: [{ ...axis, values: TIMES }, { ...axis, size: 58, values: (_, splits) => splits.map(say) }],
    series: [{}, ...series.map(({ number }) => ({
      stroke: colour(`series-${number}`),
      dash: DASHES[number - 1],
      width: 2,
      spanGaps: true,
      points: { size: 5, fill: colour(`series-${number}`) },
    }))],
  };
};

const useDark = () => {
  const wish = window.matchMedia("(prefers-color-scheme: dark)");
  const [isDark, setDark] = useState(wish.matches);
  useEffect(() => {
    const change = () => setDark(wish.matches);
    wish.addEventListener("change", change);
    return () => wish.removeEventListener("change", change);
  }, []);
  return isDark;
};
