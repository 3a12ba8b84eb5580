// A user: sessions, what is kept for them, how their last pushes ended; and how to disconnect or log them out.

import { h, fill, heading, ask, pill, time, span, between, plural, table, button, empty, confirmed, said, problem } from "./dom.js";
import { get, post, may } from "./api.js";
import { meaning, party } from "./words.js";
import { pushAddress } from "./search.js";

const NEEDS_ADMIN = "This needs the scope admin";

export function user({ main, rest: id, signal }) {
  fill(main, h("h1", {}, "User ", h("code", {}, id)), h("p", { class: "hint" }, "Asking ledger and log…"));
  const api = `/v1/users/${encodeURIComponent(id)}`;

  async function load() {
    let person;
    try {
      person = await get(api, signal);
    } catch (error) {
      if (error.name !== "AbortError") fill(main, h("h1", {}, "User ", h("code", {}, id)), problem(error));
      return;
    }
    const state = h("span", { class: `pill ${person.online ? "good" : "wait"}` }, person.online ? "online" : "offline");
    fill(main, h("h1", {}, "User ", h("code", {}, id), " ", state),
      h("div", { class: "buttons" },
        button("Disconnect all", () => act(`Disconnect ${id}?`, "All sessions of this user are closed, at every node. Their clients may come back at once.",
          "Disconnect", () => post(`${api}/disconnect`, {}), (done) => `${plural(done.sessions, "session")} closed.${silent(done)}`),
        { disabled: !may("admin") || !person.online, title: may("admin") ? null : NEEDS_ADMIN }),
        button("Revoke tokens…", () => act(`Log ${id} out?`, "All sessions are closed, and every token of this user that was made until now is refused from then on. They need a new one.",
          "Revoke", () => post("/v1/revoke", { user: id, before: Math.floor(Date.now() / 1000) }), (done) => `Revoked; ${plural(done.sessions, "session")} closed.${silent(done)}`),
        { kind: "danger", disabled: !may("admin"), title: may("admin") ? null : NEEDS_ADMIN })),
      card("Sessions", "session", sessions(person)),
      card("Kept pushes", "kept push", kept(person)),
      card("Last outcomes", "outcome", pushes(person)),
      person.ended.length ? card("Ended sessions", "session", ended(person)) : null);
  }

  async function act(title, text, verb, work, told) {
    if (!await confirmed(title, h("p", {}, text), verb, { dangerous: true })) return;
    try {
      said(told(await work()));
      load();
    } catch (error) { said(error.message, true); }
  }

  function sessions(person) {
    if (!person.sessions.length) return empty(`${id} has no open session.`, "What has a ttl is kept until they open one; all else ends as offline.");
    return table("Sessions", ["Device", "Address", "Since", ["Round trip ", ask("round trip")], "Node", "Topics", "Token until", "Close it"],
      person.sessions.map((one) => [
        h("span", { class: "device", title: one.user_agent ?? "" }, device(one.user_agent), h("span", { class: "soft" }, ` ${one.mode}`)),
        one.address ?? "–", time(one.opened_at), roundTrip(person, one.session), one.node, one.topics.join(", ") || "–", time(one.expires_at),
        button("Disconnect", () => act("Disconnect this session?", `Session ${one.session} is closed. Its client may come back at once.`, "Disconnect",
          () => post(`${api}/disconnect`, { session: one.session }), (done) => `${plural(done.sessions, "session")} closed.${silent(done)}`),
        { kind: "plain", disabled: !may("admin"), title: may("admin") ? null : NEEDS_ADMIN }),
      ]));
  }
  load();
  return null;
}

const card = (title, term, ...body) => h("section", { class: "card" }, heading(title, term), body);
const silent = (done) => (done.silent.length ? ` Not confirmed by ${done.silent.join(", ")}.` : "");

// The name that the User-Agent begins or ends with, and its system.
function device(agent) {
  if (!agent) return "unknown device";
  const browser = /(Edg|OPR|Firefox|Chrome|Safari)[/\d]/.exec(agent)?.[1];
  const system = /(Android|iPhone|iPad|Windows|Mac OS X|Linux)/.exec(agent)?.[1];
  const names = { Edg: "Edge", OPR: "Opera" };
  return browser ? [names[browser] ?? browser, system].filter(Boolean).join(" on ") : agent.slice(0, 40);
}

function roundTrip(person, session) {
  const proven = person.pushes.find((push) => push.session === session && push.outcome === "received" && push.proven_at);
  return proven ? span(between(proven.written_at, proven.proven_at)) : "–";
}

function kept(person) {
  if (!person.kept.pushes) return empty("Nothing is kept for them.", "A push with a ttl is kept here while its user is absent or gives no proof.");
  return h("p", {}, `${plural(person.kept.pushes, "push", "pushes")}, the oldest since `, time(person.kept.since), ".");
}

function pushes(person) {
  if (!person.pushes.length) return empty("The log has no push for them.", ["Ids are compared letter by letter. ", h("a", { href: "#/send" }, "Send them a test push"), "."]);
  return table("Last outcomes", ["Outcome", "Push", "Event", "What it means", ["Responsible ", ask("party")], "Took", "Taken"], person.pushes.map((one) => [
    pill(one.outcome, one.reason), h("a", { href: pushAddress({ ...one, user: person.user }) }, one.push_id), one.event,
    meaning(one.outcome, one.reason), party(one.outcome, one.reason) ?? "–", span(between(one.taken_at, one.proven_at ?? one.finished_at)), time(one.taken_at)]));
}

function ended(person) {
  return table("Ended sessions", ["Device", "Address", "Opened", "Closed", "Why", "Node"], person.ended.map((one) => [
    device(one.user_agent), one.address ?? "–", time(one.opened_at), one.closed_at ? time(one.closed_at) : "its process died",
    one.close_reason ? `${one.close_reason}${one.close_code ? ` (${one.close_code})` : ""}` : "–", one.node]));
}
