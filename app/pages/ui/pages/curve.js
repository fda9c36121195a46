// Lines over a shared pair of axes.
import { html } from "../vendor/htm-preact-3.1.1.js";
import { number } from "../format.js";
import { Axes, dash, frame, shape, ticks, useWidth } from "../plot.js";

// `series`: [{name, points: [[x, y], …], kind}]. `whole`: x has no values between whole numbers, and each gets a mark.
export function Curve({ series, label, x, y, whole = false, legend = false }) {
  const [figure, width] = useWidth();
  const drawn = series.map((each, kind) => ({ ...each, kind: each.kind ?? kind })).filter((each) => each.points.length > 0);
  const points = drawn.flatMap((each) => each.points);
  if (points.length === 0) return html`<figure ref=${figure}></figure>`;
  const about = whole ? Math.min(width / 60, Math.max(...points.map(([at]) => at)) || 1) : width / 90;
  const of = frame(ticks(points.map(([at]) => at), about), ticks(points.map(([, value]) => value), 5), width);
  const path = (each) => each.points.map(([at, value], n) => {
    const [left, top] = [of.x(at).toFixed(1), of.y(value).toFixed(1)];
    return n === 0 ? `M${left} ${top}` : `L${left} ${top}`;
  }).join("");
  const said = drawn.map((each) => `${each.name}: from ${number(each.points[0][1])} to ${number(each.points.at(-1)[1])}`).join("; ");
  return html`<figure ref=${figure}>
    <svg class="plot" viewBox="0 0 ${of.width} ${of.height}" role="img" aria-label="${label}. ${said}">
      <${Axes} of=${of} x=${x} y=${y} />
      ${drawn.map((each) => html`<path class="line c${each.kind % 8}" d=${path(each)} stroke-dasharray=${dash(each.kind)} />`)}
      ${whole && drawn.map((each) => each.points.map(([at, value]) => html`<path class="mark c${each.kind % 8}" d=${shape(each.kind, of.x(at), of.y(value), 3.5)} />`))}
    </svg>
    <figcaption>${label}${(legend || drawn.length > 1) && html`<ul class="legend">${drawn.map((each) => html`<li><${Key} kind=${each.kind} />${each.name}</li>`)}</ul>`}</figcaption>
  </figure>`;
}

// The line of a series, for legends and heads of tables.
export function Key({ kind }) {
  return html`<svg viewBox="0 0 26 12" aria-hidden="true" class="plot key"><path class="line c${kind % 8}" d="M0 6H26" stroke-dasharray=${dash(kind)} /><path class="mark c${kind % 8}" d=${shape(kind, 13, 6, 3.5)} /></svg>`;
}
