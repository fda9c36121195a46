// The frame of the pages: who is signed in, which page is open, and how to get from one to the other.
import { html, render, useEffect, useState } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { Failed, Loading } from "./parts.js";
import { Account } from "./pages/account.js";
import { Admin } from "./pages/admin.js";
import { Compare } from "./pages/compare.js";
import { Jobs } from "./pages/jobs.js";
import { Job } from "./pages/job.js";
import { New } from "./pages/new.js";
import { SignIn } from "./pages/signin.js";
import { Sweep } from "./pages/sweep.js";
import { Sweeps } from "./pages/sweeps.js";
import { Workers } from "./pages/workers.js";

const PAGES = [
  [/^jobs$/, Jobs, "jobs"],
  [/^jobs\/(job_[0-9a-f]{32})$/, Job, "jobs"],
  [/^new$/, New, "new"],
  [/^compare$/, Compare, "jobs"],
  [/^sweeps$/, Sweeps, "sweeps"],
  [/^sweeps\/(swp_[0-9a-f]{32})$/, Sweep, "sweeps"],
  [/^workers$/, Workers, "workers"],
  [/^account$/, Account, "account"],
  [/^tenants$/, Admin, "tenants"],
];
const NAVIGATION = [["jobs", "Jobs"], ["new", "New job"], ["sweeps", "Sweeps"], ["workers", "Workers"], ["tenants", "Tenants and keys", "admin"]];

function place() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { path: path.replace(/\/$/, "") || "jobs", search: new URLSearchParams(search), whole: location.hash };
}

function Frame({ me, here, onSignOut }) {
  const found = PAGES.map(([pattern, Page, part]) => ({ match: here.path.match(pattern), Page, part })).find((each) => each.match);
  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.querySelector("h1")?.focus(); }}>To the content</a>
    <header class="bar">
      <a class="name" href="#/jobs">espalier</a>
      <nav aria-label="Pages"><ul>${NAVIGATION.filter(([, , scope]) => !scope || me.key.scopes.includes(scope)).map(([path, name]) => html`<li key=${path}><a href="#/${path}" aria-current=${found?.part === path ? "page" : null}>${name}</a></li>`)}</ul></nav>
      <div class="who"><a href="#/account" aria-current=${found?.part === "account" ? "page" : null}>${me.tenant.name} · ${me.key.name}</a><button type="button" onClick=${onSignOut}>Sign out</button></div>
    </header>
    <main id="main">${found
      ? html`<${found.Page} key=${here.path} me=${me} id=${found.match[1]} search=${here.search} />`
      : html`<h1 tabindex="-1">There is no such page</h1><p><a href="#/jobs">All jobs</a></p>`}</main>`;
}

function App() {
  const [me, setMe] = useState(undefined);
  const [error, setError] = useState(null);
  const [here, setHere] = useState(place());
  const enter = async () => {
    try {
      await api.session();
      setMe(await api.get("v1/me"));
      setError(null);
    } catch (problem) {
      if (problem.status === 401) setMe(null);
      else setError(problem);
    }
  };
  useEffect(() => {
    const moved = () => { setHere(place()); scrollTo(0, 0); };
    const left = () => setMe(null);
    addEventListener("hashchange", moved);
    addEventListener(api.SIGNED_OUT, left);
    enter();
    return () => { removeEventListener("hashchange", moved); removeEventListener(api.SIGNED_OUT, left); };
  }, []);
  if (error) return html`<main><${Failed} error=${error} /><button type="button" onClick=${() => { setError(null); enter(); }}>Try again</button></main>`;
  if (me === undefined) return html`<main><${Loading} what="the session" /></main>`;
  if (me === null) return html`<${SignIn} onSignedIn=${enter} />`;
  const leave = async () => {
    try {
      await api.signOut();
    } catch (problem) {
      if (problem.status !== 401) return setError(problem);
    }
    setMe(null);
  };
  return html`<${Frame} me=${me} here=${here} onSignOut=${leave} />`;
}

render(html`<${App} />`, document.getElementById("app"));
