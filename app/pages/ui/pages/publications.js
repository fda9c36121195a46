// Where a job's result is brought: how far that is, and what can be done about it.
import { html, useState } from "../vendor/htm-preact-3.1.1.js";
import * as api from "../api.js";
import { bytes, moment, percent } from "../format.js";
import { Action, Badge, Copy, Failed, useLoaded } from "../parts.js";
import { Place, place } from "./publish.js";

export const underWay = (job) => job.publications.some(({ state }) => ["pending", "running"].includes(state));

export function Publications({ job, me, reload, onError }) {
  const may = me.key.scopes.includes("publish");
  const [adding, setAdding] = useState(false);
  const { publications } = job;
  if (publications.length === 0 && (!may || job.status !== "succeeded")) return null;
  return html`<section class="card"><div class="row-head"><h2>Publications</h2>
      ${may && job.status === "succeeded" && !adding && html`<button type="button" onClick=${() => setAdding(true)}>Publish</button>`}</div>
    ${publications.map((each) => html`<${Publication} key=${each.id} of=${each} job=${job} may=${may} reload=${reload} onError=${onError} />`)}
    ${publications.length === 0 && !adding && html`<p class="note">The result is nowhere else yet.</p>`}
    ${adding && html`<${Form} job=${job} done=${() => { setAdding(false); reload(); }} leave=${() => setAdding(false)} />`}
  </section>`;
}

function Publication({ of, job, may, reload, onError }) {
  const { result, error, progress } = of;
  const again = async () => { await api.json("POST", `v1/jobs/${job.id}/publications/${of.id}/retry`); reload(); };
  const where = Object.values(of.params).filter((value) => typeof value === "string").join(", ");
  return html`<div class="part"><p><${Badge} of=${of.state} /> ${of.to} <code>${of.credentials}</code>${where && `: ${where}`}</p>
    ${result && html`<p>${/^https?:/.test(result.location) ? html`<a href=${result.location} target="_blank" rel="noreferrer">${result.location}</a>` : html`<code>${result.location}</code>`}
      <${Copy} text=${result.location} label="where it is" /></p>
      <p class="note">${result.changed ? "At" : "It was there already, at"} <code title=${result.revision}>${result.revision.slice(0, 20)}</code>, ${moment(of.done_at)}${of.asked_by ? `, for ${of.asked_by}` : ""}</p>`}
    ${of.state === "running" && progress && html`<p><progress max="1" value=${progress.total ? progress.done / progress.total : 0} aria-label="Progress of the publication"></progress>
      <span class="note">${bytes(progress.done)} of ${bytes(progress.total)}, ${percent(progress.total ? progress.done / progress.total : 0, 0)}</span></p>`}
    ${of.state === "withheld" && html`<p class="note">The gates have not passed.</p>`}
    ${of.state === "waiting" && html`<p class="note">Once the job has succeeded${of.gates === "pass" ? " and its gates have passed" : ""}.</p>`}
    ${error && html`<div class="alert ${of.state === "failed" ? "" : "warn"}"><p>${error.message}</p><p>${error.hint}</p>
      <p class="note"><code>${error.code}</code>, ${of.tries} tries${of.due_at ? `, next ${moment(of.due_at)}` : ""}</p></div>`}
    ${may && (of.state === "failed" || (of.state === "pending" && error)) && html`<${Action} label="Try again" act=${again} onError=${onError} />`}
  </div>`;
}

function Form({ job, done, leave }) {
  const { data, error } = useLoaded((signal) => Promise.all([api.get("v1/credentials", { signal }), api.get("v1/capabilities", { signal })]), []);
  const [value, setValue] = useState(null);
  const [failed, setFailed] = useState(null);
  if (!data) return error ? html`<${Failed} error=${error} />` : html`<p class="note" role="status">Loading the places…</p>`;
  const [{ data: credentials }, { publishers }] = data;
  if (credentials.length === 0) return html`<p class="note">The operator has set up no place that you may publish to.</p>`;
  const at = (number) => ({ to: credentials[number].to, credentials: credentials[number].name });
  const now = value || at(0);
  const errors = {};
  for (const each of failed?.document.errors || []) (errors[each.pointer] ||= []).push(each.detail);
  const send = async (event) => {
    event.preventDefault();
    setFailed(null);
    try {
      await api.json("POST", `v1/jobs/${job.id}/publications`, { body: now });
      done();
    } catch (problem) {
      setFailed(problem);
    }
  };
  return html`<form class="nest" onSubmit=${send} novalidate>
    <label for="publish-to">Place</label>
    <select id="publish-to" onChange=${(event) => setValue(at(event.target.selectedIndex))}>${credentials.map((each) => html`<option>${place(each)}</option>`)}</select>
    <${Place} key=${now.credentials} value=${now} publishers=${publishers} path="" errors=${errors} onChange=${setValue} />
    <${Failed} error=${failed} />
    <div class="actions"><button type="submit" class="main">Publish</button><button type="button" onClick=${leave}>Leave it</button></div>
  </form>`;
}
