import { html, useState } from "../vendor/htm-preact-3.1.1.js";
import * as api from "../api.js";
import { Failed, Title } from "../parts.js";

export function SignIn({ onSignedIn }) {
  const [key, setKey] = useState("");
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const send = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await api.signIn(key.trim());
      setKey("");
      await onSignedIn();
    } catch (problem) {
      setError(problem);
    }
    setBusy(false);
  };
  return html`<main class="signin">
    <${Title} text="Sign in to espalier" />
    <p class="sub">Compression of language models as a service.</p>
    <div class="card">
      <${Failed} error=${error} />
      <form onSubmit=${send}>
        <label for="key">API key</label>
        <input id="key" type="password" class="mono" autocomplete="current-password" spellcheck="false" required
          placeholder="espk_…" value=${key} onInput=${(event) => setKey(event.target.value)} aria-describedby="key-note" />
        <p class="note" id="key-note">The browser keeps no key: it gets a session that may do what the key may. Where <code>espalier serve</code> runs on
          your own machine the key is in <code>.espalier/local-key</code>; elsewhere whoever runs the service makes one:
          <code> espalier keys create --tenant TEAM --name LAPTOP</code>.</p>
        <div><button class="main" disabled=${busy || !key.trim()}>Sign in</button></div>
      </form>
    </div>
    <p class="note"><a href="about">What this service is</a> · <a href="docs">its API</a> · <a href="openapi.json">OpenAPI document</a></p>
  </main>`;
}
