// Parts that several pages share.
import { html, useEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import { short } from "./format.js";

// Loads by `load(signal)` now and, while the page is looked at, every `everyMs`. Gives {data, error, reload, loading}.
// With `keep` the data of before are there until others come.
export function useLoaded(load, dependencies, { everyMs = null, keep = false } = {}) {
  const [state, setState] = useState({ data: null, error: null, loading: true });
  const again = useRef(() => {});
  useEffect(() => {
    const stop = new AbortController();
    let timer = null;
    let busy = false;
    setState((before) => ({ data: keep ? before.data : null, error: null, loading: true }));
    const run = async () => {
      if (busy) return;
      busy = true;
      clearTimeout(timer);
      try {
        const data = await load(stop.signal);
        if (!stop.signal.aborted) setState({ data, error: null, loading: false });
      } catch (error) {
        if (!stop.signal.aborted) setState((before) => ({ data: before.data, error, loading: false }));
      }
      busy = false;
      if (everyMs && !stop.signal.aborted) timer = setTimeout(() => (document.hidden ? later() : run()), everyMs);
    };
    const later = () => { timer = setTimeout(() => (document.hidden ? later() : run()), everyMs); };
    again.current = run;
    run();
    return () => { stop.abort(); clearTimeout(timer); };
  }, dependencies);
  return { ...state, reload: () => again.current() };
}

export function Title({ children, text, actions, badge }) {
  const heading = useRef(null);
  useEffect(() => { document.title = `${text} · espalier`; }, [text]);
  useEffect(() => { heading.current?.focus({ preventScroll: true }); }, []);
  return html`<div class="head"><h1 tabindex="-1" ref=${heading}>${children || text}</h1>${badge}${actions && html`<div class="actions">${actions}</div>`}</div>`;
}

export function Badge({ of }) {
  return of ? html`<span class="badge ${of}">${of}</span>` : null;
}

// An error of the service: what it says, its fields, and the id under which its log has it.
export function Failed({ error }) {
  if (!error) return null;
  const { errors = [], allowed, request_id: id } = error.document || {};
  return html`<div class="alert" role="alert">
    <p>${error.message}</p>
    ${errors.length > 0 && html`<ul>${errors.map((each) => html`<li><code>${each.pointer}</code>: ${each.detail}</li>`)}</ul>`}
    ${allowed && errors.length === 0 && html`<p class="note">Allowed: ${allowed.join(", ")}</p>`}
    ${error.status >= 500 && id && html`<p class="note">Request <code>${id}</code></p>`}
  </div>`;
}

export function Loading({ what }) {
  return html`<p class="empty" role="status">Loading ${what}…</p>`;
}

// A button that does `act()`, after a question where `ask` is given; says what went wrong.
export function Action({ label, ask, act, kind = "", disabled = false, onError }) {
  const dialog = useRef(null);
  const [busy, setBusy] = useState(false);
  const run = async () => {
    dialog.current?.close();
    setBusy(true);
    onError(null);
    try {
      await act();
    } catch (error) {
      onError(error);
    }
    setBusy(false);
  };
  return html`<button type="button" class=${kind} disabled=${disabled || busy} onClick=${() => (ask ? dialog.current.showModal() : run())}>${label}</button>
    ${ask && html`<dialog ref=${dialog} aria-label=${ask.title}>
      <h2>${ask.title}</h2><p>${ask.text}</p>
      <div class="actions">
        <button type="button" autofocus onClick=${() => dialog.current.close()}>${ask.no || "Keep it"}</button>
        <button type="button" class=${kind || "main"} onClick=${run}>${ask.yes}</button>
      </div></dialog>`}`;
}

export function Tags({ labels }) {
  return Object.entries(labels).map(([key, value]) => html`<${Tag} key=${key} name=${key} value=${value} />`);
}

// A label; that of a sweep, which the service sets, leads to the sweep.
export function Tag({ name, value, children }) {
  if (name === "sweep" && /^swp_[0-9a-f]{32}$/.test(value)) return html`<span class="tag"><a href="#/sweeps/${value}">sweep ${short(value)}</a></span>`;
  return html`<span class="tag">${name}${value && html`: ${value}`}${children}</span>`;
}

export function Copy({ text, label }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setDone(true);
      setTimeout(() => setDone(false), 1500);
    } catch { /* the browser does not let us; the text is there to select */ }
  };
  return html`<button type="button" class="plain" onClick=${copy} aria-label="Copy ${label}">${done ? "copied" : "copy"}</button>`;
}

export function Sorted({ value }) {
  return html`<pre tabindex="0" aria-label="JSON">${JSON.stringify(value, null, 2)}</pre>`;
}

export const go = (path) => { location.hash = `#/${path}`; };
