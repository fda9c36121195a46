// The list of jobs: filtered, paged, kept up to date.
import { html, useEffect, useRef, useState } from "../vendor/htm-preact-3.1.1.js";
import * as api from "../api.js";
import { ago, asked, methods as methodsOf, moment, number, percent, short } from "../format.js";
import { MOST } from "./compare.js";
import { Badge, Failed, Loading, Tags, Title, go, useLoaded } from "../parts.js";

const STATUSES = [["", "any"], ["queued,running,pausing,paused,cancelling", "not ended"], ["queued", "queued"], ["running", "running"], ["paused", "paused"],
  ["succeeded", "succeeded"], ["failed", "failed"], ["cancelled", "cancelled"]];
const VERDICTS = ["pass", "fail", "inconclusive"];
const FILTERS = ["search", "status", "verdict", "method", "model", "label"];
const SORTS = [["", "newest"], ["created_at", "oldest"], ["-updated_at", "changed last"], ["-priority", "priority"], ["model", "model"]];
const LIVE_MS = 3000;
const SOUGHT_MS = 15000; // no index helps with these: the service reads job after job

export function Jobs({ search, me }) {
  const asking = search.toString();
  const { data, error } = useLoaded(
    (signal) => api.get(`v1/jobs${api.query({ ...parameters(search), limit: 25, count: "true" })}`, { signal }), [asking], { everyMs: search.has("search") || search.has("method") ? SOUGHT_MS : LIVE_MS, keep: true });
  const known = useLoaded((signal) => api.get("v1/capabilities", { signal }), []);
  const names = [...new Set((known.data?.stages || []).flatMap((stage) => stage.methods.map((method) => method.name)))].sort();
  const [chosen, setChosen] = useState([]);
  const toggle = (id) => setChosen(chosen.includes(id) ? chosen.filter((each) => each !== id) : [...chosen, id]);
  const open = (changes) => {
    const next = new URLSearchParams(api.query({ ...parameters(search), cursor: "", ...changes }).slice(1));
    go(`jobs${next.size ? `?${next}` : ""}`);
  };
  const narrowed = FILTERS.some((name) => search.has(name));
  return html`
    <${Title} text="Jobs" actions=${chosen.length > 0 && html`<span class="muted" role="status">${chosen.length} chosen</span>
      <button type="button" onClick=${() => setChosen([])}>Choose none</button>
      <button type="button" class="main" disabled=${chosen.length < 2} onClick=${() => go(`compare?jobs=${chosen.join(",")}`)}>Compare</button>`} />
    <${Filters} search=${search} open=${open} methods=${names} />
    <${Failed} error=${error} />
    ${!data && !error && html`<${Loading} what="jobs" />`}
    ${data && html`<section class="card" aria-label="List of jobs">
      ${data.data.length === 0
        ? html`<p class="empty">${narrowed ? "No job passes these filters." : "There are no jobs yet."}</p>`
        : html`<${List} jobs=${data.data} chosen=${chosen} toggle=${toggle} />`}
      <div class="pager">
        <span>${search.has("cursor") && html`<a href="#/jobs${api.query({ ...parameters(search), cursor: "" })}">First page</a>`}</span>
        <span class="muted" role="status">${data.data.length} shown${data.total !== null && data.total !== undefined ? ` of ${number(data.total)}` : ""}</span>
        <span>${data.has_more && html`<a href="#/jobs${api.query({ ...parameters(search), cursor: data.next_cursor })}">Next page</a>`}</span>
      </div>
    </section>`}`;
}

function parameters(search) {
  const found = {};
  for (const name of [...FILTERS, "sort", "cursor"]) {
    const values = search.getAll(name);
    if (values.length) found[name] = values.length > 1 ? values : values[0];
  }
  return found;
}

function Filters({ search, open, methods }) {
  const given = () => Object.fromEntries(FILTERS.map((name) => [name, search.get(name) || ""]));
  const [draft, setDraft] = useState(given);
  const shown = useRef(draft);
  useEffect(() => {
    // Only what the address changed and nobody has typed over since.
    const before = shown.current;
    shown.current = given();
    setDraft((now) => Object.fromEntries(FILTERS.map((name) => [name, now[name] === before[name] ? shown.current[name] : now[name]])));
  }, [search.toString()]);
  const set = (name, value) => { const next = { ...draft, [name]: value }; setDraft(next); return next; };
  const typed = (name) => ({ id: name, name, value: draft[name], onInput: (event) => set(name, event.target.value) });
  const chosen = (name) => ({ id: name, name, value: draft[name], onChange: (event) => open(set(name, event.target.value)) });
  // As it stands in the form: what was typed last may not be drawn yet.
  const send = (event) => { event.preventDefault(); open({ ...draft, ...Object.fromEntries(new FormData(event.target)) }); };
  const clear = () => { setDraft(Object.fromEntries(FILTERS.map((name) => [name, ""]))); go("jobs"); };
  return html`<form class="filters" role="search" aria-label="Filters" onSubmit=${send}>
    <div class="wide"><label for="search">Search</label><input type="search" ...${typed("search")} placeholder="part of an id, model, method or label" /></div>
    <div><label for="status">Status</label><select ...${chosen("status")}>
      ${STATUSES.map(([value, name]) => html`<option value=${value}>${name}</option>`)}</select></div>
    <div><label for="verdict">Verdict</label><select ...${chosen("verdict")}>
      <option value="">any</option>${VERDICTS.map((each) => html`<option value=${each}>${each}</option>`)}</select></div>
    <div><label for="method">Method</label><select ...${chosen("method")}>
      <option value="">any</option>${(draft.method && !methods.includes(draft.method) ? [draft.method, ...methods] : methods).map((each) => html`<option value=${each}>${each}</option>`)}</select></div>
    <div><label for="model">Model</label><input ...${typed("model")} placeholder="Qwen/Qwen3-0.6B" /></div>
    <div><label for="label">Label</label><input ...${typed("label")} placeholder="team:search" /></div>
    <div><label for="sort">Order</label><select id="sort" value=${search.get("sort") || ""} onChange=${(event) => open({ ...draft, sort: event.target.value })}>
      ${SORTS.map(([value, name]) => html`<option value=${value}>${name}</option>`)}</select></div>
    <button>Filter</button>
    ${FILTERS.some((name) => search.has(name)) && html`<button type="button" onClick=${clear}>Clear</button>`}
  </form>`;
}

function List({ jobs, chosen, toggle }) {
  return html`<table class="cards">
    <thead><tr><th><span class="unseen">Chosen</span></th><th>Model</th><th>Methods</th><th>Asked for</th><th>Status</th><th>Verdict</th><th>Measured</th><th>Labels</th><th>Submitted</th></tr></thead>
    <tbody>${jobs.map((job) => html`<tr key=${job.id} class=${chosen.includes(job.id) ? "chosen" : ""}>
      <td class="tight"><input type="checkbox" aria-label="Choose ${job.spec.model.id} ${short(job.id)}" checked=${chosen.includes(job.id)} disabled=${!chosen.includes(job.id) && chosen.length >= MOST} onChange=${() => toggle(job.id)} /></td>
      <th scope="row"><a href="#/jobs/${job.id}">${job.spec.model.id}</a> <code class="muted whole">${short(job.id)}</code></th>
      <td data-label="Methods">${methodsOf(job.spec).map(({ method }) => method).join(" · ")}</td>
      <td data-label="Asked for">${asked(job.spec)}</td>
      <td data-label="Status"><${Status} job=${job} /></td>
      <td data-label="Verdict">${job.verdict && html`<${Badge} of=${job.verdict} />`}</td>
      <td data-label="Measured">${measured(job)}</td>
      <td data-label="Labels">${Object.keys(job.labels).length > 0 && html`<span><${Tags} labels=${job.labels} /></span>`}</td>
      <td data-label="Submitted"><time class="whole" datetime=${job.created_at} title=${moment(job.created_at)}>${ago(job.created_at)}</time></td>
    </tr>`)}</tbody></table>`;
}

function Status({ job }) {
  const { progress, queue } = job;
  return html`<span><${Badge} of=${job.status} />
    ${job.status === "running" && progress && html` <span class="muted">${job.stage} ${progress.total > 1 ? percent(progress.done / progress.total, 0) : ""}</span>`}
    ${queue && html` <span class="muted">${queue.waiting_for || (queue.position ? `place ${queue.position}` : "")}</span>`}
    ${job.status === "failed" && job.error && html` <span class="muted">${job.error.code}</span>`}</span>`;
}

// The first measurement that compares the two models.
function measured(job) {
  const [name, metric] = Object.entries(job.metrics || {}).find(([, each]) => each.ratio !== null) || [];
  return metric ? html`<span><span class="muted">${name}</span> <span class="whole">${number(metric.pruned)} <span class="muted">(${number(metric.ratio, 3)} ×)</span></span></span>` : "";
}
