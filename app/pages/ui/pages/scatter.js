// The points of a sweep, quality upwards and cost to the right. Pointing at one, or moving to it by the arrow keys, tells what it is.
import { html, useRef, useState } from "../vendor/htm-preact-3.1.1.js";
import { number, percent } from "../format.js";
import { Axes, BOTTOM, LEFT, RIGHT, TOP, frame, shape, ticks, useWidth } from "../plot.js";

const HEIGHT = 420;

export function Scatter({ pareto }) {
  const { points, quality, cost } = pareto;
  const [figure, width] = useWidth();
  const [at, setAt] = useState(null);
  const marks = useRef({});
  const varied = [...new Set(points.flatMap((point) => Object.keys(point.methods)))].filter((stage) => new Set(points.map((point) => point.methods[stage])).size > 1);
  const group = (point) => varied.map((stage) => point.methods[stage] || "none").join(", ") || Object.values(points[0].methods).join(", ");
  const groups = [...new Set(points.map(group))];
  // Two standard errors each way.
  const ends = (value, stderr) => (stderr === null ? [value] : [value - 2 * stderr, value + 2 * stderr]);
  const of = frame(
    ticks(around(points.flatMap((point) => ends(point.cost, point.cost_stderr))), width / 100),
    ticks(around([...points.flatMap((point) => ends(point.quality, point.quality_stderr)), ...(quality.dense === null ? [] : [quality.dense])]), 6),
    width, HEIGHT);
  const front = points.filter((point) => point.on_front).sort((one, other) => (one.cost - other.cost) * (cost.higher_is_better ? -1 : 1));
  // Behind each point of the front everything is beaten, up to the next.
  const edge = front.map((point, n) => (n === 0 ? `M${of.x(point.cost)} ${of.y(point.quality)}` : `H${of.x(point.cost)}V${of.y(point.quality)}`)).join("");
  const order = points.map((_, n) => n).sort((one, other) => points[one].cost - points[other].cost || points[one].quality - points[other].quality);
  const move = (step) => {
    const next = order[Math.min(Math.max(order.indexOf(at ?? order[0]) + step, 0), order.length - 1)];
    setAt(next);
    marks.current[next]?.focus();
  };
  const pressed = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -order.length, End: order.length }[event.key];
    if (step) { event.preventDefault(); move(step); }
    if (event.key === " ") { event.preventDefault(); event.target.closest("a")?.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true })); }
  };
  const told = (point) => `number ${point.number}, ${group(point)}: ${quality.metric} ${amount(point.quality, quality)}, ${cost.metric} ${amount(point.cost, cost)}${point.verdict ? `, gates ${point.verdict}` : ""}${point.on_front ? ", on the front" : ""}`;
  const [up, right] = [quality, cost].map((axis) => (axis.higher_is_better ? "more is better" : "less is better"));
  return html`<figure ref=${figure}>
    <svg class="plot" viewBox="0 0 ${width} ${HEIGHT}" role="group" aria-label="${quality.metric} against ${cost.metric}, ${points.length} points; arrow keys go from one to the next" onKeyDown=${pressed}>
      <${Axes} of=${of} x="${cost.metric}${unit(cost)}, ${right}" y="${quality.metric}${unit(quality)}, ${up}" />
      ${quality.dense !== null && html`<line class="dense" x1=${LEFT} x2=${width - RIGHT} y1=${of.y(quality.dense)} y2=${of.y(quality.dense)} /><text x=${LEFT + 6} y=${of.y(quality.dense) - 5}>dense ${amount(quality.dense, quality)}</text>`}
      <path class="front" d=${edge} />
      ${points.map((point) => html`<g aria-hidden="true">
        ${point.quality_stderr !== null && html`<line class="bar c${groups.indexOf(group(point)) % 8}" x1=${of.x(point.cost)} x2=${of.x(point.cost)} y1=${of.y(point.quality - 2 * point.quality_stderr)} y2=${of.y(point.quality + 2 * point.quality_stderr)} />`}
        ${point.cost_stderr !== null && html`<line class="bar c${groups.indexOf(group(point)) % 8}" y1=${of.y(point.quality)} y2=${of.y(point.quality)} x1=${of.x(point.cost - 2 * point.cost_stderr)} x2=${of.x(point.cost + 2 * point.cost_stderr)} />`}</g>`)}
      ${points.map((point, n) => html`<a key=${point.number} href="#/jobs/${point.job_id}" aria-label=${told(point)} tabindex=${n === (at ?? order[0]) ? "0" : "-1"} ref=${(element) => { marks.current[n] = element; }}
        class="point" onPointerEnter=${() => setAt(n)} onFocus=${() => setAt(n)}>
        <circle class="target" cx=${of.x(point.cost)} cy=${of.y(point.quality)} r="12" />
        <path class="mark c${groups.indexOf(group(point)) % 8} ${point.verdict === "fail" ? "hollow" : ""} ${n === at ? "at" : ""}" d=${shape(groups.indexOf(group(point)), of.x(point.cost), of.y(point.quality), n === at ? 7 : 5.5)} />
        ${point.verdict === "fail" && html`<path class="struck" d=${cross(of.x(point.cost), of.y(point.quality))} />`}</a>`)}
    </svg>
    <ul class="legend">${groups.map((each, kind) => html`<li><svg class="plot" viewBox="0 0 26 12" aria-hidden="true"><path class="mark c${kind % 8}" d=${shape(kind, 13, 6, 4.5)} /></svg>${each}</li>`)}
      <li><svg class="plot" viewBox="0 0 26 12" aria-hidden="true"><path class="mark c7 hollow" d=${shape(0, 13, 6, 4.5)} /><path class="struck" d=${cross(13, 6)} /></svg>gates fail, so not on the front</li>
      ${front.length > 0 && html`<li><svg class="plot" viewBox="0 0 26 12" aria-hidden="true"><path class="front" d="M0 10H13V2H26" /></svg>front</li>`}</ul>
    <p class="readout" role="status">${at === null || !points[at] ? html`<span class="muted">Point at a mark, or go from one to the next with the arrow keys; Enter opens its job. Bars are two standard errors each way.</span>` : html`<${Told} point=${points[at]} quality=${quality} cost=${cost} />`}</p>
  </figure>`;
}

// The ends of a range in which no value lies on an axis, where its tick's number is.
const around = (values) => {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = (high - low) / 20;
  return [low < 0 ? low - pad : Math.max(0, low - pad), high + pad];
};
const cross = (x, y) => `M${x - 8} ${y - 8}l16 16m0 -16l-16 16`;
const unit = (axis) => (axis.unit && axis.unit !== "fraction" && !axis.metric.includes(axis.unit) ? ` (${axis.unit})` : "");
const amount = (value, axis) => (axis.unit === "fraction" ? percent(value) : number(value));

function Told({ point, quality, cost }) {
  const error = (value, axis) => (value === null ? "" : ` ± ${amount(2 * value, axis)}`);
  return html`<strong>Number ${point.number}</strong>${point.on_front && ", on the front"}${point.verdict && `, gates ${point.verdict}`} · ${quality.metric} ${amount(point.quality, quality)}${error(point.quality_stderr, quality)} · ${cost.metric} ${amount(point.cost, cost)}${error(point.cost_stderr, cost)}
    <br /><span class="muted">${Object.entries(point.methods).map(([stage, method]) => `${stage} ${method}`).join(", ")}; ${Object.entries(point.values).map(([pointer, value]) => `${pointer} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ")}</span>`;
}
