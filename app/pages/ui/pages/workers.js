// The workers: what they have, what they do, when they were last seen.
import { html } from "../vendor/htm-preact-3.1.1.js";
import * as api from "../api.js";
import { ago, bytes, moment } from "../format.js";
import { Failed, Loading, Title, useLoaded } from "../parts.js";

export function Workers() {
  const { data, error } = useLoaded((signal) => api.get("v1/workers", { signal }), [], { everyMs: 4000 });
  return html`<${Title} text="Workers" />
    <${Failed} error=${error} />
    ${!data && !error && html`<${Loading} what="workers" />`}
    ${data && (data.data.length === 0 ? html`<p class="card empty">No worker is alive: queued jobs wait. <code>espalier worker</code> starts one.</p>` : data.data.map((worker) => html`<section class="card" key=${worker.id} aria-label="Worker ${worker.name}">
      <div class="row-head"><h2>${worker.name}</h2><span class="badge ${worker.alive ? "succeeded" : "failed"}">${worker.alive ? "alive" : "silent"}</span></div>
      <dl class="facts">
        <dt>Kind</dt><dd>${worker.kind}</dd>
        <dt>Memory</dt><dd>${bytes(worker.memory_bytes)}</dd>
        ${(worker.use || []).map((seen) => html`<dt>${seen.device === "host" ? "Host" : `GPU ${seen.device}`}</dt><dd>${seen.memory_used_bytes === null ? "" : `${bytes(seen.memory_used_bytes)} of memory used`}${seen.busy === null ? "" : `, ${Math.round(seen.busy * 100)} % busy`}</dd>`)}
        <dt>Last seen</dt><dd><time datetime=${worker.last_seen_at} title=${moment(worker.last_seen_at)}>${worker.last_seen_at ? ago(worker.last_seen_at) : "–"}</time></dd>
      </dl>
      <h3>Devices</h3><table class="cards"><thead><tr><th>Device</th><th>Model</th><th class="num">Memory</th><th>Does</th></tr></thead>
        <tbody>${worker.devices.map((device) => html`<tr key=${device.name}><th scope="row">${device.name}</th><td data-label="Model">${device.model || (worker.kind === "cpu" ? "a share of the processors" : "–")}</td>
          <td class="num" data-label="Memory">${device.memory_bytes === null ? "–" : bytes(device.memory_bytes)}</td>
          <td data-label="Does">${device.job_id ? html`<a href="#/jobs/${device.job_id}">a job of yours</a>` : device.busy ? "another tenant's job" : "idle"}</td></tr>`)}</tbody></table>
      ${worker.methods && html`<details><summary>Methods it has</summary><dl class="facts">${Object.entries(worker.methods).map(([stage, names]) => html`<dt>${stage}</dt><dd>${names.join(", ")}</dd>`)}</dl></details>`}
    </section>`))}`;
}
