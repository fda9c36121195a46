// Two to eight jobs beside one another: where their specs differ, what they measured, what went where, how they learnt.
import { html, useState } from "../vendor/htm-preact-3.1.1.js";
import * as api from "../api.js";
import { asked, bytes, methods, number, percent, quantity } from "../format.js";
import { Badge, Failed, Loading, Title, go, useLoaded } from "../parts.js";
import { Curve, Key } from "./curve.js";

export const MOST = 8;

export function Compare({ search }) {
  const ids = [...new Set((search.get("jobs") || "").split(",").filter((each) => /^job_[0-9a-f]{32}$/.test(each)))].slice(0, MOST);
  const { data, error } = useLoaded(
    async (signal) => (ids.length < 2 ? null : api.get(`v1/compare?${ids.map((id) => `job=${id}`).join("&")}`, { signal })),
    [ids.join()], { keep: true },
  );
  if (ids.length < 2) return html`<${Title} text="Compare" /><p>Choose two to ${MOST} jobs in <a href="#/jobs">the list</a> or in a sweep.</p>`;
  if (!data) return html`<${Title} text="Compare" />${error ? html`<${Failed} error=${error} />` : html`<${Loading} what="the jobs" />`}`;
  const jobs = data.jobs.map((each, kind) => ({ ...each, kind, letter: String.fromCharCode(65 + kind) }));
  return html`<${Title} text="Compare ${jobs.length} jobs" />
    <${Failed} error=${error} />
    <section class="card" aria-label="Jobs"><table class="cards"><thead><tr><th>Key</th><th>Job</th><th>Asked for</th><th>Status</th><th>Verdict</th><th class="unseen">Remove</th></tr></thead>
      <tbody>${jobs.map(({ letter, kind, ...job }) => html`<tr key=${job.id}><th scope="row"><${Key} kind=${kind} /> ${letter}</th>
        <td data-label="Job"><span><a href="#/jobs/${job.id}">${job.spec.model.id}: ${methods(job.spec).map(({ method }) => method).join(" · ")}</a></span></td>
        <td data-label="Asked for">${asked(job.spec)}</td>
        <td data-label="Status"><${Badge} of=${job.status} /></td><td data-label="Verdict">${job.verdict && html`<${Badge} of=${job.verdict} />`}</td>
        <td>${jobs.length > 2 && html`<button type="button" class="plain" aria-label="Leave out ${letter}" onClick=${() => go(`compare?jobs=${ids.filter((id) => id !== job.id).join(",")}`)}>leave out</button>`}</td></tr>`)}</tbody></table></section>
    <${Measured} jobs=${jobs} metrics=${data.metrics} />
    <${Layers} jobs=${jobs} layers=${data.layers} />
    ${data.curves.map((each) => html`<${Learnt} key=${each.stage} jobs=${jobs} ...${each} />`)}
    <${Differences} jobs=${jobs} fields=${data.spec} />`;
}

function Heads({ jobs }) {
  return jobs.map(({ letter, kind }) => html`<th class="num" scope="col"><${Key} kind=${kind} /> ${letter}</th>`);
}

function Measured({ jobs, metrics }) {
  if (jobs.every((job) => job.status !== "succeeded")) return html`<section class="card"><h2>Measured</h2><p class="note">None of them has succeeded.</p></section>`;
  const dense = ({ values, unit, same_dense: same }) => html`${quantity(values.find(Boolean).dense, unit)}${!same && html`<br /><span class="note">differs between jobs</span>`}`;
  const ratio = ({ ratio: value, ratio_interval: interval }) => `${number(value)}${interval && interval[0] < interval[1] ? ` ± ${number((interval[1] - interval[0]) / 2, 2)}` : ""}`;
  const gates = [...new Set(jobs.flatMap((job) => job.gates.map(({ metric }) => metric)))];
  return html`<section class="card"><h2 id="measured">Measured</h2><div class="scroll" tabindex="0" role="group" aria-labelledby="measured"><table>
    <thead><tr><th>Measurement</th><th class="num">Dense</th><${Heads} jobs=${jobs} /></tr></thead><tbody>
      <tr><th scope="row">removed</th><td class="num"></td>${jobs.map(({ sparsity }) => html`<td class="num">${sparsity === null ? "–" : percent(sparsity)}</td>`)}</tr>
      <tr><th scope="row">parameters</th><td class="num"></td>${jobs.map((job) => html`<td class="num">${number(job.parameters_after)}</td>`)}</tr>
      <tr><th scope="row">files of weights</th><td class="num"></td>${jobs.map((job) => html`<td class="num">${bytes(job.weight_bytes)}</td>`)}</tr>
      ${metrics.map((metric) => html`<tr key=${metric.name}><th scope="row">${metric.name}</th><td class="num">${dense(metric)}</td>
        ${metric.values.map((each) => html`<td class="num">${each ? html`${quantity(each.pruned, metric.unit)}${each.ratio !== null && html`<br /><span class="muted">${ratio(each)} ×</span>`}` : "–"}</td>`)}</tr>`)}
      ${gates.map((gated) => html`<tr key=${gated}><th scope="row">gate on ${gated}</th><td></td>${jobs.map((job) => html`<td class="num">${job.gates.filter(({ metric }) => metric === gated).map(({ verdict }) => html`<${Badge} of=${verdict} /> `)}</td>`)}</tr>`)}
    </tbody></table></div>
    <p class="note">Below each value the ratio to the dense model, with the interval that holds the true one with 95 %. Jobs measured on other texts or windows do not compare.</p></section>`;
}

const SHOWN = { sparsity: "fraction removed", outputs: "rows left", inputs: "columns left" };

// Layers of one kind, block by block; several of a block, as of experts, are their mean weighed by parameters.
function Layers({ jobs, layers }) {
  const [what, setWhat] = useState("sparsity");
  const [kind, setKind] = useState("");
  const kindOf = (name) => name.split(".").filter((part) => !/^\d+$/.test(part)).slice(-2).join(".");
  const kinds = [...new Set(layers.map((layer) => kindOf(layer.name)))];
  if (kinds.length === 0) return null;
  const series = jobs.map((job, at) => {
    const blocks = new Map();
    for (const layer of layers) {
      if (layer[what][at] === null || (kind && kindOf(layer.name) !== kind)) continue;
      const [sum, weight] = blocks.get(layer.block) || [0, 0];
      blocks.set(layer.block, [sum + layer[what][at] * layer.parameters[at], weight + layer.parameters[at]]);
    }
    return { name: job.letter, kind: job.kind, points: [...blocks].sort(([one], [other]) => one - other).map(([block, [sum, weight]]) => [block, sum / weight]) };
  });
  return html`<section class="card"><h2>Layers</h2><div class="filters">
      <div><label for="what">What</label><select id="what" value=${what} onChange=${(event) => setWhat(event.target.value)}>${Object.entries(SHOWN).map(([key, each]) => html`<option value=${key}>${key}: ${each}</option>`)}</select></div>
      <div><label for="kind">Of</label><select id="kind" value=${kind} onChange=${(event) => setKind(event.target.value)}><option value="">all layers</option>${kinds.map((each) => html`<option value=${each}>${each}</option>`)}</select></div></div>
    <${Curve} series=${series} label="${what} of ${kind || "all linear layers"}, block by block" x="block" y=${SHOWN[what]} whole=${true} legend=${true} /></section>`;
}

const TRAININGS = { train: "Training", tune: "Tuning" };

function Learnt({ jobs, stage, curves }) {
  const title = TRAININGS[stage];
  return html`<section class="card"><h2>${title}</h2><${Curve} label="Held-out loss while ${title.toLowerCase()}" x="step" y="nats a token" legend=${true}
    series=${jobs.map(({ letter, kind }, at) => ({ name: letter, kind, points: (curves[at] || []).map((point) => [point.step, point.holdout_loss]) }))} /></section>`;
}

function Differences({ jobs, fields }) {
  const [all, setAll] = useState(false);
  const shown = fields.filter((field) => all || !field.only_defaults);
  const text = ({ absent, value }) => (absent ? html`<span class="muted">absent</span>` : String(value));
  return html`<section class="card"><div class="row-head"><h2 id="spec">Spec</h2>
      <label><input type="checkbox" checked=${all} onChange=${(event) => setAll(event.target.checked)} /> also defaults of methods that not all of them have</label></div>
    ${shown.length === 0 && html`<p class="note">The specs are the same.</p>`}
    ${shown.length > 0 && html`<div class="scroll" tabindex="0" role="group" aria-labelledby="spec"><table><thead><tr><th>Field</th>${jobs.map(({ letter, kind }) => html`<th scope="col"><${Key} kind=${kind} /> ${letter}</th>`)}</tr></thead>
      <tbody>${shown.map((field) => html`<tr key=${field.path}><th scope="row"><code>${field.path}</code></th>${field.values.map((each) => html`<td>${text(each)}</td>`)}</tr>`)}</tbody></table></div>`}
  </section>`;
}
