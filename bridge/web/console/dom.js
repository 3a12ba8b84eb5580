// Makes elements, times and dialogs. Text from elsewhere is only ever set as text.

import { definition } from "./words.js";

export const $ = (id) => document.getElementById(id);

// h("a", { class: "id", href: "#/", onclick: f }, "text", child): the element. Null and false are left out.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in PROPERTIES) element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}
const PROPERTIES = { textContent: 1, value: 1, checked: 1, disabled: 1, selected: 1, hidden: 1 };

export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

// --- times ----------------------------------------------------------------------------------------------

const LOCAL = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const LOCAL_DAY = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric" });

function date(moment) {
  return new Date(typeof moment === "number" ? moment * 1000 : moment);
}

// In the reader's zone; the title has it in UTC. A moment is ISO 8601, or seconds since the epoch.
export function time(moment, { exact = false } = {}) {
  if (moment === null || moment === undefined) return h("span", { class: "soft" }, "–");
  const at = date(moment);
  const today = LOCAL_DAY.format(at) === LOCAL_DAY.format(new Date());
  const clock = LOCAL.format(at) + (exact ? "." + String(at.getMilliseconds()).padStart(3, "0") : "");
  const text = today ? clock : `${LOCAL_DAY.format(at)}, ${clock}`;
  return h("time", { datetime: at.toISOString(), title: `${at.toISOString().replace("T", " ").replace("Z", "")} UTC` }, text);
}

export function span(ms) {
  if (ms === null || ms === undefined || Number.isNaN(ms)) return "–";
  if (Math.abs(ms) < 0.005) return "0 ms";
  if (ms < 1) return `${ms.toFixed(2)} ms`;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${ms.toFixed(0)} ms`;
  const s = ms / 1000;
  if (s < 120) return `${s.toFixed(s < 10 ? 2 : 1)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}

export const between = (from, to) => (from && to ? date(to) - date(from) : null);
export const count = (n) => Number(n).toLocaleString();
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${Number(n) === 1 ? one : many}`;

// --- what every view has --------------------------------------------------------------------------------

const GOOD = new Set(["received", "acked", "written"]);
const WAITING = new Set(["pending", "stored", "scheduled"]);

export function kind(outcome) {
  return GOOD.has(outcome) ? "good" : WAITING.has(outcome) ? "wait" : "bad";
}

export function pill(outcome, reason) {
  return h("span", { class: `pill ${kind(outcome)}`, title: reason ? `${outcome}/${reason}` : outcome }, outcome);
}

// A `?` that opens the glossary's line.
export function ask(term) {
  return h("button", {
    type: "button", class: "what", "aria-label": `What does “${term}” mean?`,
    onclick: () => tell(term, h("p", {}, definition(term))),
  }, "?");
}

export function heading(text, term) {
  return h("div", { class: "title" }, h("h2", {}, text), term ? ask(term) : null);
}

export function empty(text, ...more) {
  return h("div", { class: "empty" }, h("p", {}, text), ...more.map((one) => h("p", {}, one)));
}

export function problem(error) {
  return h("p", { class: "problem", role: "alert" }, error.message);
}

export function field(label, control, hint) {
  control.id ||= `f-${(field.count = (field.count ?? 0) + 1)}`;
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint ? h("p", { class: "hint" }, hint) : null);
}

export function options(values, chosen) {
  return values.map(([value, label]) => h("option", { value, selected: value === chosen }, label));
}

// A plain table in a box that scrolls by itself where the screen is narrow.
export function table(label, heads, rows) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", {}, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell) => h("td", {}, cell)))))));
}

export function button(label, onclick, { kind: look = "", disabled = false, title = null } = {}) {
  return h("button", { type: "button", class: look || null, onclick, disabled, title }, label);
}

// --- dialogs --------------------------------------------------------------------------------------------

function opened(title, body, buttons) {
  const before = document.activeElement;
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" },
    h("h2", { id: "dialog-title" }, title), h("div", { class: "dialog-body" }, body), h("div", { class: "buttons" }, buttons));
  document.body.append(dialog);
  dialog.addEventListener("close", () => { dialog.remove(); before?.focus?.(); });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.showModal();
  return dialog;
}

export function tell(title, body) {
  const dialog = opened(title, body, [h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Close")]);
  return dialog;
}

// Asks once whether to do what changes something.
export function confirmed(title, body, verb, { dangerous = false } = {}) {
  return new Promise((resolve) => {
    let yes = false;
    const dialog = opened(title, body, [
      h("button", { type: "button", class: "plain", autofocus: true, onclick: () => dialog.close() }, "Cancel"),
      h("button", { type: "button", class: dangerous ? "danger" : null, onclick: () => { yes = true; dialog.close(); } }, verb),
    ]);
    dialog.addEventListener("close", () => resolve(yes));
  });
}

// A line at the foot of the page that says what was done; a screen reader reads it.
export function said(text, wrong = false) {
  const line = $("said");
  line.textContent = text;
  line.className = wrong ? "wrong" : "";
  line.hidden = false;
  clearTimeout(said.timer);
  said.timer = setTimeout(() => { line.hidden = true; line.textContent = ""; }, wrong ? 20_000 : 8_000);
}
