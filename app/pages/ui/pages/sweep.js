// A sweep: quality against cost of its children, as a plot to point at and as a table.
import { html, useState } from "../vendor/htm-preact-3.1.1.js";
import * as api from "../api.js";
import { moment, number, percent } from "../format.js";
import { Action, Badge, Copy, Failed, Loading, Title, go, useLoaded } from "../parts.js";
import { MOST } from "./compare.js";
import { Scatter } from "./scatter.js";
import { counted } from "./sweeps.js";

export function Sweep({ id, search, me }) {
  const quality = search.get("quality") || "";
  const cost = search.get("cost") || "";
  const { data, error, reload } = useLoaded(async (signal) => {
    const [sweep, pareto] = await Promise.all([
      api.get(`v1/sweeps/${id}`, { signal }),
      api.get(`v1/sweeps/${id}/pareto${api.query({ quality, cost })}`, { signal }),
    ]);
    return { sweep, pareto };
  }, [id, quality, cost], { everyMs: 4000, keep: true });
  const [failed, setFailed] = useState(null);
  const [chosen, setChosen] = useState([]);
  if (!data) {
    if (error?.status === 404) return html`<${Title} text="There is no such sweep" /><p>It was deleted, or is another tenant's. <a href="#/sweeps">All sweeps</a></p>`;
    return html`<${Title} text="Sweep" />${error ? html`<${Failed} error=${error} />` : html`<${Loading} what="the sweep" />`}`;
  }
  const { sweep, pareto } = data;
  const may = (scope) => me.key.scopes.includes(scope);
  const toggle = (job) => setChosen(chosen.includes(job) ? chosen.filter((each) => each !== job) : [...chosen, job]);
  const axes = (changes) => go(`sweeps/${id}${api.query({ quality, cost, ...changes })}`);
  const cancel = async () => { await api.json("POST", `v1/sweeps/${id}/cancel`); reload(); };
  const remove = async () => { await api.json("DELETE", `v1/sweeps/${id}`); go("sweeps"); };
  return html`
    <${Title} text=${sweep.name || "Sweep"} badge=${html`<${Badge} of=${sweep.status} />`} actions=${html`
      ${sweep.status === "running" && may("jobs:cancel") && html`<${Action} label="Cancel" kind="danger" act=${cancel} onError=${setFailed}
        ask=${{ title: "Cancel this sweep?", text: "Every job of it that has not ended stops.", yes: "Cancel the sweep", no: "Let it run" }} />`}
      ${sweep.status === "completed" && may("jobs:write") && html`<${Action} label="Delete" kind="danger" act=${remove} onError=${setFailed}
        ask=${{ title: "Delete this sweep with its jobs and files?", text: "Results, reports and logs of all its jobs go, for everybody. This cannot be undone.", yes: "Delete" }} />`}
      <a class="button" href="v1/sweeps/${id}/pareto${api.query({ quality, cost })}" target="_blank" rel="noreferrer">As a page</a>`} />
    <p class="sub"><code>${sweep.id}</code> <${Copy} text=${sweep.id} label="the id" /> · ${counted(sweep.counts)} · submitted ${moment(sweep.created_at)}${sweep.retention?.keep === "front" ? " · keeps the files of its front, and all reports" : ""}</p>
    <${Failed} error=${failed || error} />
    <section class="card"><div class="row-head"><h2>Quality against cost</h2></div>
      ${pareto.points.length === 0 ? html`<p class="note">None of its jobs has succeeded yet.</p>` : html`
        <div class="filters">
          <${AxisChoice} name="quality" metrics=${pareto.metrics} value=${pareto.quality?.metric} onChange=${(value) => axes({ quality: value })} />
          <${AxisChoice} name="cost" metrics=${pareto.metrics} value=${pareto.cost?.metric} onChange=${(value) => axes({ cost: value })} /></div>
        <${Scatter} pareto=${pareto} />`}
    </section>
    <section class="card"><div class="row-head"><h2>Jobs</h2>${chosen.length > 0 && html`<span><a class="button ${chosen.length > 1 ? "main" : ""}" href=${chosen.length > 1 ? `#/compare?jobs=${chosen.join(",")}` : null} aria-disabled=${chosen.length < 2 ? "true" : null}>Compare ${chosen.length}</a></span>`}</div>
      <${Children} sweep=${sweep} pareto=${pareto} chosen=${chosen} toggle=${toggle} /></section>`;
}

function AxisChoice({ name, metrics, value, onChange }) {
  return html`<div class="wide"><label for=${name}>${name}</label><select id=${name} value=${value} onChange=${(event) => onChange(event.target.value)}>${metrics.map((each) => html`<option value=${each}>${each}</option>`)}</select></div>`;
}

function Children({ sweep, pareto, chosen, toggle }) {
  const points = new Map(pareto.points.map((point) => [point.number, point]));
  const why = new Map(pareto.left_out.map((each) => [each.number, each.reason]));
  const last = (pointer) => pointer.split("/").slice(1).join(" ").replaceAll("_", " ");
  const shown = (value) => (value === undefined ? "" : value !== null && typeof value === "object" ? value.method || JSON.stringify(value) : String(value));
  const amount = (value, axis) => (value === undefined ? "" : axis?.unit === "fraction" ? percent(value) : number(value));
  return html`<table class="cards"><thead><tr><th><span class="unseen">Chosen</span></th><th class="num">No.</th>${sweep.parameters.map((each) => html`<th title=${each}>${last(each)}</th>`)}<th>Status</th><th>Verdict</th>
      ${pareto.quality && html`<th class="num">${pareto.quality.metric}</th>`}${pareto.cost && html`<th class="num">${pareto.cost.metric}</th>`}<th>Front</th></tr></thead>
    <tbody>${sweep.children.map((child) => { const point = points.get(child.number); return html`<tr key=${child.number} class=${point?.on_front ? "chosen" : ""}>
      <td class="tight"><input type="checkbox" aria-label="Choose number ${child.number}" checked=${chosen.includes(child.job_id)} disabled=${!child.job_id || (!chosen.includes(child.job_id) && chosen.length >= MOST)} onChange=${() => toggle(child.job_id)} /></td>
      <td class="num" data-label="No.">${child.job_id ? html`<a href="#/jobs/${child.job_id}">${child.number}</a>` : child.number}</td>
      ${sweep.parameters.map((each) => html`<td data-label=${last(each)}>${shown(child.values[each])}</td>`)}
      <td data-label="Status"><span><${Badge} of=${child.status} /> ${child.stopped_by !== null && html`<span class="note">stopped by number ${child.stopped_by}</span>`}${child.error && html`<span class="note">${child.error.code}</span>`}</span></td>
      <td data-label="Verdict">${child.verdict && html`<${Badge} of=${child.verdict} />`}</td>
      ${pareto.quality && html`<td class="num" data-label=${pareto.quality.metric}>${amount(point?.quality, pareto.quality)}</td>`}${pareto.cost && html`<td class="num" data-label=${pareto.cost.metric}>${amount(point?.cost, pareto.cost)}</td>`}
      <td data-label="Front">${point ? (point.on_front ? "on the front" : point.verdict === "fail" ? "no: gates fail" : "") : html`<span class="note">${why.get(child.number)}</span>`}</td></tr>`; })}</tbody></table>`;
}
