// A job: how it is, followed as it happens, what it made, and what can be done with it.
import { html, useEffect, useRef, useState } from "../vendor/htm-preact-3.1.1.js";
import * as api from "../api.js";
import { asked, bytes, duration, methods, moment, number, percent, quantity } from "../format.js";
import { Action, Badge, Copy, Failed, Loading, Sorted, Tag, Tags, Title, go } from "../parts.js";
import { Metrics, Gates } from "./measured.js";
import { Curve } from "./curve.js";
import { Publications, underWay } from "./publications.js";

const ACTIVE = ["queued", "running", "pausing", "paused", "cancelling"];
const FINISHED = ["succeeded", "failed", "cancelled"];
const EVENTS = ["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled", "stage", "progress", "checkpoint", "resume", "log", "publication"];
const KEPT_EVENTS = 2000;
const EVENTS_AT_ONCE = 500;
const LOG_LINES = 200;
const LOG_EVERY_MS = 3000;
const STREAM_AGAIN_MS = 3000;
const PUBLICATIONS_EVERY_MS = 2000;

export function Job({ id, me }) {
  const { job, gone, error, events, reload } = useJob(id);
  const [failed, setFailed] = useState(null);
  if (gone) return html`<${Title} text="There is no such job" /><p>It was deleted, or is another tenant's. <a href="#/jobs">All jobs</a></p>`;
  if (!job) return error ? html`<${Title} text="Job" /><${Failed} error=${error} />` : html`<${Loading} what="the job" />`;
  const name = `${job.spec.model.id}: ${methods(job.spec).map(({ method }) => method).join(", ")}`;
  return html`
    <${Title} text=${name} badge=${html`<${Badge} of=${job.status} />${job.verdict && html`<${Badge} of=${job.verdict} />`}`}
      actions=${html`<${Actions} job=${job} me=${me} reload=${reload} onError=${setFailed} />`} />
    <p class="sub"><code>${job.id}</code> <${Copy} text=${job.id} label="the id" /> · ${asked(job.spec)} · submitted ${moment(job.created_at)}${job.asked_by ? ` by ${job.asked_by}` : ""}${job.trace_id ? html` · trace <code>${job.trace_id}</code>` : ""}</p>
    <${Failed} error=${failed || error} />
    ${job.status === "failed" && job.error && html`<${Failure} of=${job.error} />`}
    <div class="columns">
      <div>
        ${ACTIVE.includes(job.status) && html`<${Now} job=${job} events=${events} />`}
        ${job.status === "succeeded" && html`<${Result} job=${job} />`}
        <${Log} job=${job} />
      </div>
      <div>
        <${Facts} job=${job} me=${me} reload=${reload} onError=${setFailed} />
        ${job.status === "succeeded" && html`<${Files} job=${job} me=${me} />`}
        <${Publications} job=${job} me=${me} reload=${reload} onError=${setFailed} />
        <${History} job=${job} events=${events} />
        <section class="card"><details><summary>Spec, with all defaults filled in</summary><p><${Copy} text=${JSON.stringify(job.spec, null, 2)} label="the spec" /></p><${Sorted} value=${job.spec} /></details></section>
      </div>
    </div>`;
}

// The job and its events. An event makes the job be read again; without a stream it is polled.
function useJob(id) {
  const [job, setJob] = useState(null);
  const [error, setError] = useState(null);
  const [gone, setGone] = useState(false);
  const [events, setEvents] = useState([]);
  const load = useRef(() => {});
  useEffect(() => {
    const stop = new AbortController();
    let timer = null;
    let reading = false;
    let wanted = false;
    let stream = null;
    let last = 0;
    const read = async () => {
      if (reading) { wanted = true; return; }
      reading = true;
      try {
        const found = await api.get(`v1/jobs/${id}`, { signal: stop.signal });
        if (stop.signal.aborted) return;
        setJob(found);
        setError(null);
        if (ACTIVE.includes(found.status) && !stream) follow();
        if (underWay(found)) soon(PUBLICATIONS_EVERY_MS);
      } catch (problem) {
        if (stop.signal.aborted) return;
        if (problem.status === 404) setGone(true);
        else setError(problem);
      } finally {
        reading = false;
      }
      if (wanted) { wanted = false; soon(); }
    };
    const soon = (ms = 300) => { clearTimeout(timer); timer = setTimeout(read, ms); };
    const leave = () => { stream?.close(); stream = null; };
    const follow = () => {
      if (document.hidden) return;
      stream = new EventSource(`v1/jobs/${id}/events?after=${last}`);
      const heard = (event) => {
        const data = JSON.parse(event.data);
        last = data.seq;
        setEvents((before) => [...before, data].slice(-KEPT_EVENTS));
        soon();
      };
      for (const type of EVENTS) stream.addEventListener(type, heard);
      stream.addEventListener("end", () => { leave(); soon(); });
      // It takes itself up again after a broken connection, and not after a refusal.
      stream.addEventListener("error", () => { if (stream?.readyState === EventSource.CLOSED) leave(); soon(STREAM_AGAIN_MS); });
    };
    // A browser has six connections to a service: a page that nobody looks at holds none of them.
    const turned = () => { if (document.hidden) leave(); else read(); };
    document.addEventListener("visibilitychange", turned);
    load.current = read;
    (async () => {
      await read();
      if (stream === null && !stop.signal.aborted) {
        try {
          const found = [];
          for (let page = { has_more: true, last_seq: 0 }; page.has_more && found.length < KEPT_EVENTS;) {
            page = await api.get(`v1/jobs/${id}/events?limit=${EVENTS_AT_ONCE}&after=${page.last_seq}`, { signal: stop.signal });
            found.push(...page.data);
          }
          setEvents((before) => (before.length ? before : found));
        } catch { /* the job says what is wrong */ }
      }
    })();
    return () => { stop.abort(); clearTimeout(timer); leave(); document.removeEventListener("visibilitychange", turned); };
  }, [id]);
  return { job, error, gone, events, reload: () => load.current() };
}

function Actions({ job, me, reload, onError }) {
  const may = (scope) => me.key.scopes.includes(scope);
  const change = (verb) => async () => { await api.json("POST", `v1/jobs/${job.id}/${verb}`); reload(); };
  const remove = async () => { await api.json("DELETE", `v1/jobs/${job.id}`); go("jobs"); };
  const ended = FINISHED.includes(job.status);
  return html`
    ${["queued", "running"].includes(job.status) && may("jobs:cancel") && html`<${Action} label="Pause" act=${change("pause")} onError=${onError} />`}
    ${job.status === "paused" && may("jobs:write") && html`<${Action} label="Resume" act=${change("resume")} onError=${onError} />`}
    ${["queued", "running", "pausing", "paused"].includes(job.status) && may("jobs:cancel") && html`<${Action} label="Cancel" kind="danger" act=${change("cancel")} onError=${onError}
      ask=${{ title: "Cancel this job?", text: "It stops, and its unfinished work can be taken up by a retry.", yes: "Cancel the job", no: "Let it run" }} />`}
    ${["failed", "cancelled"].includes(job.status) && may("jobs:write") && html`<${Action} label="Retry" act=${change("retry")} onError=${onError} />`}
    ${may("jobs:write") && html`<a class="button" href="#/new?from=${job.id}">New from this</a>`}
    ${ended && may("jobs:write") && html`<${Action} label="Delete" kind="danger" act=${remove} onError=${onError}
      ask=${{ title: "Delete this job and its files?", text: "Its result, report and log go, for everybody. This cannot be undone.", yes: "Delete" }} />`}`;
}

function Failure({ of }) {
  return html`<section class="alert" aria-label="Why it failed"><p><strong>${of.message}</strong></p><p>${of.hint}</p>
    <p class="note"><code>${of.code}</code>${of.stage && ` in stage ${of.stage}`}${of.field && html`, field <code>${of.field}</code>`}, attempt ${of.attempt}</p></section>`;
}

function Now({ job, events }) {
  const { progress, queue } = job;
  if (job.status === "queued") {
    return html`<section class="card"><h2>In the queue</h2><p>${queue?.waiting_for
      ? `It waits: ${queue.waiting_for}.`
      : queue?.position ? `Place ${number(queue.position)} in the order of claims.` : "It waits for a worker."}</p></section>`;
  }
  if (job.status === "paused") {
    return html`<section class="card"><h2>Paused</h2><p>What is finished is kept and the worker is free. Resumed, the job goes on from there, at the place in the queue that it had.</p></section>`;
  }
  const share = progress && progress.total ? progress.done / progress.total : 0;
  // A step that a later attempt did again counts once.
  const losses = new Map(events.filter((each) => each.data.stage === job.stage && Number.isFinite(each.data.loss)).map((each) => [each.data.done, each.data.loss]));
  return html`<section class="card" aria-label="Now">
    <h2>${job.stage ? `Stage ${job.stage}` : "Starting"}</h2>
    <progress max="1" value=${share} aria-label="Progress of the stage"></progress>
    <dl class="facts">
      ${progress && progress.unit !== "stage" && html`<dt>Done</dt><dd>${number(progress.done)} of ${number(progress.total)} ${progress.unit}s, ${percent(share, 0)}</dd>`}
      ${progress?.rate && html`<dt>Rate</dt><dd>${number(progress.rate, 3)} ${progress.unit}s a second</dd>`}
      ${progress && progress.eta_s !== null && html`<dt>Left of the stage</dt><dd>${duration(progress.eta_s)}</dd>`}
      ${progress && progress.loss !== null && progress.loss !== undefined && html`<dt>Loss</dt><dd>${number(progress.loss, 5)} nats a token</dd>`}
      <dt>Attempt</dt><dd>${job.attempt}, ${job.attempts_left} left</dd>
    </dl>
    ${losses.size > 1 && html`<${Curve} label="Training loss, of each step reported" x="step" y="nats a token"
      series=${[{ name: "loss", points: [...losses].sort(([one], [other]) => one - other) }]} />`}
  </section>`;
}

function Result({ job }) {
  const [report, setReport] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    const stop = new AbortController();
    api.get(`v1/jobs/${job.id}/report`, { signal: stop.signal }).then(setReport, (problem) => stop.signal.aborted || setError(problem));
    return () => stop.abort();
  }, [job.id]);
  if (!report) return error ? html`<${Failed} error=${error} />` : html`<${Loading} what="the report" />`;
  return html`<section class="card">
    <div class="row-head"><h2>Result</h2><a class="button" href="v1/jobs/${job.id}/report" target="_blank" rel="noreferrer">The report</a></div>
    <dl class="facts">
      <dt>Removed</dt><dd>${percent(report.sparsity)} of the prunable weights${report.target_sparsity !== null && ` (${percent(report.target_sparsity)} asked for or found)`}</dd>
      ${report.parameters_after !== null && html`<dt>Parameters</dt><dd>${number(report.parameters, 5)} → ${number(report.parameters_after, 5)}</dd>`}
      ${report.zeros > 0 && html`<dt>Zeros</dt><dd>${number(report.zeros, 5)}</dd>`}
    </dl>
    ${report.warnings.length > 0 && html`<div class="alert warn"><ul>${report.warnings.map((each) => html`<li>${each}</li>`)}</ul></div>`}
    ${report.gates.length > 0 && html`<${Gates} gates=${report.gates} verdict=${report.verdict} />`}
    <${Metrics} metrics=${report.metrics} />
    ${[["train", "Training", "training"], ["tune", "Tuning", "tuning"]].map(([stage, title, doing]) => report[stage] && html`<h3>${title}</h3><${Curve} label="Held-out loss while ${doing}" x="step" y="nats a token"
      series=${[{ name: "held-out", points: report[stage].curve.map((each) => [each.step, each.holdout_loss]) }]} />`)}
    ${report.runtimes.length > 0 && html`<h3>What loads it</h3><table class="cards"><thead><tr><th>Runtime</th><th>Loads</th><th>Faster</th><th>Note</th></tr></thead>
      <tbody>${report.runtimes.map((each) => html`<tr><th scope="row">${each.runtime}</th><td data-label="Loads">${each.loads ? "yes" : "no"}</td><td data-label="Faster">${each.faster ? "yes" : "no"}</td><td data-label="Note">${each.note}</td></tr>`)}</tbody></table>`}
  </section>`;
}

function Files({ job, me }) {
  const [files, setFiles] = useState(null);
  const [error, setError] = useState(null);
  const may = me.key.scopes.includes("artifacts:read");
  useEffect(() => {
    const stop = new AbortController();
    if (may) api.get(`v1/jobs/${job.id}/artifacts`, { signal: stop.signal }).then((page) => setFiles(page.data), (problem) => stop.signal.aborted || setError(problem));
    return () => stop.abort();
  }, [job.id, job.retention.removed?.at]);
  if (!may) return html`<section class="card"><h2>Files</h2><p class="note">This key may not download: it lacks the scope <code>artifacts:read</code>.</p></section>`;
  if (!files) return error ? html`<${Failed} error=${error} />` : html`<${Loading} what="the files" />`;
  return html`<section class="card"><h2>Files</h2>
    ${job.retention.removed && html`<p class="note">The others were removed ${moment(job.retention.removed.at)}: ${REMOVED[job.retention.removed.because]}.</p>`}
    <table class="cards"><thead><tr><th>File</th><th class="num">Size</th><th>SHA-256</th></tr></thead>
    <tbody>${files.map((file) => html`<tr key=${file.path}>
      <th scope="row"><a href=${file.url.replace(/^\//, "")} download>${file.path}</a></th>
      <td class="num" data-label="Size">${bytes(file.bytes)}</td>
      <td data-label="SHA-256"><span><code title=${file.sha256}>${file.sha256.slice(0, 12)}…</code> <${Copy} text=${file.sha256} label="the digest of ${file.path}" /></span></td></tr>`)}</tbody></table>
    <p class="note">${bytes(files.reduce((sum, file) => sum + file.bytes, 0))} in ${files.length} files. <code>espalier download ${job.id}</code> fetches and checks all of them.</p>
  </section>`;
}

function Facts({ job, me, reload, onError }) {
  return html`<section class="card"><h2>Job</h2><dl class="facts">
    <dt>Attempts</dt><dd>${job.attempt} begun, ${job.attempts_left} of ${job.max_attempts} left</dd>
    <dt>Waited</dt><dd>${duration(job.durations.queued_s)}</dd>
    <dt>Ran</dt><dd>${duration(job.durations.running_s)}</dd>
    ${job.price && html`<dt>Price</dt><dd>${job.price.amount} ${job.price.currency} for ${duration(job.durations.device_s)} of devices</dd>`}
    <dt>Started</dt><dd>${moment(job.started_at)}</dd>
    <dt>Ended</dt><dd>${moment(job.finished_at)}</dd>
    <dt>Priority</dt><dd>${job.priority}</dd>
    <dt>Deadline</dt><dd>${duration(job.deadline_s)} from the first start</dd>
    ${job.status === "succeeded" && html`<dt>Files</dt><dd><${Kept} job=${job} me=${me} reload=${reload} onError=${onError} /></dd>`}
    <dt>Labels</dt><dd><${Labels} job=${job} me=${me} reload=${reload} onError=${onError} /></dd>
  </dl></section>`;
}

const REMOVED = { report: "the policy keeps its report only", front: "its sweep keeps the files of the front only", limit: "the service keeps files for a limited time" };

function Kept({ job, me, reload, onError }) {
  const { pinned, files_until: until, removed } = job.retention;
  if (removed) return html`removed ${moment(removed.at)}: ${REMOVED[removed.because]}; the report stays`;
  const pin = async () => {
    onError(null);
    try {
      await api.json("PATCH", `v1/jobs/${job.id}`, { body: { pinned: !pinned } });
      reload();
    } catch (problem) {
      onError(problem);
    }
  };
  return html`${bytes(job.stored_bytes)}, ${pinned ? "pinned: no policy removes them" : until ? `until ${moment(until)}` : job.retention.keep === "front" ? "while it is on its sweep's front" : "kept"}
    ${me.key.scopes.includes("jobs:write") && html` <button type="button" class="plain" aria-pressed=${pinned ? "true" : "false"} onClick=${pin}>${pinned ? "unpin" : "pin"}</button>`}`;
}

function Labels({ job, me, reload, onError }) {
  const [adding, setAdding] = useState(false);
  const change = async (labels) => {
    onError(null);
    try {
      await api.json("PATCH", `v1/jobs/${job.id}`, { body: { labels } });
      setAdding(false);
      reload();
    } catch (problem) {
      onError(problem);
    }
  };
  const add = (event) => {
    event.preventDefault();
    const [key, ...value] = new FormData(event.target).get("label").split(":");
    change({ [key.trim()]: value.join(":").trim() });
  };
  if (!me.key.scopes.includes("jobs:write")) return html`<${Tags} labels=${job.labels} />`;
  return html`${Object.entries(job.labels).map(([key, value]) => html`<${Tag} key=${key} name=${key} value=${value}> <button type="button" class="plain" aria-label="Remove the label ${key}" onClick=${() => change({ [key]: null })}>×</button></${Tag}>`)}
    ${adding
      ? html`<form onSubmit=${add}><label class="unseen" for="new-label">New label, key:value</label><input id="new-label" name="label" placeholder="key:value" required autofocus onKeyDown=${(event) => event.key === "Escape" && setAdding(false)} /></form>`
      : html`<button type="button" class="plain" onClick=${() => setAdding(true)}>add a label</button>`}`;
}

function Log({ job }) {
  const [attempt, setAttempt] = useState(null);
  const [log, setLog] = useState(null);
  const [error, setError] = useState(null);
  const box = useRef(null);
  const latest = attempt === null;
  useEffect(() => {
    if (job.attempt === 0) return undefined;
    const stop = new AbortController();
    let timer = null;
    const read = async () => {
      try {
        const found = await api.text(`v1/jobs/${job.id}/logs${api.query({ tail: LOG_LINES, attempt })}`, { signal: stop.signal });
        const at = box.current;
        const follows = !at || at.scrollHeight - at.scrollTop - at.clientHeight < 40;
        setLog(overwritten(found));
        setError(null);
        if (follows) requestAnimationFrame(() => box.current?.scrollTo(0, box.current.scrollHeight));
      } catch (problem) {
        if (!stop.signal.aborted) setError(problem);
      }
      if (latest && ACTIVE.includes(job.status) && !stop.signal.aborted) timer = setTimeout(read, LOG_EVERY_MS);
    };
    read();
    return () => { stop.abort(); clearTimeout(timer); };
  }, [job.id, job.status, job.attempt, attempt]);
  if (job.attempt === 0) return null;
  return html`<section class="card">
    <div class="row-head"><h2 id="log-title">Log</h2>
      <span>${job.attempt > 1 && html`<label>Attempt <select class="inline" onChange=${(event) => setAttempt(event.target.value ? Number(event.target.value) : null)}>
        <option value="">latest</option>${Array.from({ length: job.attempt }, (_, n) => html`<option>${n + 1}</option>`)}</select></label> `}
        <a href="v1/jobs/${job.id}/logs${api.query({ attempt })}" target="_blank" rel="noreferrer">all of it</a></span></div>
    <${Failed} error=${error} />
    ${log === "" && html`<p class="note">Nothing was written yet; the log comes every few seconds.</p>`}
    ${log && html`<pre class="log" ref=${box} tabindex="0" role="log" aria-live="off" aria-labelledby="log-title">${log}</pre>
    <p class="note">The last ${LOG_LINES} lines${latest && ACTIVE.includes(job.status) ? ", as they come" : ""}.</p>`}
  </section>`;
}

// As a terminal shows it: what follows a carriage return replaces its line.
function overwritten(text) {
  return text.split("\n").map((line) => line.replace(/\r+$/, "").split("\r").at(-1)).join("\n");
}

function History({ job, events }) {
  const shown = events.filter((each) => each.type !== "progress");
  if (shown.length === 0) return null;
  const said = (event) => {
    const { data } = event;
    if (event.type === "stage") return data.stage;
    if (event.type === "log") return data.message || JSON.stringify(data);
    return Object.entries(data).filter(([, value]) => typeof value !== "object").map(([key, value]) => `${key} ${value}`).join(", ");
  };
  return html`<section class="card"><details open=${ACTIVE.includes(job.status)}><summary>What happened (${shown.length})</summary>
    <div class="tall" tabindex="0" role="group" aria-label="Events"><table class="cards"><thead><tr><th>At</th><th>Event</th><th>What</th></tr></thead>
    <tbody>${shown.slice().reverse().map((event) => html`<tr key=${event.seq}>
      <td class="tight" data-label="At">${moment(event.at).slice(-8)}</td><td class="tight" data-label="Event">${event.type}</td><td data-label="What">${said(event)}</td></tr>`)}</tbody></table></div>
  </details></section>`;
}
