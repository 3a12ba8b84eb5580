// A room: shows what is said there, and says what is typed. What others wrote is put on the page as text, never as markup.

import { connect } from "./bridge-client.js";

const $ = (id) => document.getElementById(id);
const { user, room } = Object.fromEntries(new URLSearchParams(location.search));
const topic = `room.${room}`;
const unsent = []; // {text, ref, item}: typed and not with the broker yet, the oldest first

if (user && room) await enter();
else $("door").hidden = false;

async function enter() {
  $("name").textContent = document.title = `${user} in ${room}`;
  const url = await ask("address");
  const bridge = connect({
    url,
    token: () => ask(`token?user=${encodeURIComponent(user)}`),
    autoAck: true,
    onPush: (push) => { if (push.topic === topic) show(`${push.data.user}: ${push.data.text}`); },
    onGap: () => { show("Something may be missing here.", "note"); },
    onState: ({ phase }) => { $("state").textContent = phase; },
    onError: problem,
  });
  $("say").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("text").value.trim();
    $("text").value = "";
    if (!text) return;
    unsent.push({ text, ref: crypto.randomUUID(), item: show(`${user}: ${text}`, "waiting") });
    if (unsent.length === 1) sayAll(bridge);
  });
  $("room").hidden = false;
  $("text").focus();
  await again(() => bridge.subscribe(topic), ["try_later"]);
}

// One after the other, each until the broker has it. Under the same ref it may be said again: it stays one message.
async function sayAll(bridge) {
  while (unsent.length) {
    const [{ text, ref, item }] = unsent;
    const later = ["busy", "unavailable", "unknown", "nobody_listens"];
    await again(() => bridge.publish("chat.said", { text }, { topic, ref }), later);
    item.remove(); // it comes back as a push, to everybody in the same place
    unsent.shift();
  }
}

async function again(what, later) {
  for (;;) {
    try {
      await what();
      $("problem").textContent = "";
      return;
    } catch (error) {
      problem(error);
      if (!later.includes(error.code)) return;
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
}

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.text();
}

function problem(error) { $("problem").textContent = error.message; }

// What is said goes above what is not sent yet.
function show(text, kind = "") {
  const item = document.createElement("li");
  item.textContent = text;
  item.className = kind;
  const place = kind === "waiting" ? null : $("said").querySelector(".waiting");
  $("said").insertBefore(item, place);
  $("said").lastElementChild.scrollIntoView({ block: "end" });
  return item;
}
