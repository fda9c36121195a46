// Two to eight jobs beside one another: where their specs differ, what they measured, what went where, how they learnt.
import { html, useState } from "../vendor/htm-preact-3.1.1.js";
import * as api from "../api.js";
import { asGiven } from "../given.js";
import { asked, methods, number, percent, quantity } from "../format.js";
import { Badge, Failed, Loading, Title, go, useLoaded } from "../parts.js";
import { Curve, Key } from "./curve.js";
import { ratio } from "./measured.js";

export const MOST = 8;

export function Compare({ search }) {
  const ids = [...new Set((search.get("jobs") || "").split(",").filter((each) => /^job_[0-9a-f]{32}$/.test(each)))].slice(0, MOST);
  const { data, error } = useLoaded(async (signal) => {
    const capabilities = await api.get("v1/capabilities", { signal });
    return Promise.all(ids.map((id) => whole(id, capabilities, signal)));
  }, [ids.join()], { keep: true });
  if (ids.length < 2) return html`<${Title} text="Compare" /><p>Choose two to ${MOST} jobs in <a href="#/jobs">the list</a> or in a sweep.</p>`;
  if (!data) return html`<${Title} text="Compare" />${error ? html`<${Failed} error=${error} />` : html`<${Loading} what="the jobs" />`}`;
  const jobs = data.map((each, kind) => ({ ...each, kind, letter: String.fromCharCode(65 + kind) }));
  return html`<${Title} text="Compare ${jobs.length} jobs" />
    <${Failed} error=${error} />
    <section class="card" aria-label="Jobs"><table class="cards"><thead><tr><th>Key</th><th>Job</th><th>Asked for</th><th>Status</th><th>Verdict</th><th class="unseen">Remove</th></tr></thead>
      <tbody>${jobs.map(({ job, letter, kind }) => html`<tr key=${job.id}><th scope="row"><${Key} kind=${kind} /> ${letter}</th>
        <td data-label="Job"><span><a href="#/jobs/${job.id}">${job.spec.model.id}: ${methods(job.spec).map(({ method }) => method).join(" · ")}</a></span></td>
        <td data-label="Asked for">${asked(job.spec)}</td>
        <td data-label="Status"><${Badge} of=${job.status} /></td><td data-label="Verdict">${job.verdict && html`<${Badge} of=${job.verdict} />`}</td>
        <td>${jobs.length > 2 && html`<button type="button" class="plain" aria-label="Leave out ${letter}" onClick=${() => go(`compare?jobs=${ids.filter((id) => id !== job.id).join(",")}`)}>leave out</button>`}</td></tr>`)}</tbody></table></section>
    <${Measured} jobs=${jobs} />
    <${Layers} jobs=${jobs.filter((each) => each.report)} />
    <${Learnt} stage="train" title="Training" jobs=${jobs.filter((each) => each.report?.train)} />
    <${Learnt} stage="tune" title="Tuning" jobs=${jobs.filter((each) => each.report?.tune)} />
    <${Differences} jobs=${jobs} />`;
}

async function whole(id, capabilities, signal) {
  const job = await api.get(`v1/jobs/${id}`, { signal });
  return { job, given: asGiven(job.spec, capabilities), report: job.status === "succeeded" ? await api.get(`v1/jobs/${id}/report`, { signal }) : null };
}

function Heads({ jobs }) {
  return jobs.map(({ letter, kind }) => html`<th class="num" scope="col"><${Key} kind=${kind} /> ${letter}</th>`);
}

function Measured({ jobs }) {
  const reports = jobs.filter((each) => each.report);
  if (reports.length === 0) return html`<section class="card"><h2>Measured</h2><p class="note">None of them has succeeded yet.</p></section>`;
  const names = [...new Set(reports.flatMap(({ report }) => report.metrics.map((each) => each.name)))];
  const found = (job, name) => job.report?.metrics.find((each) => each.name === name);
  const dense = (name) => {
    const values = reports.map((job) => found(job, name)).filter(Boolean);
    const first = values[0];
    const spread = Math.max(...values.map((each) => Math.abs(each.dense - first.dense)));
    return html`${quantity(first.dense, first.unit)}${spread > 1e-3 * Math.abs(first.dense) && html`<br /><span class="note">differs between jobs</span>`}`;
  };
  return html`<section class="card"><h2 id="measured">Measured</h2><div class="scroll" tabindex="0" role="group" aria-labelledby="measured"><table>
    <thead><tr><th>Measurement</th><th class="num">Dense</th><${Heads} jobs=${jobs} /></tr></thead><tbody>
      <tr><th scope="row">removed</th><td class="num"></td>${jobs.map(({ report }) => html`<td class="num">${report ? percent(report.sparsity) : "–"}</td>`)}</tr>
      ${names.map((name) => html`<tr key=${name}><th scope="row">${name}</th><td class="num">${dense(name)}</td>
        ${jobs.map((job) => { const metric = found(job, name); return html`<td class="num">${metric ? html`${quantity(metric.pruned, metric.unit)}${metric.ratio !== null && html`<br /><span class="muted">${ratio(metric)} ×</span>`}` : "–"}</td>`; })}</tr>`)}
    </tbody></table></div>
    <p class="note">Below each value the ratio to the dense model, with the interval that holds the true one with 95 %. Jobs measured on other texts or windows do not compare.</p></section>`;
}

const SHOWN = { sparsity: ["sparsity", "fraction removed"], outputs: ["outputs", "rows left"], inputs: ["inputs", "columns left"] };

// Layers of one kind, block by block; several of a block, as of experts, are their mean weighed by parameters.
function Layers({ jobs }) {
  const [what, setWhat] = useState("sparsity");
  const [kind, setKind] = useState("");
  const kindOf = (name) => name.split(".").filter((part) => !/^\d+$/.test(part)).slice(-2).join(".");
  const kinds = [...new Set(jobs.flatMap(({ report }) => report.layers.map((layer) => kindOf(layer.name))))];
  if (kinds.length === 0) return null;
  const value = (layer) => (what === "sparsity" ? layer.sparsity : layer.shape[what === "outputs" ? 0 : 1]);
  const series = jobs.map((each) => {
    const blocks = new Map();
    for (const layer of each.report.layers) {
      if (kind && kindOf(layer.name) !== kind) continue;
      const [sum, weight] = blocks.get(layer.block) || [0, 0];
      blocks.set(layer.block, [sum + value(layer) * layer.parameters, weight + layer.parameters]);
    }
    return { name: `${each.letter}`, kind: each.kind, points: [...blocks].sort(([one], [other]) => one - other).map(([block, [sum, weight]]) => [block, sum / weight]) };
  });
  const [name, axis] = SHOWN[what];
  return html`<section class="card"><h2>Layers</h2><div class="filters">
      <div><label for="what">What</label><select id="what" value=${what} onChange=${(event) => setWhat(event.target.value)}>${Object.entries(SHOWN).map(([key, [, each]]) => html`<option value=${key}>${key}: ${each}</option>`)}</select></div>
      <div><label for="kind">Of</label><select id="kind" value=${kind} onChange=${(event) => setKind(event.target.value)}><option value="">all layers</option>${kinds.map((each) => html`<option value=${each}>${each}</option>`)}</select></div></div>
    <${Curve} series=${series} label="${name} of ${kind || "all linear layers"}, block by block" x="block" y=${axis} whole=${true} legend=${true} /></section>`;
}

function Learnt({ jobs, stage, title }) {
  if (jobs.length === 0) return null;
  return html`<section class="card"><h2>${title}</h2><${Curve} label="Held-out loss while ${title.toLowerCase()}" x="step" y="nats a token" legend=${true}
    series=${jobs.map((each) => ({ name: each.letter, kind: each.kind, points: each.report[stage].curve.map((point) => [point.step, point.holdout_loss]) }))} /></section>`;
}

function leaves(value, pointer = "") {
  if (value !== null && typeof value === "object" && Object.keys(value).length > 0) {
    return Object.entries(value).flatMap(([name, each]) => leaves(each, `${pointer}/${name}`));
  }
  return [[pointer, value]];
}

function Differences({ jobs }) {
  const [all, setAll] = useState(false);
  const specs = jobs.map(({ job }) => new Map(leaves(job.spec)));
  const pointers = [...new Set(specs.flatMap((spec) => [...spec.keys()]))];
  const text = (value) => (value === undefined ? "" : JSON.stringify(value));
  // Settings of a method that some of them do not have: only those that somebody gave.
  const given = new Set(jobs.flatMap((each) => leaves(each.given).map(([pointer]) => pointer)));
  const differing = pointers.filter((pointer) => new Set(specs.map((spec) => text(spec.get(pointer)))).size > 1 && (given.has(pointer) || specs.every((spec) => spec.has(pointer))));
  return html`<section class="card"><div class="row-head"><h2 id="spec">Spec</h2><label><input type="checkbox" checked=${all} onChange=${(event) => setAll(event.target.checked)} /> also what is the same</label></div>
    ${differing.length === 0 && html`<p class="note">The specs are the same.</p>`}
    ${(all || differing.length > 0) && html`<div class="scroll" tabindex="0" role="group" aria-labelledby="spec"><table><thead><tr><th>Field</th>${jobs.map(({ letter, kind }) => html`<th scope="col"><${Key} kind=${kind} /> ${letter}</th>`)}</tr></thead>
      <tbody>${(all ? pointers : differing).map((pointer) => html`<tr key=${pointer}><th scope="row"><code>${pointer}</code></th>${specs.map((spec) => html`<td>${text(spec.get(pointer)).replace(/^"|"$/g, "")}</td>`)}</tr>`)}</tbody></table></div>`}
  </section>`;
}
