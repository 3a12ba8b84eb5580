// A push: everyone whom it was for, how far it came, and for each user why, step by step.

import { h, fill, heading, ask, pill, kind, time, span, between, count, plural, table, button, empty, confirmed, said, problem } from "./dom.js";
import { get, post, may, query as written, path } from "./api.js";
import { party, meaning } from "./words.js";
import { List } from "./list.js";
import { COLUMNS, userAddress } from "./search.js";

const STORIES = 3; // users whose stories are told at once; of more there is a list
const PARTIES = {
  publisher: "the publisher", bridge: "the bridge", peer: "the user’s client", network: "the network", policy: "a rule that somebody has set",
};

export function push({ main, rest: id, query, signal }) {
  const user = query.get("user");
  const tenant = query.get("tenant");
  let list = null;
  fill(main, h("h1", {}, "Push ", h("code", {}, id)), h("p", { class: "hint" }, "Asking the log…"));

  async function load() {
    let story;
    try {
      story = await get(`/v1/pushes/${path(id)}${written({ user, tenant })}`, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      fill(main, h("h1", {}, "Push ", h("code", {}, id)), error.status === 404 && error.said.error === "unknown"
        ? absent(id, user, error.said) : problem(error));
      return;
    }
    list?.close();
    list = null;
    const total = story.endings.reduce((sum, one) => sum + one.users, 0);
    fill(main, h("h1", {}, "Push ", h("code", {}, id)), actions(id, tenantsOf(story), load),
      story.scheduled?.length ? scheduled(story.scheduled) : null,
      story.endings.length && !user ? card("How far it came", "funnel", funnel(story.endings), endings(story.endings)) : null,
      user && total > 1 ? h("p", { class: "hint" }, h("a", { href: `#/push/${path(id)}${written({ tenant })}` }, `All ${plural(total, "user")} of this push`)) : null,
      total <= STORIES || user ? story.rows.map((row) => one(row)) : null);
    if (!user && total > STORIES) {
      list = new List("Everyone whom it was for", COLUMNS, { height: 12 });
      main.append(everyone(id, list, total, signal));
    }
  }
  load();
  return () => list?.close();
}

const card = (title, term, ...body) => h("section", { class: "card" }, heading(title, term), body);

function absent(id, user, told) {
  return h("section", { class: "card" }, empty(user && told.endings?.length ? `This push was not for ${user}.` : "The delivery log has no row of this push.",
    "It may wait in the queue, or have been taken within the last second: reload the page in a moment.",
    told.log_since ? `It may be older than the log, which begins on ${told.log_since}.` : "The log is empty.",
    ["It may have been rejected under another id: see ", h("a", { href: "#/dead" }, "dead letters"), "."],
    "Or it never came: was the publish confirmed, and to the exchange push of this broker?"));
}

const tenantsOf = (story) => [...new Set([...story.endings, ...(story.scheduled ?? [])].map((one) => one.tenant))];

function actions(id, tenants, again) {
  const recall = async () => {
    const what = [h("p", {}, `Where ${id} is not proven yet it ends as recalled, and screens that may show it are told to take it off.`),
      tenants.some(Boolean) ? h("p", {}, `Tenants: ${tenants.map((one) => one || "none").join(", ")}.`) : null];
    if (!await confirmed("Recall this push?", what, "Recall", { dangerous: true })) return;
    try {
      let ended = 0;
      let told = 0;
      for (const tenant of tenants) {
        const done = await post("/v1/recall", { push_id: id, ...(tenant ? { tenant } : {}) });
        ended += done.ended;
        told += done.sessions;
      }
      said(`Recalled: ${plural(ended, "row")} ended, ${plural(told, "session")} told.`);
      again();
    } catch (error) { said(error.message, true); }
  };
  return h("div", { class: "buttons" },
    button("Recall", recall, { disabled: !may("admin"), title: may("admin") ? null : "This needs the scope admin" }),
    h("a", { class: "button plain", href: `#/replay${written({ push: id, tenant: tenants.length === 1 ? tenants[0] : "" })}` }, "Replay…"));
}

function scheduled(waiting) {
  return card("Scheduled", null, h("ul", {}, waiting.map((one) => h("li", {}, `For ${one.user || plural(one.users, "user")}: at `, time(one.deliver_at),
    one.recalled_at ? " (recalled)" : ""))));
}

function funnel(found) {
  const sum = (f) => found.reduce((total, one) => total + f(one), 0);
  const users = sum((one) => one.users);
  const steps = [["addressed", users], ["handed to a socket", sum((one) => one.handed)], ["proven by the peer", sum((one) => one.proven)],
    ["acked by the application", sum((one) => (one.outcome === "acked" ? one.users : 0))]];
  return h("dl", { class: "funnel" }, steps.map(([name, number]) => {
    const bar = h("span", { class: "bar-fill", "aria-hidden": "true" });
    bar.style.width = `${users ? (number / users) * 100 : 0}%`;
    return h("div", {}, h("dt", {}, name), h("dd", {}, h("span", { class: "bar-box" }, bar), h("b", {}, count(number))));
  }));
}

function endings(found) {
  return table("Outcomes", ["Outcome", "Reason", "What it means", ["Responsible ", ask("party")], "Users"], found.map((one) => [
    pill(one.outcome, one.reason), h("code", {}, one.reason), one.meaning || meaning(one.outcome, one.reason), one.party ?? "–", count(one.users)]));
}

// The story of one user.
function one(row) {
  const who = row.party ?? party(row.outcome, row.reason);
  return h("details", { class: `card person ${kind(row.outcome)}`, open: true },
    h("summary", {}, pill(row.outcome, row.reason), " ", row.user ? row.user : "nobody", row.tenant ? h("span", { class: "soft" }, ` tenant ${row.tenant}`) : null),
    h("p", { class: "hint" }, row.user ? h("a", { href: userAddress(row.user) }, `Page of user ${row.user}`) : "No user was known.",
      row.event ? ` · event ${row.event}` : "", row.topic ? ` · topic ${row.topic}` : "", row.app_id ? ` · from ${row.app_id}` : ""),
    h("p", { class: "verdict" }, row.meaning || row.reason, row.detail ? `: ${row.detail}` : "", "."),
    who ? h("p", {}, "Responsible: ", h("b", {}, PARTIES[who] ?? who), " ", ask("party")) : null,
    h("ol", { class: "timeline" }, row.steps.map((one, i) => step(one, before(row.steps, i))), row.final ? null : unfinished(row)),
    row.held?.length ? h("p", { class: "hint" }, "Open meanwhile: ", row.held.map((s) => `session ${s.session} at ${s.node}`).join(", ")) : null);
}

function step({ step: name, at, how }, since) {
  return h("li", { class: at ? "done" : "never" }, h("b", {}, name), " ",
    at ? [time(at, { exact: true }), since ? h("span", { class: "soft" }, ` +${span(between(since, at))}`) : null] : null,
    h("span", { class: "how" }, how));
}

function unfinished(row) {
  const how = row.outcome === "stored" ? "It goes out when the user opens a session, and ends with its ttl."
    : row.node_alive ? `Node ${row.node} waits for the proof.` : "Its process is dead: the next sweep ends it.";
  return h("li", { class: "never" }, h("b", {}, "not finished"), h("span", { class: "how" }, how));
}

function before(steps, i) {
  for (let j = i - 1; j >= 0; j -= 1) if (steps[j].at) return steps[j].at;
  return null;
}

function everyone(id, list, total, signal) {
  const more = h("div", { class: "buttons" });
  let found = [];
  async function load(after) {
    more.replaceChildren();
    try {
      const page = await get(`/v1/pushes${written({ field: "push_id", q: id, after })}`, signal);
      found = [...found, ...page.pushes];
      list.show(found);
      if (page.next) more.append(button("Show more", () => load(page.next), { kind: "plain" }));
    } catch (error) { if (error.name !== "AbortError") more.append(problem(error)); }
  }
  load();
  return h("section", { class: "card" }, heading(`All ${plural(total, "user")}`), list.element, more);
}
