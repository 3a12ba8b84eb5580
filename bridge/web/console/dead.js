// Dead letters: what could not be taken. Show one, publish some again, delete some.

import { h, fill, time, count, plural, button, empty, confirmed, said, tell, problem } from "./dom.js";
import { get, post, may } from "./api.js";
import { meaning } from "./words.js";
import { List } from "./list.js";

export function dead({ main, signal }) {
  const chosen = new Set();
  let letters = [];
  const note = h("p", { class: "hint", role: "status" }, "Looking into push.dead…");
  const box = (letter) => h("input", {
    type: "checkbox", checked: chosen.has(letter.id), "aria-label": `Choose ${letter.id}`,
    onchange: (event) => { chosen[event.target.checked ? "add" : "delete"](letter.id); buttons(); },
  });
  const list = new List("Dead letters, the oldest first", [
    { label: "Choose", width: "4rem", cell: box },
    { label: "Push", width: "1.6fr", cell: (one) => button(one.id || "without an id", () => show(one), { kind: "link", title: one.id }) },
    { label: "Reason", width: "8rem", cell: (one) => one.reason || "not of the bridge" },
    { label: "Detail", width: "3fr", small: true, cell: (one) => one.detail },
    { label: "Buried", width: "9rem", cell: (one) => time(one.buried_at) },
  ], { height: 12 });
  const lacks = may("admin") ? null : "This needs the scope admin";
  const all = button("Choose all", () => { letters.forEach((one) => chosen.add(one.id)); list.refresh(); buttons(); }, { kind: "plain" });
  const again = button("Replay…", () => replay([...chosen]), { title: lacks });
  const purge = button("Delete…", () => remove([...chosen]), { kind: "danger", title: lacks });
  const bar = h("div", { class: "buttons" }, all, again, purge, button("Look again", load, { kind: "plain" }));
  fill(main, h("h1", {}, "Dead letters"), h("section", { class: "card", "aria-label": "Letters" }, note, bar, list.element));

  function buttons() {
    const none = !chosen.size || !may("admin");
    again.disabled = none;
    purge.disabled = none;
    again.textContent = chosen.size ? `Replay ${count(chosen.size)}…` : "Replay…";
    purge.textContent = chosen.size ? `Delete ${count(chosen.size)}…` : "Delete…";
  }

  async function load() {
    try {
      const found = await get("/v1/dead", signal);
      letters = found.letters;
      for (const id of [...chosen]) if (!letters.some((one) => one.id === id)) chosen.delete(id);
      list.show(letters);
      list.element.hidden = !letters.length;
      bar.hidden = !letters.length;
      fill(note, letters.length ? `${plural(found.total, "letter")}${found.total > letters.length ? `; the oldest ${count(letters.length)} are shown` : ""}.`
        : empty("No dead letters.", "A message that can’t be taken lands here with its reason: wrong JSON, a wrong field, too large. Its row in the log stays."));
      buttons();
    } catch (error) {
      if (error.name !== "AbortError") fill(note, problem(error));
    }
  }

  function show(letter) {
    const facts = { reason: letter.reason, "what it means": meaning("rejected", letter.reason), detail: letter.detail, tenant: letter.tenant,
      bytes: count(letter.bytes), ...letter.properties };
    tell(`Letter ${letter.id || "without an id"}`, [
      h("dl", { class: "facts" }, Object.entries(facts).filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])),
      letter.body === null ? h("p", { class: "hint" }, "Its body is shown to who has the scope admin.") : h("pre", { tabindex: "0" }, letter.body || "(empty)"),
      letter.unfit ? h("p", { class: "hint" }, `It can’t be replayed: ${letter.unfit}.`) : null]);
  }

  async function replay(ids) {
    try {
      const asNew = letters.filter((one) => ids.includes(one.id)).some((one) => one.unfit && !one.unfit_as_new);
      const dry = await post("/v1/dead/replay", { ids, new_ids: asNew, dry_run: true });
      const lines = [h("p", {}, `${plural(dry.replayed.length, "letter")} would be published again${asNew ? ", under new ids, since their users have final rows" : ""}.`),
        dry.kept.length ? h("ul", {}, dry.kept.map((one) => h("li", {}, `${one.id} stays: ${one.why}`))) : null];
      if (!dry.replayed.length) { tell("Nothing to replay", lines); return; }
      if (!await confirmed("Replay these letters?", lines, `Replay ${count(dry.replayed.length)}`)) return;
      const done = await post("/v1/dead/replay", { ids, new_ids: asNew });
      said(`${plural(done.replayed.length, "letter")} published again, ${count(done.kept.length)} kept.`);
    } catch (error) { said(error.message, true); }
    load();
  }

  async function remove(ids) {
    if (!await confirmed("Delete these letters?", h("p", {}, `${plural(ids.length, "letter")} will be gone for good. Their rows stay in the log.`), "Delete", { dangerous: true })) return;
    try {
      const done = await post("/v1/dead/purge", { ids });
      said(`${plural(done.deleted, "letter")} deleted.`);
    } catch (error) { said(error.message, true); }
    load();
  }
  buttons();
  load();
  return () => list.close();
}
