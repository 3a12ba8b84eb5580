// Search: pushes by id, user, event, topic, tenant or trace id, the newest first.

import { h, fill, pill, time, span, between, field, options, button, empty, problem, count } from "./dom.js";
import { get, query as written, path } from "./api.js";
import { List } from "./list.js";

const FIELDS = [["any", "Anything"], ["push_id", "Push id"], ["user", "User"], ["event", "Event"], ["topic", "Topic"],
  ["tenant", "Tenant"], ["trace", "Trace id"]];

export const pushAddress = (one) => `#/push/${path(one.push_id)}${written({ tenant: one.tenant ?? "", user: one.user ?? "" })}`;
export const userAddress = (user) => `#/user/${path(user)}`;

// The columns of a list of pushes, as search, a push's page and the live view show it.
export const COLUMNS = [
  { label: "Outcome", width: "7.5rem", cell: (one) => pill(one.outcome, one.reason) },
  { label: "Push", width: "2fr", cell: (one) => h("a", { href: pushAddress(one), title: one.push_id }, one.push_id) },
  { label: "User", width: "1.2fr", cell: (one) => (one.user ? h("a", { href: userAddress(one.user), title: one.user }, one.user) : h("span", { class: "soft" }, "nobody")) },
  { label: "Event", width: "1fr", small: true, cell: (one) => one.event ?? "" },
  { label: "Responsible", width: "6.5rem", small: true, cell: (one) => one.party ?? "–" },
  { label: "Took", width: "5rem", small: true, cell: (one) => span(between(one.taken_at, one.proven_at ?? one.finished_at)) },
  { label: "Taken", width: "9rem", cell: (one) => time(one.taken_at) },
];

export function search({ main, query, signal }) {
  const by = query.get("field") ?? "any";
  const text = query.get("q") ?? "";
  const what = h("select", {}, options(FIELDS, by));
  const input = h("input", { type: "search", value: text, maxlength: "256", autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  const form = h("form", {
    role: "search", class: "card bar",
    onsubmit(event) {
      event.preventDefault();
      location.hash = `#/search${written({ field: what.value === "any" ? "" : what.value, q: input.value.trim() })}`;
    },
  }, field("Search for", what), field("Exactly this", input), h("div", { class: "buttons" }, h("button", {}, "Search")));
  const list = new List("Pushes", COLUMNS, { height: 14 });
  const note = h("p", { class: "hint", role: "status" });
  const more = h("div", { class: "buttons" });
  const results = h("section", { class: "card", "aria-label": "Results" }, note, list.element, more);
  fill(main, h("h1", {}, "Search"), form, results);

  let found = [];
  async function load(after) {
    more.replaceChildren();
    note.textContent = "Searching…";
    let page;
    try {
      page = await get(`/v1/pushes${written({ field: by, q: text, after })}`, signal);
    } catch (error) {
      if (error.name !== "AbortError") { fill(results, problem(error)); }
      return;
    }
    found = [...found, ...page.pushes];
    list.show(found);
    list.element.hidden = !found.length;
    fill(note, text ? `${count(found.length)} found${page.next ? " so far" : ""}.` : "The newest pushes.",
      page.looked_since ? [" Looked at all pushes since ", time(page.looked_since), "."] : null,
      (by === "user" || by === "any") && text && found.some((one) => one.user === text)
        ? [" ", h("a", { href: userAddress(text) }, `The page of user ${text}`), "."] : null);
    if (page.next) more.append(button(page.looked_since ? "Look further back" : "Show more", () => load(page.next), { kind: "plain" }));
    if (!found.length) fill(note, nothing(by, text, page));
  }
  load();
  return () => list.close();
}

function nothing(by, text, page) {
  if (!text) return empty("No pushes yet.", ["Publish one, or ", h("a", { href: "#/send" }, "send a test push"), "."]);
  const tips = ["Ids and names are compared letter by letter.",
    by === "any" || by === "user" ? [h("a", { href: userAddress(text) }, `See user ${text}`), ": someone may be online without a push."] : null,
    page.looked_since ? ["What has no index is looked for among the newest pushes, since ", time(page.looked_since), "."] : null];
  return empty(`No push fits “${text}”.`, ...tips.filter(Boolean));
}
