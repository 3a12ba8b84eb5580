// The demo page: one WebSocket as a user, the outcomes as they are committed, and a form to publish pushes.
// Data from elsewhere is put on the page as text, never as markup.

import { connect } from "./bridge-client.js";

const $ = (id) => document.getElementById(id);
const SHOWN = 200; // pushes kept on the page
const GOOD = new Set(["received", "acked", "written"]);
const WAITING = new Set(["publishing", "published", "pending", "stored", "arrived"]);
const OWN_MEANINGS = {
  publishing: "on its way to the broker",
  published: "the broker has it; its outcome is awaited",
  arrived: "on this screen; its outcome is awaited",
  failed: "it was not published",
};

let meanings = {};
let dev = false;
let opsToken = sessionStorage.getItem("ops-token") ?? "";

// --- asking the ops port --------------------------------------------------------------------------------

class Problem extends Error {
  constructor(status, text, scope) { super(text); this.status = status; this.scope = scope; }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (opsToken) headers.Authorization = `Bearer ${opsToken}`;
  if (options.json !== undefined) {
    headers["Content-Type"] = "application/json";
    options = { ...options, method: "POST", body: JSON.stringify(options.json) };
  }
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The bridge does not answer.");
  }
  if (answer.status === 401) askForToken();
  if (!answer.ok && answer.status !== 422) {
    const said = await answer.json().catch(() => ({}));
    throw new Problem(answer.status, sentence(said) ?? `HTTP ${answer.status}`, said.scope);
  }
  return answer;
}

function sentence({ scope, problem }) {
  return scope ? `This token may not do that: it lacks the scope “${scope}”.` : problem;
}

function askForAnother(problem) {
  $("login").hidden = false;
  $("login-problem").textContent = problem.message;
  $("ops-token").focus();
}

function askForToken() {
  if (!$("login").hidden) {
    if (opsToken) $("login-problem").textContent = "That is not the token.";
    return;
  }
  $("login").hidden = false;
  $("login-problem").textContent = opsToken ? "The token was refused." : "";
  $("ops-token").focus();
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  opsToken = $("ops-token").value.trim();
  await refresh();
  if ($("login").hidden) follow();
});

// --- status ---------------------------------------------------------------------------------------------

const GAUGE_NAMES = {
  users: "users", in_flight: "pushes in flight", parked: "of these, proof overdue",
  queued_frames: "frames waiting for slow peers", rows_waiting: "rows to be written",
};

async function refresh() {
  let status;
  try {
    status = await (await ask("status")).json();
  } catch (problem) {
    if (problem.scope) askForAnother(problem);
    pill("bad", problem.status === 401 || problem.scope ? "locked" : "not answering");
    return;
  }
  if (!$("login").hidden) {
    $("login").hidden = true;
    $("ops-token").value = "";
    sessionStorage.setItem("ops-token", opsToken);
  }
  const first = !$("ws-url").value;
  dev = status.dev;
  if (first) {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    $("ws-url").value = `${scheme}://${location.hostname}:${status.ws_port}/ws`;
    $("token-hint").textContent = dev ? "(made for you in development)" : "(paste one for this user)";
    $("more").open = !dev;
    $("scope").value = dev ? "all" : "mine";
  }
  const resting = status.role === "standby" ? "standby" : "not ready";
  pill(status.ready ? "good" : "bad", status.ready ? "ready" : resting);
  $("who").textContent = `${status.node}, version ${status.version}`;
  $("causes").hidden = status.causes.length === 0;
  $("causes").replaceChildren(...status.causes.map((cause) => element("li", "", cause)));
  showSessions(status);
  connection?.counted();
}

function pill(kind, text) {
  const ready = $("ready");
  ready.className = `pill ${kind}`;
  // Set only when it changes, since screen readers read it out.
  if (ready.textContent !== text) ready.textContent = text;
}

function showSessions(status) {
  const { sessions, gauges, now } = status;
  $("session-count").textContent = gauges.sessions > sessions.length
    ? `${sessions.length} of ${gauges.sessions}` : String(gauges.sessions);
  $("sessions").replaceChildren(...sessions.map((session) => {
    const line = element("li");
    const me = session.session === connection?.session;
    line.append(
      element("span", me ? "user me" : "user", me ? `${session.user} (this page)` : session.user),
      element("span", "since", `${session.mode === "bridge.bare" ? "bare, " : ""}${ago(now - session.opened_at)}`),
    );
    line.title = `session ${session.session}`;
    return line;
  }));
  $("users").replaceChildren(...[...new Set(sessions.map((s) => s.user))].map((user) => {
    const option = element("option");
    option.value = user;
    return option;
  }));
  $("gauges").replaceChildren(...Object.entries(GAUGE_NAMES).flatMap(([name, words]) => [
    element("dt", "", words), element("dd", "", String(gauges[name] ?? 0)),
  ]));
}

function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

// --- the WebSocket --------------------------------------------------------------------------------------

let connection = null;

class Connection {
  constructor(user) {
    this.user = user;
    this.session = null;
    this.welcomed = false;
    this.client = connect({
      url: $("ws-url").value,
      sse: false, // the policy of this page lets it open WebSockets only
      token: () => this.token(),
      storage: sessionStorage,
      onPush: (push) => this.take(push),
      onWithdraw: ({ id }) => withdrawn(this.user, id),
      onGap: () => { $("gap").hidden = false; },
      onState: (state) => this[state.phase](state),
      onError: (error) => { if (error !== this.client.state.error) this.say(error.message); },
    });
  }

  async token() {
    const pasted = $("token").value.trim();
    if (pasted || !dev) return pasted || null;
    return (await (await ask("v1/dev/token", { json: { user: this.user } })).json()).token;
  }

  take(push) {
    arrived(this.user, push, performance.now());
    if (!$("ack").checked) return;
    // After the next paint: the ack means that a person could see it. A hidden page is not painted.
    if (document.hidden) setTimeout(push.ack);
    else requestAnimationFrame(() => setTimeout(push.ack));
  }

  connecting() { this.say(this.welcomed ? "Connecting again…" : "Connecting…"); }

  open({ user, session }) {
    this.welcomed = true;
    this.user = user;
    this.session = session;
    this.say(`Connected as ${user}.`);
    refresh();
  }

  waiting({ seconds, code, reason, error }) {
    this.session = null;
    // A browser hides the status of a refused handshake.
    if (!this.welcomed && !error) this.end("Refused, or no bridge is there: check the token and the address.");
    else this.say(`Not connected (${error?.message ?? closing(code, reason)}). Next try in ${seconds.toFixed(1)} s.`);
  }

  closed({ code, reason, error }) {
    this.session = null;
    if (connection === this) connection = null;
    if (reason === "no_token") $("more").open = true;
    this.say(
      reason === "no_token" ? "A token is needed: paste one under “Token and address”."
        : reason === "unusable" ? error.message
          : this.why ?? `The bridge ended this session: ${closing(code, reason)}. ${error?.message ?? ""}`,
    );
  }

  end(why) {
    this.why = why;
    this.client.close();
  }

  counted() {
    const { duplicates } = this.client;
    if (this.session && duplicates) this.say(`Connected as ${this.user}; ${duplicates} ${duplicates > 1 ? "duplicates" : "duplicate"} left out.`);
  }

  say(text) {
    // Set only when it changes, since screen readers read it out.
    if ($("connection").textContent !== text) $("connection").textContent = text;
    button();
  }
}

function closing(code, reason) { return `closed with ${code}${reason ? ` ${reason}` : ""}`; }

function button() {
  $("connect-button").textContent = connection ? "Disconnect" : "Connect";
  $("connect-button").classList.toggle("off", connection !== null);
  $("user").readOnly = connection !== null;
}

$("connect").addEventListener("submit", (event) => {
  event.preventDefault();
  if (connection) {
    connection.end("Not connected.");
    return;
  }
  connection = new Connection($("user").value);
  follow();
});

// --- the pushes on the page -----------------------------------------------------------------------------

const entries = new Map(); // push id + user -> what is known about it
const changed = new Set();

function keyOf(id, user) { return `${id}\n${user ?? ""}`; }

function entry(id, user, seed = {}) {
  const key = keyOf(id, user);
  let found = entries.get(key);
  if (!found) {
    found = { key, id, user, state: "published", at: new Date(), ...seed };
    entries.set(key, found);
    if (entries.size > SHOWN) {
      const oldest = entries.values().next().value;
      oldest.node?.remove();
      entries.delete(oldest.key);
      changed.delete(oldest);
    }
  }
  touch(found);
  return found;
}

function touch(found) {
  if (!changed.size) setTimeout(paint);
  changed.add(found);
}

// A push to everyone from this page is replaced by one entry for each user it reached.
const sentToAll = new Map();

function ofUser(id, user) {
  const toAll = entries.get(keyOf(id, null));
  if (toAll?.all && user !== null) {
    toAll.node?.remove();
    entries.delete(toAll.key);
    changed.delete(toAll);
    if (sentToAll.size > SHOWN) sentToAll.clear();
    sentToAll.set(id, { event: toAll.event, data: toAll.data, sentAt: toAll.sentAt, at: toAll.at });
  }
  return entry(id, user, sentToAll.get(id));
}

function arrived(user, frame, arrivedAt) {
  const found = ofUser(frame.id, user);
  found.event = frame.event;
  found.data = frame.encoding === "base64" ? `${frame.data} (bytes, base64)` : show(frame.data);
  if (found.sentAt !== undefined) found.onScreen = arrivedAt - found.sentAt;
  if (!found.receipt) found.state = "arrived";
}

function withdrawn(user, id) {
  const found = entries.get(keyOf(id, user));
  if (!found) return; // no longer on the page
  found.withdrawn = true;
  touch(found);
}

function show(data) {
  const short = JSON.stringify(data);
  const text = typeof data === "string" ? data : short.length <= 72 ? short : JSON.stringify(data, null, 2);
  return text.length > 2000 ? `${text.slice(0, 2000)}… (${text.length} characters)` : text;
}

function outcome(receipt) {
  const { push_id: id, user_id: user } = receipt;
  // Without a user (rejected, or nobody connected) it belongs to the push that this page sent with that id.
  const found = (user === null && [...entries.values()].find((e) => e.id === id)) || ofUser(id, user);
  if (found.receipt?.final) return;
  found.event ??= receipt.event;
  found.receipt = receipt;
  found.state = receipt.outcome;
  touch(found);
}

function paint() {
  const list = $("pushes");
  for (const found of changed) {
    if (!found.node) {
      found.node = $("push-template").content.firstElementChild.cloneNode(true);
      list.prepend(found.node);
    }
    draw(found);
  }
  changed.clear();
  $("empty").hidden = entries.size > 0;
}

function draw(found) {
  const { node, receipt, state } = found;
  const part = (name) => node.querySelector(`.${name}`);
  const kind = WAITING.has(state) ? "wait" : GOOD.has(state) ? "good" : "bad";
  node.className = `push is-${kind}${found.withdrawn ? " withdrawn" : ""}`;
  node.dataset.id = found.id;
  node.dataset.user = found.user ?? "";
  node.dataset.outcome = state;
  node.dataset.final = String(Boolean(receipt?.final));
  part("event").textContent = found.event || "message";
  part("withdrawn-mark").hidden = !found.withdrawn;
  part("to").textContent = found.user ? `to ${found.user}` : found.all ? "to everyone" : "to nobody known";
  part("outcome").textContent = state;
  part("outcome").className = `outcome ${kind}`;
  const time = node.querySelector("time");
  time.textContent = found.at.toLocaleTimeString();
  time.dateTime = found.at.toISOString();
  part("data").hidden = found.data === undefined;
  part("data").textContent = found.data ?? "";
  const reached = state === "acked" ? 3 : state === "received" ? 2 : receipt?.written_at || state === "arrived" ? 1 : 0;
  part("track").querySelectorAll("li").forEach((step, i) => step.classList.toggle("done", i < reached));
  const meaning = receipt ? meanings[`${receipt.outcome}/${receipt.reason}`] : OWN_MEANINGS[state];
  const detail = found.problem ?? receipt?.detail;
  part("meaning").textContent = `${receipt ? `${receipt.reason}: ` : ""}${meaning ?? ""}${detail ? ` (${detail})` : ""}`;
  const facts = [];
  if (receipt?.proven_at) facts.push(`${since(receipt.published_at, receipt.proven_at)} from publisher to proof`);
  if (found.onScreen !== undefined) facts.push(`${found.onScreen.toFixed(1)} ms from this button to this screen`);
  part("latency").textContent = facts.join(" · ");
  part("id").textContent = found.id;
}

function since(from, to) {
  const ms = (microseconds(to) - microseconds(from)) / 1000;
  return ms < 100 ? `${ms.toFixed(1)} ms` : ms < 10000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

// Date keeps milliseconds only; the digits after them are added by hand.
function microseconds(text) {
  const fraction = /\.(\d+)/.exec(text)?.[1] ?? "";
  return Date.parse(text.replace(/\.\d+/, "")) * 1000 + Number(fraction.padEnd(6, "0").slice(0, 6));
}

$("gap-seen").addEventListener("click", () => { $("gap").hidden = true; });

$("clear").addEventListener("click", () => {
  entries.clear();
  sentToAll.clear();
  changed.clear();
  $("pushes").replaceChildren();
  paint();
});

// --- outcomes as they are committed ---------------------------------------------------------------------

let following = null;

async function follow() {
  following?.abort();
  const abort = following = new AbortController();
  for (let tries = 0; !abort.signal.aborted; tries += 1) {
    try {
      const user = connection?.user ?? $("user").value;
      const query = $("scope").value === "all" ? "" : `?user=${encodeURIComponent(user)}`;
      const answer = await ask(`v1/outcomes${query}`, { signal: abort.signal });
      tries = 0;
      $("stream").textContent = query ? `Outcomes of ${user}, live.` : "Outcomes of everyone, live.";
      await events(answer.body);
    } catch (problem) {
      if (abort.signal.aborted) return;
      if (problem.status === 401 || problem.scope) { $("stream").textContent = ""; return; }
    }
    $("stream").textContent = "Outcomes are not live at the moment; trying again…";
    await new Promise((done) => setTimeout(done, Math.min(10000, 500 * 2 ** tries)));
  }
}

async function events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block)?.[1];
      const data = /^data: (.*)$/m.exec(block)?.[1];
      if (name === "outcome") outcome(JSON.parse(data));
      else if (name === "missed") $("stream").textContent = `This page is behind: ${JSON.parse(data).count} outcomes left out.`;
    }
  }
}

$("scope").addEventListener("change", follow);

// --- pushing --------------------------------------------------------------------------------------------

function newId() {
  // Not randomUUID: browsers give that to secure origins only.
  return [...crypto.getRandomValues(new Uint8Array(10))].map((b) => b.toString(16).padStart(2, "0")).join("");
}

function request() {
  const text = $("data").value;
  let data;
  try { data = JSON.parse(text); } catch { data = text; }
  const ttl = Number($("ttl").value);
  $("data-kind").textContent = typeof data === "string" ? "(text)" : "(JSON)";
  return {
    to: $("to").value === "all" ? { all: true } : { user: $("to-user").value },
    event: $("event").value,
    data,
    confirm: $("confirm").value,
    ...(ttl && { ttl }),
  };
}

function preview() {
  $("to-user").disabled = $("to").value === "all";
  const quoted = JSON.stringify(request()).replaceAll("'", "'\\''");
  const token = $("login").hidden && !opsToken ? "" : " \\\n  -H \"Authorization: Bearer $BRIDGE_OPS_TOKEN\"";
  $("curl").textContent = `curl -H 'Content-Type: application/json'${token} \\\n  -d '${quoted}' \\\n  '${location.origin}/v1/push?wait=5'`;
}

$("send").addEventListener("input", preview);

$("send").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("send-problem").textContent = "";
  const wanted = { id: newId(), ...request() };
  const found = entry(wanted.id, wanted.to.user ?? null, {
    state: "publishing", event: wanted.event, data: show(wanted.data), sentAt: performance.now(), all: wanted.to.all,
  });
  try {
    // Each wait holds one of the browser's few connections: wait only if the stream does not show the outcome.
    const told = $("scope").value === "all" || wanted.to.user === (connection?.user ?? $("user").value);
    const answer = await (await ask(told ? "v1/push" : "v1/push?wait=15", { json: wanted })).json();
    for (const receipt of answer.receipts) outcome(receipt);
    if (found.state === "publishing") found.state = "published";
  } catch (problem) {
    found.state = "failed";
    found.problem = problem.message;
    $("send-problem").textContent = problem.message;
  }
  touch(found);
});

// --- go -------------------------------------------------------------------------------------------------

const user = new URLSearchParams(location.search).get("user");
if (user) $("user").value = $("to-user").value = user;
button();
preview();
meanings = await fetch("endings.json").then((answer) => answer.json());
await refresh();
if ($("login").hidden) follow();
(async () => {
  for (;;) {
    await new Promise((done) => setTimeout(done, 2000));
    // No requests while the page is hidden or asks for the token.
    if (!document.hidden && $("login").hidden) await refresh();
  }
})();
