// A form made from a JSON schema. A value that is not given is `undefined` and left out, so that the service's default holds.
import { html, useEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.js";

// The schema with its reference followed and `null` set apart: {schema, nullable}.
export function resolved(schema, definitions) {
  const follow = (each) => (each.$ref ? { ...definitions[each.$ref.split("/").at(-1)], ...each, $ref: undefined } : each);
  const outer = follow(schema);
  if (!outer.anyOf) return { schema: outer, nullable: false };
  const kinds = outer.anyOf.map(follow);
  const given = kinds.filter((each) => each.type !== "null");
  const first = given.length === 1 ? given[0] : {};
  return { schema: { ...first, ...outer, anyOf: undefined, description: outer.description || first.description }, nullable: given.length < kinds.length };
}

const said = (value) => (value === undefined || value === null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value));
const bounds = (schema) => [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"]]
  .filter(([key]) => schema[key] !== undefined).map(([key, sign]) => `${sign} ${schema[key].toLocaleString("en", { maximumSignificantDigits: 12 })}`).join(", ");
// A description, its `names` set as code.
export const prose = (text) => (text || "").split("`").map((part, n) => (n % 2 ? html`<code>${part}</code>` : part));

// The value without what the schema's defaults say anyway.
export function sparse(value, raw, definitions) {
  const { schema } = resolved(raw, definitions);
  if (schema.default !== undefined && JSON.stringify(schema.default) === JSON.stringify(value)) return undefined;
  if (Array.isArray(value)) return value.map((each) => sparse(each, schema.items || {}, definitions) ?? each);
  if (value === null || typeof value !== "object" || !schema.properties) return value;
  const left = Object.entries(value).map(([name, each]) => [name, name === "method" ? each : sparse(each, schema.properties[name] || {}, definitions)]).filter(([, each]) => each !== undefined);
  return Object.fromEntries(left);
}

export const words = (name) => name.replaceAll("_", " ");

// The fields of an object. `of` holds what all fields share: definitions, errors by pointer, suggestions by pointer.
export function Fields({ schema, value, path, of, onChange, without = [] }) {
  const names = Object.keys(schema.properties || {}).filter((name) => !without.includes(name));
  const required = schema.required || [];
  const wrong = (name) => Object.keys(of.errors).some((pointer) => pointer === `${path}/${name}` || pointer.startsWith(`${path}/${name}/`));
  const opening = useRef(value || {});
  const first = (name) => required.includes(name) || opening.current[name] !== undefined || resolved(schema.properties[name], of.definitions).schema.examples !== undefined;
  const set = (name) => (changed) => {
    const next = { ...value };
    if (changed === undefined) delete next[name];
    else next[name] = changed;
    onChange(next);
  };
  const draw = (name) => html`<${Field} key=${name} name=${name} schema=${schema.properties[name]} required=${required.includes(name)}
    value=${(value || {})[name]} path=${`${path}/${name}`} of=${of} onChange=${set(name)} />`;
  const shown = names.filter(first);
  const others = names.filter((name) => !first(name));
  return html`<div class="fields">${shown.map(draw)}</div>
    ${others.length > 0 && html`<details open=${others.some(wrong)}><summary>${others.length} further setting${others.length > 1 ? "s" : ""}: ${others.slice(0, 4).map(words).join(", ")}${others.length > 4 ? ", …" : ""}</summary>
      <div class="fields">${others.map(draw)}</div></details>`}`;
}

export function Field({ name, schema: raw, required, value, path, of, onChange }) {
  const { schema, nullable } = resolved(raw, of.definitions);
  const errors = of.errors[path] || [];
  const id = `f${path.replaceAll(/[^a-z0-9]/gi, "-")}`;
  const parts = { id, name, schema, nullable, required, value, path, of, onChange, errors };
  if (schema.type === "object" && schema.properties) return html`<${Nested} ...${parts} />`;
  if (schema.type === "array") {
    const item = resolved(schema.items || {}, of.definitions).schema;
    if (item.type === "object" && item.properties) return html`<${Objects} ...${parts} item=${item} />`;
    if (item.enum) return html`<${Choices} ...${parts} options=${item.enum} />`;
    if (["string", "integer", "number"].includes(item.type)) return html`<${Described} ...${parts} whole=${true}><${Lines} ...${parts} numbers=${item.type !== "string"} /></${Described}>`;
  }
  if (schema.type === "boolean") return html`<${Flag} ...${parts} />`;
  if (schema.enum) return html`<${Described} ...${parts}><${Choice} ...${parts} options=${schema.enum} /></${Described}>`;
  if (schema.type === "integer" || schema.type === "number") return html`<${Described} ...${parts}><${Typed} ...${parts} read=${numeral} /></${Described}>`;
  if (schema.type === "string") return html`<${Described} ...${parts}><${Typed} ...${parts} read=${(text) => text} /></${Described}>`;
  return html`<${Described} ...${parts} whole=${true}><${Typed} ...${parts} read=${anything} /></${Described}>`;
}

// What cannot be read as a number is sent as it is: the service says what is wrong with it.
const numeral = (text) => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text);
const anything = (text) => { try { return JSON.parse(text); } catch { return text; } };

function Described({ id, name, schema, required, errors, whole, children }) {
  return html`<div class="field ${whole ? "whole" : ""}">
    <label for=${id}>${words(name)}${required && html` <span class="muted">(required)</span>`}</label>
    ${children}
    <${Notes} id=${id} schema=${schema} errors=${errors} />
  </div>`;
}

function Notes({ id, schema, errors }) {
  const within = bounds(schema);
  return html`${errors.map((each) => html`<p class="wrong" id="${id}-wrong">${each}</p>`)}
    <p class="note" id="${id}-note">${prose(schema.description)}${within && ` (${within})`}</p>`;
}

const described = (id, errors) => ({ "aria-describedby": `${errors.length ? `${id}-wrong ` : ""}${id}-note`, "aria-invalid": errors.length ? "true" : null });

// Keeps the text as it is typed: `0.` is on its way to `0.5`.
function Typed({ id, schema, value, path, of, errors, onChange, read }) {
  const [text, setText] = useState(said(value));
  const same = (now) => (now === "" ? value === undefined : JSON.stringify(read(now)) === JSON.stringify(value));
  useEffect(() => { if (!same(text)) setText(said(value)); }, [JSON.stringify(value)]);
  const typed = (event) => {
    setText(event.target.value);
    onChange(event.target.value === "" ? undefined : read(event.target.value));
  };
  const suggestions = of.suggestions[path] || (schema.examples || []).filter((each) => typeof each !== "object").map(String);
  const usual = schema.default === undefined || schema.default === null ? suggestions[0] && `e.g. ${suggestions[0]}` : said(schema.default);
  return html`<input id=${id} value=${text} onInput=${typed} placeholder=${usual} autocomplete="off" spellcheck="false" list=${suggestions.length ? `${id}-list` : null} ...${described(id, errors)} />
    ${suggestions.length > 0 && html`<datalist id="${id}-list">${suggestions.map((each) => html`<option value=${each} />`)}</datalist>`}`;
}

function Choice({ id, schema, nullable, required, value, errors, onChange, options }) {
  const usual = schema.default === undefined || schema.default === null ? (nullable ? "none" : "choose") : `${schema.default} (default)`;
  const all = required ? options : options.filter((each) => each !== schema.default);
  return html`<select id=${id} value=${value === undefined || value === schema.default ? "" : value} onChange=${(event) => onChange(event.target.value === "" ? undefined : event.target.value)} ...${described(id, errors)}>
    <option value="">${usual}</option>${all.map((each) => html`<option value=${each}>${each}</option>`)}</select>`;
}

function Choices({ id, name, schema, value, errors, onChange, options }) {
  const now = Array.isArray(value) ? value : schema.default || [];
  const toggle = (option) => onChange(options.filter((each) => (each === option ? !now.includes(each) : now.includes(each))));
  return html`<fieldset class="field" ...${described(id, errors)}><legend>${words(name)}</legend>
    ${options.map((each) => html`<label><input type="checkbox" checked=${now.includes(each)} onChange=${() => toggle(each)} /> ${each}</label> `)}
    <${Notes} id=${id} schema=${schema} errors=${errors} /></fieldset>`;
}

function Flag({ id, name, schema, value, errors, onChange }) {
  return html`<div class="field"><label><input id=${id} type="checkbox" checked=${value ?? schema.default ?? false} onChange=${(event) => onChange(event.target.checked)} ...${described(id, errors)} /> ${words(name)}</label>
    <${Notes} id=${id} schema=${schema} errors=${errors} /></div>`;
}

function Lines({ id, schema, value, errors, onChange, numbers }) {
  const read = (text) => text.split("\n").filter((line) => line.trim() !== "").map((line) => (numbers ? numeral(line) : line));
  const [text, setText] = useState((value || []).join("\n"));
  useEffect(() => { if (JSON.stringify(read(text)) !== JSON.stringify(value || [])) setText((value || []).join("\n")); }, [JSON.stringify(value)]);
  const typed = (event) => { setText(event.target.value); const lines = read(event.target.value); onChange(lines.length ? lines : undefined); };
  return html`<textarea id=${id} rows="2" value=${text} onInput=${typed} placeholder="${(schema.examples?.[0] || schema.default || []).join(" ⏎ ")}" ...${described(id, errors)}></textarea>`;
}

function Nested({ id, name, schema, nullable, required, value, path, of, onChange, errors }) {
  const usually = schema.default !== null && schema.default !== undefined;
  const given = !nullable || (value === undefined ? usually : value !== null);
  const toggle = (event) => onChange(event.target.checked ? (usually ? undefined : {}) : (usually ? null : undefined));
  const merged = value ?? {};
  return html`<fieldset class="field whole nest"><legend>${nullable
      ? html`<label><input type="checkbox" checked=${given} onChange=${toggle} /> ${words(name)}</label>`
      : html`${words(name)}${required && html` <span class="muted">(required)</span>`}`}</legend>
    <${Notes} id=${id} schema=${{ description: schema.description }} errors=${errors} />
    ${given && html`<${Fields} schema=${schema} value=${merged} path=${path} of=${of} onChange=${(next) => onChange(!nullable && !required && Object.keys(next).length === 0 ? undefined : next)} />`}
  </fieldset>`;
}

function Objects({ id, name, schema, item, value, path, of, onChange, errors }) {
  const now = Array.isArray(value) ? value : [];
  const set = (at) => (next) => onChange(now.map((each, n) => (n === at ? next : each)));
  const remove = (at) => { const next = now.filter((_, n) => n !== at); onChange(next.length ? next : undefined); };
  return html`<fieldset class="field whole"><legend>${words(name)}</legend>
    <${Notes} id=${id} schema=${{ description: schema.description }} errors=${errors} />
    ${now.map((each, at) => html`<fieldset class="nest" key=${at}><legend>${words(name)} ${at + 1} <button type="button" class="plain" aria-label="Remove ${words(name)} ${at + 1}" onClick=${() => remove(at)}>remove</button></legend>
      <${Fields} schema=${item} value=${each} path=${`${path}/${at}`} of=${of} onChange=${set(at)} /></fieldset>`)}
    <button type="button" onClick=${() => onChange([...now, {}])}>Add to ${words(name)}</button></fieldset>`;
}
