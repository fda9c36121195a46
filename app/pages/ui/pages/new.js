// A new job: a form made from what the service can do, and beside it what the job would do.
import { html, useEffect, useMemo, useRef, useState } from "../vendor/htm-preact-3.1.1.js";
import * as api from "../api.js";
import { bytes, duration, number, percent } from "../format.js";
import { Failed, Loading, Title, go, useLoaded } from "../parts.js";
import { asGiven } from "../given.js";
import { Field, Fields, prose, words } from "../schema.js";
import { Places } from "./publish.js";

const START = { score: { method: "magnitude" }, prune: { method: "mask", sparsity: 0.5 } };
const BEFORE = ["model", "calibrate"];
const TYPING_MS = 400;

export function New({ search, me }) {
  const from = search.get("from");
  const { data, error } = useLoaded(async (signal) => {
    const [capabilities, models, credentials, job] = await Promise.all([
      api.get("v1/capabilities", { signal }),
      api.get("v1/models?limit=50", { signal }),
      me.key.scopes.includes("publish") ? api.get("v1/credentials", { signal }) : null,
      from ? api.get(`v1/jobs/${encodeURIComponent(from)}`, { signal }) : null,
    ]);
    return { capabilities, models: models.data, credentials: credentials?.data, job };
  }, [from]);
  if (!data) return html`<${Title} text="New job" />${error ? html`<${Failed} error=${error} />` : html`<${Loading} what="what the service can do" />`}`;
  const model = data.models.find((each) => each.compressible);
  const start = data.job ? asGiven(data.job.spec, data.capabilities) : { ...(model && { model: { id: model.id } }), ...START };
  return html`<${Form} ...${data} start=${start} me=${me} />`;
}

function Form({ capabilities, models, credentials, job, start, me }) {
  const [spec, setSpec] = useState(start);
  const [labels, setLabels] = useState(job ? Object.entries(job.labels).filter(([key]) => key !== "sweep").map((pair) => pair.join(":")).join("\n") : "");
  const [priority, setPriority] = useState("0");
  const [keep, setKeep] = useState({ keep: "", days: "" });
  const [publish, setPublish] = useState([]);
  const [failed, setFailed] = useState(null);
  const [busy, setBusy] = useState(false);
  const key = useRef(null);
  const body = useMemo(() => request(spec, labels, priority, keep, publish), [JSON.stringify(spec), labels, priority, keep, publish]);
  useEffect(() => { setFailed(null); key.current = null; }, [body]);
  const dry = useDryRun(body, me);
  const problem = failed || dry.problem;
  const errors = {};
  for (const each of problem?.document?.errors || []) (errors[each.pointer] ||= []).push(each.detail + (each.allowed && each.allowed.length <= 30 ? ` (${each.allowed.join(", ")})` : ""));
  const set = (name, value) => setSpec((before) => {
    const next = { ...before };
    if (value === undefined) delete next[name];
    else next[name] = value;
    return next;
  });
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    key.current ||= api.idempotencyKey(); // sent again after a lost answer, it gets the same job
    try {
      const made = await api.json("POST", "v1/jobs", { body, headers: { "Idempotency-Key": key.current } });
      go(`jobs/${made.id}`);
    } catch (error) {
      setFailed(error);
      setBusy(false);
    }
  };
  const suggestions = { "/spec/model/id": models.map((each) => each.id) };
  const fieldOf = (field) => {
    const of = { definitions: field.parameters.$defs || {}, errors, suggestions };
    return html`<${Field} key=${field.name} name=${field.name} schema=${field.parameters.properties[field.name]} required=${field.parameters.required.includes(field.name)}
      value=${spec[field.name]} path=${`/spec/${field.name}`} of=${of} onChange=${(value) => set(field.name, value)} />`;
  };
  const before = capabilities.fields.filter((field) => BEFORE.includes(field.name));
  const after = capabilities.fields.filter((field) => !BEFORE.includes(field.name));
  return html`<form onSubmit=${submit} novalidate>
    <${Title} text="New job" actions=${html`<button class="main" disabled=${busy || !me.key.scopes.includes("jobs:write")}>Submit</button>`} />
    ${!me.key.scopes.includes("jobs:write") && html`<p class="alert warn">This key may not submit: it lacks the scope <code>jobs:write</code>.</p>`}
    <div class="columns form">
      <div>
        <section class="card" aria-label="Model and text">${before.map(fieldOf)}</section>
        <section class="card" aria-label="Stages"><h2>Stages, in their order</h2>
          ${capabilities.stages.filter((stage) => stage.stage !== "evaluate").map((stage) => html`<${Stage} key=${stage.stage} stage=${stage} value=${spec[stage.stage]} errors=${errors} suggestions=${suggestions} onChange=${(value) => set(stage.stage, value)} />`)}
        </section>
        ${capabilities.stages.filter((stage) => stage.stage === "evaluate").map((stage) => html`<section class="card" aria-label="Evaluation"><h2>Evaluation</h2>
          <${Evaluations} stage=${stage} value=${spec.evaluate || []} errors=${errors} suggestions=${suggestions} onChange=${(value) => set("evaluate", value.length ? value : undefined)} /></section>`)}
        ${credentials && html`<section class="card" aria-label="Publication"><h2>Publication</h2>
          <${Places} credentials=${credentials} publishers=${capabilities.publishers} value=${publish} errors=${errors} onChange=${setPublish} /></section>`}
        <section class="card" aria-label="Further"><h2>Gates and the rest</h2>${after.map(fieldOf)}
          <div class="fields">
            <div class="field"><label for="labels">labels</label><textarea id="labels" rows="2" value=${labels} onInput=${(event) => setLabels(event.target.value)} placeholder="team:search" aria-describedby="labels-note"></textarea>
              ${(errors["/labels"] || []).map((each) => html`<p class="wrong">${each}</p>`)}<p class="note" id="labels-note">One a line, key:value, to find the job by.</p></div>
            <div class="field"><label for="priority">priority</label><input id="priority" inputmode="numeric" value=${priority} onInput=${(event) => setPriority(event.target.value)} aria-describedby="priority-note" />
              ${(errors["/priority"] || []).map((each) => html`<p class="wrong">${each}</p>`)}<p class="note" id="priority-note">Higher runs first, -100 to 100.</p></div>
            <div class="field"><label for="keep">what stays of the result</label><select id="keep" value=${keep.keep} onChange=${(event) => setKeep({ keep: event.target.value, days: "" })}>
              <option value="">as the tenant has it</option><option value="all">all</option><option value="report">the report only</option></select>
              ${["/retention", "/retention/keep"].flatMap((at) => errors[at] || []).map((each) => html`<p class="wrong">${each}</p>`)}</div>
            ${keep.keep === "report" && html`<div class="field"><label for="keep-days">from so many days after its end</label><input id="keep-days" inputmode="numeric" value=${keep.days} placeholder="0" onInput=${(event) => setKeep({ ...keep, days: event.target.value })} />
              ${(errors["/retention/days"] || []).map((each) => html`<p class="wrong">${each}</p>`)}</div>`}
          </div>
        </section>
      </div>
      <div class="beside">
        <${Failed} error=${failed} />
        <${DryRun} ...${dry} onSet=${(pointer, value) => setSpec((before) => changed(before, pointer.split("/").slice(1), value))} />
        <${AsText} spec=${spec} onChange=${setSpec} />
      </div>
    </div></form>`;
}

// The part of a spec with another value at the end of the path.
const changed = (part, [name, ...path], value) => {
  const next = Array.isArray(part) ? [...part] : { ...part };
  next[name] = path.length ? changed(next[name], path, value) : value;
  return next;
};

function request(spec, labels, priority, { keep, days }, publish) {
  const pairs = labels.split("\n").filter((line) => line.trim()).map((line) => { const [key, ...value] = line.split(":"); return [key.trim(), value.join(":").trim()]; });
  const found = { spec };
  if (pairs.length) found.labels = Object.fromEntries(pairs);
  if (priority.trim() !== "0" && priority.trim() !== "") found.priority = Number.isInteger(Number(priority)) ? Number(priority) : priority;
  if (keep) found.retention = { keep, ...(days.trim() && { days: Number.isInteger(Number(days)) ? Number(days) : days }) };
  if (publish.length) found.publish = publish;
  return found;
}

// The plan of what the form says now, asked for once typing pauses.
function useDryRun(body, me) {
  const [state, setState] = useState({ plan: null, problem: null, asking: true });
  useEffect(() => {
    if (!me.key.scopes.includes("jobs:write")) { setState({ plan: null, problem: null, asking: false }); return undefined; }
    const stop = new AbortController();
    setState((before) => ({ ...before, asking: true }));
    const timer = setTimeout(async () => {
      try {
        setState({ plan: await api.json("POST", "v1/jobs?dry_run=true", { body, signal: stop.signal }), problem: null, asking: false });
      } catch (problem) {
        if (!stop.signal.aborted) setState({ plan: null, problem, asking: false });
      }
    }, TYPING_MS);
    return () => { clearTimeout(timer); stop.abort(); };
  }, [body]);
  return state;
}

function Stage({ stage, value, errors, suggestions, onChange }) {
  const path = `/spec/${stage.stage}`;
  const method = stage.methods.find((each) => each.name === value?.method);
  const id = `stage-${stage.stage}`;
  const wrong = errors[path] || errors[`${path}/method`] || [];
  return html`<div class="stage">
    <div class="of"><label for=${id}>${stage.stage}</label>
      <select id=${id} value=${value?.method || ""} onChange=${(event) => onChange(event.target.value ? { method: event.target.value } : undefined)} aria-invalid=${wrong.length ? "true" : null} aria-describedby="${id}-note">
        <option value="">not given</option>${stage.methods.map((each) => html`<option value=${each.name}>${each.name}</option>`)}</select></div>
    ${wrong.map((each) => html`<p class="wrong">${each}</p>`)}
    <p class="note" id="${id}-note">${method && prose(method.summary)} ${method && !method.summary.includes(method.paper) && method.paper}</p>
    ${method && html`<${Fields} key=${method.name} schema=${method.parameters} value=${value} path=${path} without=${["method"]} onChange=${onChange}
      of=${{ definitions: method.parameters.$defs || {}, errors, suggestions }} />`}
  </div>`;
}

function Evaluations({ stage, value, errors, suggestions, onChange }) {
  return html`${value.map((each, at) => {
    const method = stage.methods.find((known) => known.name === each.method);
    return html`<fieldset class="nest" key=${at}><legend>${each.method} <button type="button" class="plain" aria-label="Remove ${each.method}" onClick=${() => onChange(value.filter((_, n) => n !== at))}>remove</button></legend>
      ${(errors[`/spec/evaluate/${at}`] || []).map((detail) => html`<p class="wrong">${detail}</p>`)}
      ${method && html`<p class="note">${prose(method.summary)}</p><${Fields} schema=${method.parameters} value=${each} path=${`/spec/evaluate/${at}`} without=${["method"]}
        onChange=${(next) => onChange(value.map((other, n) => (n === at ? next : other)))} of=${{ definitions: method.parameters.$defs || {}, errors, suggestions }} />`}</fieldset>`;
  })}
    ${(errors["/spec/evaluate"] || []).map((detail) => html`<p class="wrong">${detail}</p>`)}
    <p><label class="unseen" for="add-evaluation">Add a measurement</label><select id="add-evaluation" class="inline" value="" onChange=${(event) => { if (event.target.value) onChange([...value, { method: event.target.value }]); event.target.value = ""; }}>
      <option value="">Add a measurement…</option>${stage.methods.map((each) => html`<option value=${each.name}>${words(each.name)}: ${each.summary}</option>`)}</select></p>`;
}

function DryRun({ plan, problem, asking, onSet }) {
  const short = plan?.texts.some((each) => each.tokens !== null && each.tokens < each.windows * each.window_tokens);
  const suggested = plan ? plan.texts.flatMap((each) => Object.entries(each.suggested)) : [];
  return html`<section class="card" aria-label="Dry run" aria-busy=${asking ? "true" : "false"}>
    <div class="row-head"><h2>What it would do</h2><span class="muted" role="status">${asking ? "looking…" : problem ? "not valid" : short ? "too little text" : plan ? "valid" : ""}</span></div>
    ${problem && html`<${Failed} error=${problem} />`}
    ${plan && html`<dl class="facts">
      <dt>Model</dt><dd>${plan.model_id}, ${plan.architecture}</dd>
      <dt>Parameters</dt><dd>${number(plan.parameters, 4)} → ${plan.parameters_after === null ? "found by the job" : number(plan.parameters_after, 4)}</dd>
      ${plan.zeros_after !== null && plan.zeros_after > 0 && html`<dt>Zeros</dt><dd>${number(plan.zeros_after)} (${percent(plan.zeros_after / plan.prunable_parameters)} of the prunable)</dd>`}
      <dt>Blocks</dt><dd>${plan.blocks} → ${plan.blocks_after ?? "found by the job"}</dd>
      <dt>Weights</dt><dd>${bytes(plan.bytes_before)} → ${plan.bytes_after === null ? "found by the job" : bytes(plan.bytes_after)}</dd>
      <dt>Peak memory</dt><dd>about ${bytes(plan.peak_memory_bytes)}${plan.devices > 1 && ` on each of ${plan.devices} devices`}${plan.mapped_memory_bytes > 0 && `, of which ${bytes(plan.mapped_memory_bytes)} are mapped weight files`}; a worker needs ${bytes(plan.least_memory_bytes)}</dd>
      <dt>Time</dt><dd>about ${duration(plan.elapsed_s)} on two cores, an order of magnitude</dd>
      ${plan.price && html`<dt>Price</dt><dd>about ${plan.price.amount} ${plan.price.currency}, by that time</dd>`}
    </dl>
    ${plan.warnings.length > 0 && html`<div class="alert warn"><ul>${plan.warnings.map((each) => html`<li>${prose(each)}</li>`)}</ul>
      ${suggested.length > 0 && html`<div class="actions">${suggested.map(([pointer, value]) => html`<button type="button" onClick=${() => onSet(pointer, value)}>Set ${words(pointer.slice(1).replaceAll("/", " "))} to ${number(value)}</button>`)}</div>`}</div>`}
    <h3>What would load it</h3><ul>${plan.runtimes.map((each) => html`<li>${each.runtime}: ${each.loads ? "yes" : "no"}${each.faster ? ", faster" : ""}. <span class="muted">${each.note}</span></li>`)}</ul>
    <details><summary>Layers (${plan.layers.length})</summary><div class="tall" tabindex="0" role="group" aria-label="Layers"><table><thead><tr><th>Layer</th><th class="num">Shape</th><th class="num">Target sparsity</th></tr></thead>
      <tbody>${plan.layers.map((each) => html`<tr><td>${each.name}</td><td class="num">${each.shape.join(" × ")}</td><td class="num">${percent(each.target_sparsity)}</td></tr>`)}</tbody></table></div></details>`}
  </section>`;
}

function AsText({ spec, onChange }) {
  const shown = JSON.stringify(spec, null, 2);
  const [text, setText] = useState(shown);
  const [wrong, setWrong] = useState("");
  const mine = useRef(shown);
  useEffect(() => { if (shown !== mine.current) { setText(shown); mine.current = shown; setWrong(""); } }, [shown]);
  const typed = (event) => {
    setText(event.target.value);
    try {
      const read = JSON.parse(event.target.value);
      if (read === null || typeof read !== "object" || Array.isArray(read)) throw new SyntaxError("A spec is an object.");
      setWrong("");
      mine.current = JSON.stringify(read, null, 2);
      onChange(read);
    } catch (error) {
      setWrong(error.message);
    }
  };
  return html`<section class="card"><details><summary>The same as JSON</summary>
    <label class="unseen" for="as-text">Spec as JSON</label>
    <textarea id="as-text" rows="18" spellcheck="false" value=${text} onInput=${typed} aria-invalid=${wrong ? "true" : null} aria-describedby="as-text-wrong"></textarea>
    <p class="wrong" id="as-text-wrong">${wrong}</p></details></section>`;
}
