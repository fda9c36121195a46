// Whose key this is, what it may do, and what the tenant uses of its quotas.
import { html } from "../vendor/htm-preact-3.1.1.js";
import * as api from "../api.js";
import { bytes, duration, moment, number } from "../format.js";
import { Failed, Loading, Title, useLoaded } from "../parts.js";

export const QUOTAS = [
  ["queued", "Jobs queued or paused", number],
  ["running", "Jobs at work", number],
  ["stored_bytes", "Results stored", bytes],
  ["device_seconds", "Device time this month", duration],
  ["requests", "Requests a minute", number],
];

export function Account() {
  const { data, error } = useLoaded((signal) => api.get("v1/me", { signal }), [], { everyMs: 10000 });
  if (!data) return html`<${Title} text="Account" />${error ? html`<${Failed} error=${error} />` : html`<${Loading} what="the account" />`}`;
  const { tenant, key, limits, quotas, usage } = data;
  return html`<${Title} text="Account" />
    <${Failed} error=${error} />
    <div class="columns"><div>
      <section class="card"><h2>Key</h2><dl class="facts">
        <dt>Name</dt><dd>${key.name}</dd><dt>Id</dt><dd><code>${key.id}</code></dd><dt>Tenant</dt><dd>${tenant.name} <code class="muted">${tenant.id}</code></dd>
        <dt>Scopes</dt><dd>${key.scopes.map((scope) => html`<span class="tag" key=${scope}>${scope}</span>`)}</dd>
        <dt>Made</dt><dd>${moment(key.created_at)}</dd><dt>Ends</dt><dd>${key.expires_at ? moment(key.expires_at) : "never"}</dd></dl></section>
      <section class="card"><h2>Limits of the service</h2><dl class="facts"><dt>Attempts of a job</dt><dd>${limits.max_attempts}</dd><dt>Run of a job</dt><dd>${duration(limits.deadline_s)}</dd><dt>Body of a request</dt><dd>${bytes(limits.max_body_bytes)}</dd><dt>Files of results</dt><dd>${limits.keep_days === null ? "kept" : `kept for at most ${number(limits.keep_days)} days`}</dd></dl></section>
    </div><div>
      <section class="card"><h2>Quotas of ${tenant.name}</h2>
        <table class="cards"><thead><tr><th>Of</th><th class="num">Used</th><th class="num">Quota</th><th>Share</th></tr></thead>
        <tbody>${QUOTAS.map(([name, title, text]) => html`<tr key=${name}><th scope="row">${title}</th>
          <td class="num" data-label="Used">${usage[name] === undefined ? "" : text(usage[name])}</td><td class="num" data-label="Quota">${quotas[name] === null ? "none" : text(quotas[name])}</td>
          <td data-label="Share">${quotas[name] && usage[name] !== undefined ? html`<progress max=${quotas[name]} value=${Math.min(usage[name], quotas[name])} aria-label="${title}, used"></progress>` : ""}</td></tr>`)}</tbody></table>
        <p class="note">Device time counts anew from ${moment(usage.resets_at)}. Equal files of several jobs count once.</p>
        <dl class="facts"><dt>Stays of results</dt><dd>${data.retention.keep === "all" ? "everything" : `the report${data.retention.days ? `, and everything for ${number(data.retention.days)} days` : ""}`}, unless a job says otherwise</dd>
          ${usage.prices.length > 0 && html`<dt>Price of the device time</dt><dd>${usage.prices.map((each) => `${each.amount} ${each.currency}`).join(", ")}</dd>`}
          <dt>Removed by policies</dt><dd>${bytes(usage.removed_bytes)} so far</dd></dl></section>
    </div></div>`;
}
