// Live: outcomes as they are committed, the newest first, with filters.

import { h, fill, field, options, button, empty, count } from "./dom.js";
import { follow, query as written } from "./api.js";
import { outcomes, reasons, parties, party } from "./words.js";
import { List } from "./list.js";
import { COLUMNS } from "./search.js";

const KEPT = 10_000; // entries; the oldest go

export function live({ main, query, signal }) {
  const text = (name) => h("input", { value: query.get(name) ?? "", maxlength: "128", autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  const choice = (name, words) => h("select", {}, options([["", "All"], ...words.map((one) => [one, one])], query.get(name) ?? ""));
  const pattern = (name) => { const input = text(name); input.title = "* is any one word, # any number of words"; return input; };
  // By the names of the query of GET /v1/outcomes, which filters.
  const by = { user: text("user"), push_id: text("push_id"), event: pattern("event"), topic: pattern("topic"), tenant: text("tenant"),
    outcome: choice("outcome", outcomes()), reason: choice("reason", reasons()), party: choice("party", parties()) };
  const list = new List("Outcomes, the newest first", COLUMNS, { height: 15 });
  const state = h("p", { class: "hint", role: "status" }, "Connecting…");
  const tally = h("p", { class: "hint" });
  const none = empty("Waiting for outcomes.", ["They appear here as they are committed. ", h("a", { href: "#/send" }, "Send a test push"), " to see one."]);
  const pause = button("Pause", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    draw();
  }, { kind: "plain" });
  let entries = [];
  let waiting = [];
  let missed = 0;
  let paused = false;
  let frame = 0;
  let stream = new AbortController();
  signal.addEventListener("abort", () => stream.abort());

  const form = h("form", { class: "card", onsubmit: (event) => { event.preventDefault(); begin(); } },
    h("div", { class: "bar" }, field("User", by.user), field("Push id", by.push_id), field("Event", by.event), field("Topic", by.topic),
      field("Tenant", by.tenant), field("Outcome", by.outcome), field("Reason", by.reason), field("Responsible", by.party)),
    h("div", { class: "buttons" }, h("button", {}, "Apply"), pause, button("Clear", () => { entries = []; waiting = []; missed = 0; draw(); }, { kind: "plain" })));
  fill(main, h("h1", {}, "Live"), form, h("section", { class: "card", "aria-label": "Outcomes" }, state, none, list.element, tally));
  list.element.hidden = true;

  // Once a frame at most, however much comes.
  function later() { frame ||= requestAnimationFrame(() => { frame = 0; draw(); }); }

  function draw() {
    if (!paused && waiting.length) {
      entries = [...waiting.reverse(), ...entries].slice(0, KEPT);
      waiting = [];
    }
    none.hidden = entries.length > 0;
    list.element.hidden = !entries.length;
    list.show(entries);
    tally.textContent = [`${count(entries.length)} shown`, paused && waiting.length ? `${count(waiting.length)} wait` : "",
      missed ? `${count(missed)} left out, since this page was behind` : "", entries.length === KEPT ? "older ones are gone" : ""].filter(Boolean).join(" · ");
  }

  function begin() {
    stream.abort();
    stream = new AbortController();
    entries = [];
    waiting = [];
    draw();
    const path = `/v1/outcomes${written(Object.fromEntries(Object.entries(by).map(([name, input]) => [name, input.value.trim()])))}`;
    follow(path, (name, data) => {
      if (name === "missed") missed += data.count;
      else {
        waiting.push({ ...data, user: data.user_id ?? "", party: party(data.outcome, data.reason) });
        if (waiting.length > KEPT) waiting.shift();
      }
      later();
    }, (open, why) => { state.textContent = open ? "Live." : `${why} Trying again…`; }, stream.signal);
  }
  begin();
  return () => { stream.abort(); cancelAnimationFrame(frame); list.close(); };
}
