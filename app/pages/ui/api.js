// The public API, as the signed-in browser asks it. Paths are relative, so that a proxy may serve us below a path.

let csrf = null;

export class Problem extends Error {
  // `document` is the problem+json of the answer.
  constructor(document) {
    super(document.detail || document.title || "The service did not answer as expected.");
    this.document = document;
    this.status = document.status;
    this.code = document.code;
  }
}

export const SIGNED_OUT = "espalier:signed-out";

export async function request(method, path, { body, headers = {}, signal } = {}) {
  const sent = { Accept: "application/json", ...headers };
  if (method !== "GET" && csrf && !sent.Authorization) sent["X-CSRF-Token"] = csrf;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method, signal, headers: sent, credentials: "same-origin", body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ status: 0, code: "unreachable", detail: "The service does not answer. Is it running?" });
  }
  if (response.ok) return response;
  let problem = { status: response.status, code: "unknown", detail: `The service answered ${response.status}.` };
  try {
    problem = await response.json();
  } catch { /* no problem document: a proxy's page */ }
  if (response.status === 401 && !sent.Authorization) dispatchEvent(new CustomEvent(SIGNED_OUT, { detail: problem }));
  throw new Problem(problem);
}

export async function json(method, path, options) {
  const response = await request(method, path, options);
  return response.status === 204 ? null : response.json();
}

export const get = (path, options) => json("GET", path, options);

export async function text(path, options = {}) {
  return (await request("GET", path, { ...options, headers: { Accept: "text/plain" } })).text();
}

// -- the session --------------------------------------------------------------------------------------------------------

export async function session() {
  const found = await get("v1/session");
  csrf = found.csrf_token;
  return found;
}

export async function signIn(key) {
  const found = await json("POST", "v1/session", { headers: { Authorization: `Bearer ${key}` } });
  csrf = found.csrf_token;
  return found;
}

export async function signOut() {
  await json("DELETE", "v1/session");
  csrf = null;
}

// A random text, so that a repeated submission makes one job.
export function idempotencyKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function query(parameters) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== undefined && each !== null && each !== "") search.append(name, each);
    }
  }
  const made = search.toString();
  return made && `?${made}`;
}
