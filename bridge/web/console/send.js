// Send a test push, and see how it ends.

import { h, fill, field, options, empty, pill, table, confirmed, problem, span, between } from "./dom.js";
import { post, may } from "./api.js";
import { meaning } from "./words.js";
import { pushAddress } from "./search.js";

const WAIT = 6; // seconds in which outcomes should come

export function send({ main, query, signal }) {
  const to = h("select", {}, options([["user", "A user"], ["topic", "A topic"], ["all", "Everyone"]], query.get("topic") ? "topic" : "user"));
  const name = h("input", { value: query.get("user") ?? query.get("topic") ?? "", maxlength: "128", autocomplete: "off", autocapitalize: "none", spellcheck: "false", required: true });
  const event = h("input", { value: "message", maxlength: "128", autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  const ttl = h("select", {}, options([["0", "Not at all"], ["60", "A minute"], ["3600", "An hour"], ["86400", "A day"]], "0"));
  const confirm = h("select", {}, options([["written", "written"], ["received", "received"], ["acked", "acked"]], "received"));
  const data = h("textarea", { rows: "4", spellcheck: "false" });
  data.value = '{"text": "A test push from the console"}';
  const wrong = h("p", { class: "problem", role: "alert" });
  const result = h("section", { class: "card", "aria-label": "Outcome", "aria-live": "polite" }, empty("Nothing sent yet.", "The outcome appears here, with the proof of the peer."));
  const go = h("button", { disabled: !may("push") }, "Send…");
  const target = field("Which", name);
  to.addEventListener("change", () => { target.hidden = to.value === "all"; name.required = to.value !== "all"; });
  const form = h("form", { class: "card", onsubmit: submit },
    h("div", { class: "pair" }, field("To", to), target), h("div", { class: "pair" }, field("Event", event), field("Kept for", ttl)),
    field("Proof wanted", confirm), field("Data (JSON)", data), h("div", { class: "buttons" }, go), wrong,
    may("push") ? null : h("p", { class: "hint" }, "This needs the scope push."));
  fill(main, h("h1", {}, "Send a test push"), form, result);

  async function submit(submitted) {
    submitted.preventDefault();
    wrong.textContent = "";
    let value;
    try {
      value = JSON.parse(data.value);
    } catch (error) {
      wrong.textContent = `Data is not JSON: ${error.message}`;
      data.focus();
      return;
    }
    const id = `console-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
    const body = { id, to: to.value === "all" ? { all: true } : { [to.value]: name.value.trim() }, event: event.value.trim() || "message",
      data: value, confirm: confirm.value, ...(Number(ttl.value) ? { ttl: Number(ttl.value) } : {}) };
    const whom = to.value === "all" ? "everyone who is online" : `${to.value} ${name.value.trim()}`;
    if (!await confirmed("Send this push?", [h("p", {}, `It goes to ${whom}, and appears on their screens.`), h("pre", {}, JSON.stringify(body, null, 2))], "Send")) return;
    go.disabled = true;
    fill(result, h("p", { class: "hint" }, "Sent. Waiting for the outcome…"));
    try {
      const answer = await post(`/v1/push?wait=${WAIT}`, body, signal);
      fill(result, h("h2", {}, "Outcome"), outcome(answer, id));
    } catch (error) {
      if (error.name !== "AbortError") fill(result, problem(error));
    }
    go.disabled = false;
  }
  return null;
}

function outcome(answer, id) {
  const link = h("p", {}, h("a", { href: pushAddress({ push_id: id }) }, "The story of this push"));
  if (!answer.receipts.length) return [h("p", {}, `The broker has it; no outcome came within ${WAIT} s.`), link];
  return [table("Outcomes", ["User", "Outcome", "What it means", "Took"], answer.receipts.slice(0, 100).map((one) => [
    one.user_id ?? "nobody", pill(one.outcome, one.reason), (one.detail ? `${meaning(one.outcome, one.reason)}: ${one.detail}` : meaning(one.outcome, one.reason)),
    span(between(one.published_at, one.proven_at ?? one.finished_at))])), link];
}
