// The console: which view the address names, who has signed in, and how the bridge is.

import { $, h, fill, button, field, problem } from "./dom.js";
import { get, meet, signIn, forget, onLocked, who, hasToken, Problem } from "./api.js";
import { loadWords } from "./words.js";
import { overview } from "./overview.js";
import { search } from "./search.js";
import { push } from "./push.js";
import { user } from "./user.js";
import { live } from "./live.js";
import { send } from "./send.js";
import { dead } from "./dead.js";
import { replay } from "./replay.js";
import { topics } from "./topics.js";
import { record } from "./record.js";

const STATUS_EVERY = 5000; // milliseconds; never under 2000
// By the first word of the address: the view, its name, and whether the list of views has it.
const VIEWS = {
  "": [overview, "Overview", true],
  search: [search, "Search", true],
  live: [live, "Live", true],
  send: [send, "Send", true],
  dead: [dead, "Dead letters", true],
  replay: [replay, "Replay", true],
  topics: [topics, "Topics", true],
  record: [record, "Record", true],
  push: [push, "Push", false],
  user: [user, "User", false],
};

let leave = () => {};
let status = null;
const watchers = new Set();

// A view is shown at once and returns what to do when it is left.
//   view({ main, rest, query, watch, signal }): `rest` is the address after the first word
function show() {
  const address = location.hash.replace(/^#\/?/, "");
  const [path, query] = address.split("?");
  const [word, ...rest] = path.split("/");
  const [view, name] = VIEWS[word] ?? VIEWS[""];
  leave();
  watchers.clear();
  const controller = new AbortController();
  const main = $("main");
  main.replaceChildren();
  document.title = `${name} · bridge console`;
  for (const link of $("nav").querySelectorAll("a")) {
    if (link.dataset.view === word) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const closed = view({
    main, rest: rest.map(decodeURIComponent).join("/"), query: new URLSearchParams(query ?? ""), signal: controller.signal,
    watch(listener) { watchers.add(listener); if (status) listener(status); },
  });
  leave = () => { controller.abort(); closed?.(); };
  window.scrollTo(0, 0);
}

function navigate() {
  show();
  $("main").focus({ preventScroll: true });
}

// --- how the bridge is ----------------------------------------------------------------------------------

async function look() {
  if (document.hidden) return;
  try {
    status = await get("/status");
    tellReadiness(status.ready ? "healthy" : "not ready", status.ready ? "good" : "bad");
    for (const listener of watchers) listener(status);
  } catch (error) {
    if (error.status !== 401) tellReadiness(error.status === 0 ? "no answer" : "failing", "bad");
    for (const listener of watchers) listener(null, error);
  }
}

function tellReadiness(text, kind) {
  const line = $("ready");
  if (line.textContent !== text) line.textContent = text;
  line.className = `pill ${kind}`;
}

// --- signing in -----------------------------------------------------------------------------------------

function askForCredential(message = "") {
  leave();
  leave = () => {};
  tellReadiness("locked", "wait");
  $("nav").hidden = true;
  fill($("who"));
  const secret = h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const wrong = h("p", { class: "problem", role: "alert" }, message);
  const form = h("form", {
    class: "card narrow",
    async onsubmit(event) {
      event.preventDefault();
      wrong.textContent = "";
      try {
        await signIn(secret.value.trim());
        begin();
      } catch (error) {
        wrong.textContent = error.status === 401 ? "No credential has this secret." : error.message;
        secret.focus();
      }
    },
  }, h("h1", {}, "Sign in"), field("Secret", secret, "Of BRIDGE_OPS_TOKEN, or of one of BRIDGE_OPS_CREDENTIALS. This tab alone keeps it."),
  h("div", { class: "buttons" }, h("button", {}, "Sign in")), wrong);
  fill($("main"), form);
  document.title = "Sign in · bridge console";
  secret.focus();
}

function tellWho() {
  fill($("who"), h("span", { class: "soft" }, who().name),
    hasToken() ? button("Sign out", () => { forget(); location.reload(); }, { kind: "plain" }) : null);
}

function begin() {
  $("nav").hidden = false;
  tellWho();
  show();
  look();
}

async function start() {
  $("skip").addEventListener("click", (event) => { event.preventDefault(); $("main").focus(); });
  fill($("nav"), Object.entries(VIEWS).filter(([, view]) => view[2]).map(([word, [, name]]) =>
    h("li", {}, h("a", { href: `#/${word}`, "data-view": word }, name))));
  addEventListener("hashchange", navigate);
  document.addEventListener("visibilitychange", look);
  setInterval(look, STATUS_EVERY);
  await loadWords();
  let lockedBefore = false;
  try {
    await meet();
  } catch (error) {
    lockedBefore = true;
    if (error instanceof Problem && error.status === 401) askForCredential(hasToken() ? "The credential is not known any more." : "");
    else if (error.status === 403 && error.said.scope) askForCredential(error.message);
    else fill($("main"), problem(error));
  }
  onLocked(() => askForCredential("The credential is not known any more."));
  if (!lockedBefore) begin();
}

start();
