// Topics: who is subscribed, and the last values that who subscribes next gets first.

import { h, fill, heading, ask, time, count, plural, table, empty, problem } from "./dom.js";
import { get } from "./api.js";
import { List } from "./list.js";
import { pushAddress } from "./search.js";

const address = (topic) => `#/topics/${encodeURIComponent(topic)}`;

export function topics({ main, rest, signal }) {
  return rest ? topic(main, rest, signal) : all(main, signal);
}

function all(main, signal) {
  const list = new List("Topics", [
    { label: "Topic", width: "3fr", cell: (one) => h("a", { href: address(one.topic), title: one.topic }, one.topic) },
    { label: "Sessions", width: "6rem", cell: (one) => count(one.sessions) },
    { label: "Users", width: "6rem", small: true, cell: (one) => count(one.users) },
    { label: "Last values", width: "7rem", cell: (one) => count(one.values) },
  ], { height: 14 });
  const note = h("p", { class: "hint", role: "status" }, "Asking the ledger…");
  fill(main, h("h1", {}, "Topics"), h("section", { class: "card" }, heading("Topics", "topic"), note, list.element));
  get("/v1/topics", signal).then((found) => {
    list.show(found.topics);
    list.element.hidden = !found.topics.length;
    fill(note, found.topics.length ? `${plural(found.topics.length, "topic")}${found.more ? ", those with most sessions; there are more" : ""}.`
      : empty("No topic has a subscriber or a last value.", "Clients subscribe with the frame subscribe, as far as their token permits; a push with retain leaves a last value."));
  }, (error) => { if (error.name !== "AbortError") fill(note, problem(error)); });
  return () => list.close();
}

function topic(main, name, signal) {
  const body = h("section", { class: "card" }, h("p", { class: "hint" }, "Asking the ledger…"));
  fill(main, h("h1", {}, "Topic ", h("code", {}, name)), h("p", {}, h("a", { href: "#/topics" }, "All topics"), " · ",
    h("a", { href: `#/send?topic=${encodeURIComponent(name)}` }, "Send it a test push"), " · ",
    h("a", { href: `#/search?field=topic&q=${encodeURIComponent(name)}` }, "Its pushes")), body);
  get(`/v1/topics/${encodeURIComponent(name)}`, signal).then((found) => fill(body,
    h("p", {}, `${plural(found.users, "user")} in ${plural(found.sessions, "session")} are subscribed.`),
    h("div", { class: "title" }, h("h2", {}, "Last values"), ask("last value")),
    found.values.length ? table("Last values", ["Event", "Data", "Push", "Published", "Until", "From"], found.values.map((value) => [
      value.event, value.text === null ? h("span", { class: "soft" }, value.encoding === "bytes" ? `${count(value.size)} bytes` : "shown with the scope admin") : h("code", { class: "data" }, value.text),
      h("a", { href: pushAddress(value) }, value.push_id), time(value.published_at), time(value.until), value.app_id || "–"]))
      : empty("This topic has no last value.", "A push to it with retain leaves one, for who subscribes later.")),
  (error) => { if (error.name !== "AbortError") fill(body, problem(error)); });
  return null;
}
