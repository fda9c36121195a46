// Where a result is to be brought: a place that the operator has set up, and the fields of its publisher's schema.
import { html } from "../vendor/htm-preact-3.1.1.js";
import { Fields, prose } from "../schema.js";

export const place = ({ name, to }) => `${name} (${to})`;

// `value` is what the API takes as a publication; `path` is its pointer in the request.
export function Place({ value, publishers, path, errors, onChange }) {
  const publisher = publishers.find((each) => each.name === value.to);
  return html`<p class="note">${publisher && prose(publisher.summary)}</p>
    ${[path, `${path}/to`, `${path}/credentials`].flatMap((at) => errors[at] || []).map((each) => html`<p class="wrong">${each}</p>`)}
    ${publisher && html`<${Fields} schema=${publisher.parameters} value=${value} path=${path} without=${["to", "credentials"]} onChange=${onChange}
      of=${{ definitions: publisher.parameters.$defs || {}, errors, suggestions: {} }} />`}`;
}

// Several, of a job that is still to run.
export function Places({ credentials, publishers, value, errors, onChange }) {
  const add = (event) => {
    const chosen = credentials[event.target.value];
    if (chosen) onChange([...value, { to: chosen.to, credentials: chosen.name }]);
    event.target.value = "";
  };
  if (credentials.length === 0) return html`<p class="note">The operator has set up no place that you may publish to.</p>`;
  return html`<p class="note">Once the job has succeeded, its result is brought there.</p>
    ${value.map((each, at) => html`<fieldset class="nest" key=${at}><legend>${place({ name: each.credentials, to: each.to })} <button type="button" class="plain" aria-label="Do not publish to ${each.credentials}" onClick=${() => onChange(value.filter((_, n) => n !== at))}>remove</button></legend>
      <${Place} value=${each} publishers=${publishers} path="/publish/${at}" errors=${errors} onChange=${(next) => onChange(value.map((other, n) => (n === at ? next : other)))} /></fieldset>`)}
    ${(errors["/publish"] || []).map((each) => html`<p class="wrong">${each}</p>`)}
    <p><label class="unseen" for="add-place">Add a place</label><select id="add-place" class="inline" value="" onChange=${add}>
      <option value="">Add a place…</option>${credentials.map((each, at) => html`<option value=${at}>${place(each)}</option>`)}</select></p>`;
}
