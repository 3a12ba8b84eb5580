// Asks the ops port. The credential is kept for this tab alone, as on the demo page.

const KEY = "ops-token";
let token = sessionStorage.getItem(KEY) ?? "";
let locked = () => {};
let me = { name: "", scopes: [] };

export class Problem extends Error {
  constructor(status, text, said = {}) { super(text); this.status = status; this.said = said; }
}

export function onLocked(listener) { locked = listener; }
export const may = (scope) => me.scopes.includes(scope);
export const who = () => me;
export const hasToken = () => Boolean(token);

export function forget() {
  token = "";
  sessionStorage.removeItem(KEY);
}

// Whether this credential may read; then it is kept.
export async function signIn(given) {
  token = given;
  try {
    await meet();
    if (given) sessionStorage.setItem(KEY, given);
  } catch (error) {
    token = "";
    throw error;
  }
}

export async function meet() { me = await (await asked("/v1/me", { headers: headers() }, true)).json(); }

function headers(more = {}) {
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

// `quiet`: whoever asks finds out by itself that the credential is not known.
async function asked(path, options, quiet = false) {
  let answer;
  try {
    answer = await fetch(path.replace(/^\//, ""), { ...options, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The bridge does not answer.");
  }
  if (answer.ok || answer.status === 422) return answer;
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 401 && !quiet) locked();
  const lacks = said.scope ? `This credential may not do that: it lacks the scope “${said.scope}”.` : null;
  throw new Problem(answer.status, lacks ?? said.problem ?? `HTTP ${answer.status}`, said);
}

export async function get(path, signal) {
  return (await asked(path, { headers: headers(), signal })).json();
}

export async function post(path, body, signal) {
  const sent = { method: "POST", body: JSON.stringify(body), headers: headers({ "Content-Type": "application/json" }), signal };
  return (await asked(path, sent)).json();
}

// Reads server-sent events until the signal, and comes back by itself after a break.
export async function follow(path, onEvent, onState, signal) {
  for (let wait = 500; !signal.aborted; wait = Math.min(wait * 2, 8000)) {
    try {
      const answer = await asked(path, { headers: headers(), signal });
      onState(true);
      wait = 500;
      await read(answer.body, onEvent);
      onState(false, "The stream has ended.");
    } catch (error) {
      if (error.name === "AbortError") return;
      onState(false, error.message);
      if (error.status >= 400 && error.status < 500 && error.status !== 429) return;
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

async function read(stream, onEvent) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const name = /^event: (.*)$/m.exec(event)?.[1];
      const data = /^data: (.*)$/m.exec(event)?.[1];
      if (name && data) onEvent(name, JSON.parse(data));
    }
  }
}

export const query = (values) => {
  const given = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : "";
};
export const path = (id) => id.split("/").map(encodeURIComponent).join("/");
