// Measurements of a report: tables of metrics with their intervals, and of gates.
import { html } from "../vendor/htm-preact-3.1.1.js";
import { halfWidth, number, quantity } from "../format.js";
import { Badge } from "../parts.js";

export function Metrics({ metrics }) {
  if (!metrics.length) return html`<p class="note">The spec measures nothing: give it <code>evaluate</code>.</p>`;
  return html`<h3>Measured</h3><table class="cards">
    <thead><tr><th>Measurement</th><th class="num">Dense</th><th class="num">Pruned</th><th class="num">Ratio, 95 %</th></tr></thead>
    <tbody>${metrics.map((metric) => html`<tr key=${metric.name}>
      <th scope="row">${metric.name}</th>
      <td class="num" data-label="Dense">${quantity(metric.dense, metric.unit)}</td>
      <td class="num" data-label="Pruned">${quantity(metric.pruned, metric.unit)}</td>
      <td class="num" data-label="Ratio, 95 %">${ratio(metric)}</td></tr>`)}</tbody></table>`;
}

function ratio(metric) {
  if (metric.ratio === null) return "–";
  const half = halfWidth(metric.ratio_stderr, metric.degrees_of_freedom);
  return `${number(metric.ratio)}${half === null ? "" : ` ± ${number(half, 2)}`}`;
}

const GATED = { ratio: "pruned / dense", difference: "pruned − dense", pruned: "pruned" };

export function Gates({ gates }) {
  return html`<h3>Gates</h3><table class="cards">
    <thead><tr><th>Measurement</th><th>Bound</th><th class="num">Value</th><th class="num">Interval</th><th>Verdict</th></tr></thead>
    <tbody>${gates.map((gate) => html`<tr>
      <th scope="row">${gate.metric}</th>
      <td data-label="Bound"><span>${GATED[gate.of]} ${gate.min !== null ? `≥ ${number(gate.min)}` : ""} ${gate.max !== null ? `≤ ${number(gate.max)}` : ""}</span></td>
      <td class="num" data-label="Value">${number(gate.value)}</td>
      <td class="num" data-label="Interval">${gate.interval ? `${number(gate.interval[0])} to ${number(gate.interval[1])}` : "–"}</td>
      <td data-label="Verdict"><span><${Badge} of=${gate.verdict} /> <span class="note">${gate.reason}</span></span></td></tr>`)}</tbody></table>`;
}
