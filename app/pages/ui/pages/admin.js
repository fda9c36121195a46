// For operators: tenants with their shares, quotas and usage, and all keys.
import { html, useState } from "../vendor/htm-preact-3.1.1.js";
import * as api from "../api.js";
import { ago, moment } from "../format.js";
import { Action, Copy, Failed, Loading, Title, useLoaded } from "../parts.js";
import { QUOTAS } from "./account.js";

const SCOPES = ["jobs:read", "jobs:write", "jobs:priority", "jobs:cancel", "artifacts:read", "webhooks", "admin"];
const USUAL = SCOPES.filter((scope) => scope !== "admin");

export function Admin() {
  const { data, error, reload } = useLoaded(async (signal) => {
    const [tenants, keys] = await Promise.all([api.get("v1/tenants", { signal }), api.get("v1/keys", { signal })]);
    return { tenants: tenants.data, keys: keys.data };
  }, [], { everyMs: 10000 });
  const [failed, setFailed] = useState(null);
  if (!data) return html`<${Title} text="Tenants and keys" />${error ? html`<${Failed} error=${error} />` : html`<${Loading} what="tenants" />`}`;
  return html`<${Title} text="Tenants and keys" />
    <${Failed} error=${failed || error} />
    <${Tenants} tenants=${data.tenants} reload=${reload} onError=${setFailed} />
    <${Keys} keys=${data.keys} tenants=${data.tenants} reload=${reload} onError=${setFailed} />`;
}

function Tenants({ tenants, reload, onError }) {
  const [editing, setEditing] = useState(null);
  return html`<section class="card"><h2>Tenants</h2><div class="scroll" tabindex="0" role="group" aria-label="Tenants"><table class="cards">
    <thead><tr><th>Tenant</th><th class="num">Weight</th>${QUOTAS.map(([name, title]) => html`<th class="num" key=${name}>${title}</th>`)}<th><span class="unseen">Change</span></th></tr></thead>
    <tbody>${tenants.map((tenant) => html`<tr key=${tenant.id}><th scope="row">${tenant.name}</th><td class="num" data-label="Weight">${tenant.weight}</td>
      ${QUOTAS.map(([name, title, text]) => html`<td class="num" data-label=${title} key=${name}>${[tenant.usage[name] === undefined ? "" : text(tenant.usage[name]), tenant.quotas[name] === null ? "" : `of ${text(tenant.quotas[name])}`].filter(Boolean).join(" ")}</td>`)}
      <td><button type="button" aria-label="Change ${tenant.name}" aria-expanded=${editing === tenant.id} onClick=${() => setEditing(editing === tenant.id ? null : tenant.id)}>Change</button></td></tr>`)}</tbody></table></div>
    ${tenants.filter((tenant) => tenant.id === editing).map((tenant) => html`<${Change} key=${tenant.id} tenant=${tenant} onError=${onError} done=${() => { setEditing(null); reload(); }} />`)}
    <p class="note">A tenant's weight is its share of the workers, against the weights of the others that wait. What stays of results counts for jobs submitted from then on that do not say.</p></section>`;
}

function Change({ tenant, onError, done }) {
  const send = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const read = (name) => { const text = String(form.get(name)).trim(); return text === "" ? null : Number.isInteger(Number(text)) ? Number(text) : text; };
    onError(null);
    try {
      await api.json("PATCH", `v1/tenants/${tenant.id}`, { body: { weight: read("weight"), quotas: Object.fromEntries(QUOTAS.map(([name]) => [name, read(name)])), retention: { keep: form.get("keep"), days: form.get("keep") === "report" ? read("days") ?? 0 : 0 } } });
      done();
    } catch (error) {
      onError(error);
    }
  };
  const field = (name, title, value) => html`<div class="field" key=${name}><label for="q-${name}">${title}</label><input id="q-${name}" name=${name} inputmode="numeric" value=${value ?? ""} placeholder="no quota" /></div>`;
  return html`<form class="nest" onSubmit=${send} aria-label="Shares and quotas of ${tenant.name}"><h3>${tenant.name}</h3><div class="fields">
    ${field("weight", "Weight", tenant.weight)}
    ${field("queued", "Jobs queued or paused", tenant.quotas.queued)}${field("running", "Jobs at work", tenant.quotas.running)}
    ${field("stored_bytes", "Results stored, bytes", tenant.quotas.stored_bytes)}${field("device_seconds", "Device time a month, seconds", tenant.quotas.device_seconds)}${field("requests", "Requests a minute", tenant.quotas.requests)}
    <div class="field"><label for="q-keep">Stays of results</label><select id="q-keep" name="keep" value=${tenant.retention.keep}><option value="all">all</option><option value="report">the report only</option></select></div>
    <div class="field"><label for="q-days">Days until only the report stays</label><input id="q-days" name="days" inputmode="numeric" value=${tenant.retention.days || ""} placeholder="0" /></div>
    </div><p><button class="main">Set</button></p></form>`;
}

function Keys({ keys, tenants, reload, onError }) {
  const [made, setMade] = useState(null);
  const [all, setAll] = useState(false);
  const make = async (event) => {
    event.preventDefault();
    const form = event.target;
    const given = new FormData(form);
    const days = String(given.get("expires_days")).trim();
    onError(null);
    setMade(null);
    try {
      setMade(await api.json("POST", "v1/keys", { body: { tenant: given.get("tenant").trim(), name: given.get("name").trim(), scopes: given.getAll("scopes"), expires_days: days === "" ? null : Number(days) } }));
      form.reset();
      reload();
    } catch (error) {
      onError(error);
    }
  };
  const state = (key) => (key.revoked_at ? "revoked" : key.expires_at && Date.parse(key.expires_at) <= Date.now() ? "expired" : "");
  const shown = keys.filter((key) => all || !state(key));
  return html`<section class="card"><div class="row-head"><h2>Keys</h2><label><input type="checkbox" checked=${all} onChange=${(event) => setAll(event.target.checked)} /> also revoked and expired ones</label></div>
    <table class="cards"><thead><tr><th>Name</th><th>Tenant</th><th>Scopes</th><th>Made</th><th>Ends</th><th>Last used</th><th><span class="unseen">Revoke</span></th></tr></thead>
    <tbody>${shown.map((key) => html`<tr key=${key.id}><th scope="row">${key.name}</th><td data-label="Tenant">${key.tenant.name}</td>
      <td data-label="Scopes"><span>${key.scopes.join(", ")}</span></td><td data-label="Made">${moment(key.created_at)}</td>
      <td data-label="Ends">${state(key) || (key.expires_at ? moment(key.expires_at) : "never")}</td><td data-label="Last used">${key.last_used_at ? ago(key.last_used_at) : "never"}</td>
      <td>${!key.revoked_at && html`<${Action} label="Revoke" kind="danger" onError=${onError} act=${async () => { await api.json("POST", `v1/keys/${key.id}/revoke`); reload(); }}
        ask=${{ title: `Revoke the key ${key.name} of ${key.tenant.name}?`, text: "From the next request on it is refused, and so is every browser that signed in with it.", yes: "Revoke" }} />`}</td></tr>`)}</tbody></table>
    ${made && html`<div class="alert warn" role="status"><p>The key <strong>${made.name}</strong> of ${made.tenant.name}. It is shown this once:</p><pre tabindex="0">${made.text}</pre><p><${Copy} text=${made.text} label="the key" /></p></div>`}
    <form class="nest" onSubmit=${make} aria-label="New key"><h3>New key</h3><div class="fields">
      <div class="field"><label for="k-tenant">Tenant</label><input id="k-tenant" name="tenant" required maxlength="100" list="k-tenants" autocomplete="off" /><datalist id="k-tenants">${tenants.map((tenant) => html`<option value=${tenant.name} />`)}</datalist><p class="note">One that is not there yet is made.</p></div>
      <div class="field"><label for="k-name">Name</label><input id="k-name" name="name" required maxlength="100" autocomplete="off" /></div>
      <div class="field"><label for="k-days">Ends after, days</label><input id="k-days" name="expires_days" inputmode="numeric" placeholder="never" /></div>
      <fieldset class="field whole"><legend>Scopes</legend>${SCOPES.map((scope) => html`<label key=${scope}><input type="checkbox" name="scopes" value=${scope} defaultChecked=${USUAL.includes(scope)} /> ${scope}</label> `)}</fieldset>
    </div><p><button class="main">Make a key</button></p></form></section>`;
}
