// Overview: is it healthy, the last hour in charts, and which nodes there are.

import { h, fill, heading, ask, time, span, count, plural, table, empty } from "./dom.js";
import { get } from "./api.js";
import { Chart, quantile, numbers, times } from "./charts.js";

const ASK_EVERY = 10_000; // milliseconds; as often as there is a new sample
const HOUR = 3600;
const READ_EVERY = 15; // seconds between two readings of the queues, so that a sample may have an older one
// The same at each visit, whichever outcomes there are.
const OUTCOME_COLOURS = { received: 2, acked: 0, written: 6, stored: 5, pending: 3, offline: 7, unknown: 1, dropped: 4, rejected: 3,
  expired: 5, superseded: 7, recalled: 6 };

export function overview({ main, watch, signal }) {
  const health = h("p", { class: "health" }, "Asking the bridge…");
  const causes = h("ul", { class: "causes", hidden: true });
  const tiles = h("dl", { class: "tiles" });
  const nodes = h("div");
  const charts = {
    outcomes: new Chart("Pushes a second, by outcome", "outcome", { wide: true, colours: OUTCOME_COLOURS }),
    proof: new Chart("Time to proof", "time to proof", { values: times }),
    sessions: new Chart("Sessions", "session"),
    flight: new Chart("In flight, by stage", "in flight"),
    queue: new Chart("Waiting at the broker", "queue wait"),
    wait: new Chart("Wait in the queue", "queue wait", { values: times }),
    commits: new Chart("Commit time of the database", "commit time", { values: times }),
  };
  fill(main, h("h1", { class: "away" }, "Overview"), h("section", { class: "card lead", "aria-label": "Health" }, health, causes, tiles),
    h("div", { class: "charts" }, Object.values(charts).map((chart) => chart.element)),
    h("section", { class: "card" }, heading("Nodes", "node"), nodes));

  let found = [];
  let bounds = [];
  let status = null;
  async function history() {
    if (document.hidden) return;
    try {
      const said = await get(`/v1/history?since=${found.at(-1)?.at ?? 0}`, signal);
      bounds = said.bounds;
      const since = (said.samples.at(-1)?.at ?? found.at(-1)?.at ?? 0) - HOUR;
      found = [...found, ...said.samples].filter((sample) => sample.at > since);
      draw(charts, found, bounds);
      tell(tiles, status, found, bounds);
    } catch (error) {
      if (error.name !== "AbortError") health.textContent = `The charts have no news: ${error.message}`;
    }
  }
  history();
  const timer = setInterval(history, ASK_EVERY);
  watch((said, error) => {
    if (!said) { health.textContent = error.message; health.className = "health bad"; return; }
    status = said;
    const [sentence, look] = judged(said);
    if (health.textContent !== sentence) health.textContent = sentence;
    health.className = `health ${look}`;
    causes.hidden = said.causes.length < 2;
    fill(causes, said.causes.map((cause) => h("li", {}, cause)));
    tell(tiles, said, found, bounds);
    tellNodes(nodes, said);
  });
  return () => { clearInterval(timer); Object.values(charts).forEach((chart) => chart.close()); };
}

// One sentence, and how it looks.
function judged(status) {
  if (!status.ready) {
    return [status.causes.length === 1 ? `Not healthy, so no pushes are taken: ${status.causes[0]}.`
      : `Not healthy, so no pushes are taken, for ${status.causes.length} causes:`, "bad"];
  }
  const down = (status.workers ?? []).filter((worker) => !worker.status?.ready);
  if (down.length) return [`Healthy, but ${plural(down.length, "worker is", "workers are")} not ready.`, "wait"];
  if (status.gauges.rows_set_aside) return [`Healthy, but ${plural(status.gauges.rows_set_aside, "row")} can't be written and ${status.gauges.rows_set_aside === 1 ? "is" : "are"} tried again alone.`, "wait"];
  if (status.role === "standby") return ["Healthy: this node stands by, and another one takes the pushes.", "good"];
  return [`Healthy: pushes are taken. Up for ${span((status.now - status.started_at) * 1000)}.`, "good"];
}

function tell(tiles, status, found, bounds) {
  if (!status) return;
  const last = found.at(-1);
  const pushes = last ? Object.values(last.outcomes).reduce((a, b) => a + b, 0) / Math.max(last.seconds, 1) : null;
  const shown = [
    ["Sessions", "session", count(status.gauges.sessions)],
    ["Users online", "user", count(status.gauges.users)],
    ["Pushes a second", "outcome", numbers(pushes)],
    ["Time to proof, p99", "time to proof", span(last ? quantile(0.99, last.end_to_end, bounds) : null)],
    ["In flight", "in flight", count(status.gauges.in_flight)],
    ["Waiting at the broker", "queue wait", last?.queue === null || !last ? "–" : count(last.queue)],
    ["Oldest of them", "queue wait", oldest(found)],
  ];
  if (tiles.childElementCount !== shown.length) {
    fill(tiles, shown.map(([name, term]) => h("div", { class: "tile" }, h("dt", {}, name, " ", ask(term)), h("dd", {}))));
  }
  shown.forEach(([, , value], i) => { tiles.children[i].querySelector("dd").textContent = value; });
}

// AMQP does not tell how old the first message of a queue is. What waits now has come since the queue was last seen empty.
function oldest(found) {
  const last = found.at(-1);
  if (!last?.queue) return "–";
  const empty = found.findLast((sample) => sample.queue === 0);
  return empty ? `≤ ${span((last.at - empty.at + READ_EVERY) * 1000)}` : "not known";
}

function draw(charts, found, bounds) {
  const at = found.map((sample) => sample.at);
  const each = (f) => found.map(f);
  const names = [...new Set(found.flatMap((sample) => Object.keys(sample.outcomes)))].sort();
  charts.outcomes.show(at, Object.fromEntries(names.map((name) =>
    [name, each((s) => (s.outcomes[name] ?? 0) / Math.max(s.seconds, 1))])));
  const two = (of) => ({ p50: each((s) => quantile(0.5, s[of], bounds)), p99: each((s) => quantile(0.99, s[of], bounds)) });
  charts.proof.show(at, two("end_to_end"));
  charts.wait.show(at, two("queued"));
  charts.commits.show(at, two("commits"));
  const gauge = (name) => each((s) => s.gauges[name] ?? null);
  charts.sessions.show(at, { sessions: gauge("sessions"), users: gauge("users") });
  charts.flight.show(at, {
    "inbox": gauge("inbox"), "on their way": gauge("in_flight"), "parked": gauge("parked"),
    "rows to write": gauge("rows_waiting"), "receipts to send": gauge("receipts_waiting"),
  });
  charts.queue.show(at, { messages: each((s) => s.queue) });
}

function tellNodes(place, status) {
  if (!status.nodes) {
    fill(place, empty("Which nodes there are is not known now.", "It is read from Postgres: without a delivery log there, each node knows only itself."));
    return;
  }
  const all = status.nodes.reduce((sum, node) => sum + node.sessions, 0);
  fill(place, table("Nodes", ["Node", "State", ["Lease ", ask("lease")], "Sessions", ["Share ", ask("share")], "Takes", "Version", "Since"],
    status.nodes.map((node) => [
      h("b", {}, node.node),
      h("span", { class: `pill ${node.alive ? "good" : "bad"}` }, node.alive ? "alive" : "dead"),
      node.lease_age < 100 ? `${node.lease_age.toFixed(1)} s old` : `${span(node.lease_age * 1000)} old`,
      count(node.sessions),
      all ? `${Math.round((node.sessions / all) * 100)} %` : "–",
      node.taking?.length ? `partition ${node.taking.join(", ")}` : "nothing",
      node.version ?? "–",
      time(node.claimed_at),
    ])));
}
