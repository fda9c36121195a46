// The sweeps of the tenant.
import { html } from "../vendor/htm-preact-3.1.1.js";
import * as api from "../api.js";
import { ago, moment, short } from "../format.js";
import { Badge, Failed, Loading, Title, useLoaded } from "../parts.js";

export const counted = (counts) => Object.entries(counts).map(([status, count]) => `${count} ${status}`).join(", ");

export function Sweeps({ search }) {
  const cursor = search.get("cursor");
  const { data, error } = useLoaded((signal) => api.get(`v1/sweeps${api.query({ cursor, limit: 25 })}`, { signal }), [cursor], { everyMs: 5000, keep: true });
  return html`<${Title} text="Sweeps" />
    <${Failed} error=${error} />
    ${!data && !error && html`<${Loading} what="sweeps" />`}
    ${data && html`<section class="card" aria-label="List of sweeps">
      ${data.data.length === 0 ? html`<p class="empty">There are no sweeps yet. <code>espalier sweep</code> submits one; see <a href="docs">the API</a>.</p>` : html`<table class="cards">
        <thead><tr><th>Name</th><th>Status</th><th>Jobs</th><th>Varies</th><th>Submitted</th></tr></thead>
        <tbody>${data.data.map((sweep) => html`<tr key=${sweep.id}>
          <th scope="row"><a href="#/sweeps/${sweep.id}">${sweep.name || "sweep"}</a> <code class="muted">${short(sweep.id)}</code></th>
          <td data-label="Status"><${Badge} of=${sweep.status} /></td><td data-label="Jobs">${counted(sweep.counts)}</td>
          <td data-label="Varies"><code>${sweep.parameters.join(", ")}</code></td>
          <td data-label="Submitted"><time datetime=${sweep.created_at} title=${moment(sweep.created_at)}>${ago(sweep.created_at)}</time></td></tr>`)}</tbody></table>`}
      <div class="pager"><span>${cursor && html`<a href="#/sweeps">First page</a>`}</span><span></span>
        <span>${data.has_more && html`<a href="#/sweeps${api.query({ cursor: data.next_cursor })}">Next page</a>`}</span></div>
    </section>`}`;
}
