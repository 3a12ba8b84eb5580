// Record: what the last audit found, and what people did by hand.

import { h, fill, heading, time, table, button, empty, problem, span, between } from "./dom.js";
import { get, query as written } from "./api.js";

export function record({ main, signal }) {
  const audit = h("div", {}, h("p", { class: "hint" }, "Asking…"));
  const acts = h("div");
  const more = h("div", { class: "buttons" });
  fill(main, h("h1", {}, "Record"), h("section", { class: "card" }, heading("Audit", "audit"), audit),
    h("section", { class: "card" }, heading("What people did", "action"), acts, more));

  get("/v1/audit", signal).then((found) => {
    const wrong = found.checks.filter((check) => check.found);
    fill(audit, !found.audited_at
      ? empty("No audit yet.", "Each process compares what it took with what the log has, once a minute.")
      : [h("p", { class: "health " + (wrong.length ? "bad" : "good") }, wrong.length ? `${wrong.length} of ${found.checks.length} checks found something.` : "Everything adds up."),
        h("p", { class: "hint" }, `Node ${found.node}, at `, time(found.audited_at), ". bridge audit looks at more, and at all nodes."),
        table("Checks", ["Check", "Found", "What it counts"], found.checks.map((check) => [h("code", {}, check.check),
          h("span", { class: `pill ${check.found ? "bad" : "good"}` }, String(check.found)), check.counts]))]);
  }, failed(audit));

  let found = [];
  function load(before) {
    more.replaceChildren();
    get(`/v1/actions${written({ before })}`, signal).then((page) => {
      found = [...found, ...page.actions];
      fill(acts, found.length ? table("What people did", ["When", "Who", "What", "To whom or what", "Result", "What came of it", "Took"], found.map((one) => [
        time(one.begun_at), one.actor, h("b", {}, one.action), facts(one.target),
        h("span", { class: `pill ${{ done: "good", failed: "bad" }[one.result] ?? "wait"}` }, one.result), facts(one.facts), span(between(one.begun_at, one.ended_at))]))
        : empty("Nobody has done anything by hand.", "A recall, a revocation, a disconnect, a replay or a purge leaves a line here, and who did it."));
      if (page.more) more.append(button("Show more", () => load(page.actions.at(-1).begun_at), { kind: "plain" }));
    }, failed(acts));
  }
  load();
  return null;
}

const failed = (place) => (error) => { if (error.name !== "AbortError") fill(place, problem(error)); };

function facts(values) {
  if (!values) return "–";
  const told = Object.entries(values).filter(([, value]) => value !== "" && value !== null).map(([name, value]) =>
    `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");
  return h("span", { class: "data" }, told || "–");
}
