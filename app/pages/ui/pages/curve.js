// Lines over a shared pair of axes.
import { html } from "../vendor/htm-preact-3.1.1.js";
import { number } from "../format.js";
import { Axes, dash, frame, ticks, useWidth } from "../plot.js";

// `series`: [{name, points: [[x, y], …]}].
export function Curve({ series, label, x, y, stepped = false }) {
  const [figure, width] = useWidth();
  const drawn = series.map((each, kind) => ({ ...each, kind: each.kind ?? kind })).filter((each) => each.points.length > 0);
  const points = drawn.flatMap((each) => each.points);
  if (points.length === 0) return html`<figure ref=${figure}></figure>`;
  const of = frame(ticks(points.map(([at]) => at), width / 90), ticks(points.map(([, value]) => value), 5), width);
  const path = (each) => each.points.map(([at, value], n) => {
    const [left, top] = [of.x(at).toFixed(1), of.y(value).toFixed(1)];
    return n === 0 ? `M${left} ${top}` : stepped ? `H${left}V${top}` : `L${left} ${top}`;
  }).join("");
  const said = drawn.map((each) => `${each.name}: from ${number(each.points[0][1])} to ${number(each.points.at(-1)[1])}`).join("; ");
  return html`<figure ref=${figure}>
    <svg class="plot" viewBox="0 0 ${of.width} ${of.height}" role="img" aria-label="${label}. ${said}">
      <${Axes} of=${of} x=${x} y=${y} />
      ${drawn.map((each) => html`<path class="line c${each.kind % 8}" d=${path(each)} stroke-dasharray=${dash(each.kind)} />`)}
    </svg>
    <figcaption>${label}${drawn.length > 1 && html`<${Legend} names=${drawn} />`}</figcaption>
  </figure>`;
}

export function Legend({ names }) {
  return html`<ul class="legend">${names.map((each) => html`<li><svg viewBox="0 0 26 12" aria-hidden="true" class="plot"><path class="line c${each.kind % 8}" d="M0 6H26" stroke-dasharray=${dash(each.kind)} /></svg>${each.name}</li>`)}</ul>`;
}
