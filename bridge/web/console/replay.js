// Replay: publish logged pushes again. First a dry run says what would happen.

import { h, fill, heading, field, options, table, button, empty, confirmed, said, problem, count, plural } from "./dom.js";
import { post, may } from "./api.js";
import { outcomes, reasons } from "./words.js";

const TEXTS = [["push", "Push id"], ["user", "User"], ["event", "Event"], ["tenant", "Tenant"]];

export function replay({ main, query, signal }) {
  const text = (name, hint = "") => h("input", { value: query.get(name) ?? hint, maxlength: "280", autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  const inputs = Object.fromEntries(TEXTS.map(([name]) => [name, text(name)]));
  const any = [["", "Any"]];
  inputs.outcome = h("select", {}, options([...any, ...outcomes().map((one) => [one, one])], query.get("outcome") ?? ""));
  inputs.reason = h("select", {}, options([...any, ...reasons().map((one) => [one, one])], query.get("reason") ?? ""));
  inputs.since = text("since");
  inputs.until = text("until");
  const mark = h("input", { value: new Date().toISOString().slice(2, 16).replace(/[-:T]/g, ""), maxlength: "16", required: true, autocomplete: "off", spellcheck: "false" });
  const ttl = h("select", {}, options([["", "As it was"], ["0", "Not kept"], ["3600", "An hour"], ["86400", "A day"]], ""));
  const result = h("section", { class: "card", "aria-label": "What would happen", "aria-live": "polite" },
    empty("No dry run yet.", "Say which pushes are meant, and see how many can be replayed. Only the data of pushes with a ttl is kept."));
  const form = h("form", { class: "card", onsubmit: (event) => { event.preventDefault(); dry(); } },
    heading("Which pushes", "replay"),
    h("div", { class: "pair" }, TEXTS.map(([name, label]) => field(label, inputs[name])), field("Outcome", inputs.outcome), field("Reason", inputs.reason),
      field("Taken since", inputs.since, "An age such as 2h, or 2026-11-22T18:30"), field("Taken until", inputs.until)),
    h("div", { class: "pair" }, field("Mark", mark, "A second replay with the same mark sends nothing twice."), field("Kept for", ttl)),
    h("div", { class: "buttons" }, h("button", { disabled: !may("admin") }, "Dry run")),
    may("admin") ? null : h("p", { class: "hint" }, "This needs the scope admin."));
  fill(main, h("h1", {}, "Replay"), form, result);

  function asked(dryRun) {
    const where = Object.entries(inputs).filter(([, input]) => input.value.trim()).map(([name, input]) => `${name}=${input.value.trim()}`);
    return { where, mark: mark.value.trim(), dry_run: dryRun, ...(ttl.value === "" ? {} : { ttl: Number(ttl.value) }) };
  }

  async function dry() {
    const body = asked(true);
    if (!body.where.length) { fill(result, problem(new Error("Say at least one thing about the pushes that are meant."))); return; }
    try {
      const found = await post("/v1/replay", body, signal);
      const wanted = found.rows.find((row) => row.verdict === "again")?.rows ?? 0;
      const go = wanted > found.most
        ? h("p", { class: "hint" }, `At most ${count(found.most)} are replayed here: narrow it down, or use bridge replay in a terminal.`)
        : wanted ? button(`Replay ${plural(wanted, "push", "pushes")}…`, () => replayAll({ ...body, dry_run: false }, wanted)) : null;
      fill(result, h("h2", {}, "What would happen"), found.rows.length
        ? table("What would happen", ["Rows", "What becomes of them"], found.rows.map((row) => [count(row.rows), row.meaning]))
        : empty("No row fits.", "Ids are compared letter by letter; the log may not reach back so far."), h("div", { class: "buttons" }, go));
    } catch (error) {
      if (error.name !== "AbortError") fill(result, problem(error));
    }
  }

  async function replayAll(body, wanted) {
    if (!await confirmed("Replay these pushes?", [h("p", {}, `${plural(wanted, "push", "pushes")} will be published again, each under the id <its id>/replay-${body.mark}.`),
      h("pre", {}, body.where.join("\n"))], `Replay ${count(wanted)}`)) return;
    try {
      const done = await post("/v1/replay", body, signal);
      said(`${plural(done.replayed, "push", "pushes")} replayed.`);
      dry();
    } catch (error) { said(error.message, true); }
  }
  return null;
}
