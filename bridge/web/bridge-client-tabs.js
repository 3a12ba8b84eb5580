// One connection for all tabs, for `tabs: "shared"` of bridge-client.js, which loads this file.

const KEPT = 4096; // ids of pushes that were acknowledged
const STEAL = 8; // seconds without an answer of the tab that has the connection, after which another takes over
const HEARD = 1; // seconds in which the other tabs hear that it is the end for all of them, before the lock is free
const BEAT = 5; // seconds after which the other tabs are told that the connection is alive, if nothing else was

// One connection for all tabs of a site that have the same user. The one that holds the lock, the leader, has the connection. It sends
// each frame to the others over a channel, and passes on what they say. Each tab keeps its own order, memory and callbacks, so
// another can take over where it is itself: what comes twice then is left out in each tab.
export class Tabs {
  leading = false;
  #own; // what the connection of this tab can do
  #name = null; // of the lock and the channel
  #id = Math.random().toString(36).slice(2);
  #channel = null;
  #leader = null; // whose frames count here
  #release = () => {}; // gives up the lock, or the place in its queue
  #cancel = () => {}; // cancels the timer until this tab takes over
  #asked = false; // whether this tab waits for the leader's answer
  #welcome = null; // in the leader: the welcome of the session
  #session = null; // the last session, and how many frames came on it: who comes back knows whether some are missing
  #count = 0;
  #posted = 0; // when the last frame went to the other tabs
  #refs = new Map(); // ref -> tab that waits for the answer
  #topics = new Map(); // topic -> tabs that have subscribed to it in this session
  #acks = new Set(); // keys of pushes acknowledged in this session

  constructor(own) { this.#own = own; }

  get following() { return this.#name !== null && !this.leading; }

  /** Whether this tab shall have a connection; if not, it follows. A tab whose user can't be read has its own. */
  async enter(url, user, cookie) {
    let name = null;
    try { name = `bridge ${new URL(url, location.href).href} ${user}`; } catch { /* the connection will tell */ }
    if (name !== null && name === this.#name) return this.leading;
    this.leave();
    if (name === null || !user && !cookie) return true;
    try {
      this.#channel = new BroadcastChannel(name);
      this.#channel.onmessage = ({ data }) => this.#hear(data);
      this.#name = name;
      if (await this.#request({ ifAvailable: true })) return true;
    } catch { // no site that could share anything
      this.leave();
      return true;
    }
    if (name !== this.#name) return false; // closed meanwhile
    this.#queue();
    this.join();
    return false;
  }

  leave() {
    this.#cancel();
    this.#channel?.close();
    this.#channel = this.#name = this.#leader = this.#session = this.#welcome = null;
    this.leading = false;
    this.#release();
  }

  // A promise of whether this tab has the lock now. It has it until #release, or until another tab steals it.
  #request(how, then = () => {}) {
    const name = this.#name;
    let granted = false;
    return new Promise((resolve, reject) => {
      const held = navigator.locks.request(name, how, (lock) => {
        if (!lock || name !== this.#name) return resolve(false);
        this.#cancel();
        this.leading = granted = true;
        this.#welcome = null;
        this.#send({ kind: "lead" });
        const until = new Promise((done) => { this.#release = done; });
        resolve(true);
        then();
        return until;
      });
      held.catch((error) => {
        reject(error);
        if (name !== this.#name || !granted) return;
        this.leading = false; // stolen: this tab was frozen
        this.#own.show({ phase: "connecting" });
        this.#queue();
        this.join();
      });
    });
  }

  #queue() {
    const waiting = new AbortController();
    this.#release = () => waiting.abort();
    this.#request({ signal: waiting.signal }, this.#own.lead).catch(() => {});
  }

  /** Ask the leader where things are; without an answer take over. */
  join() {
    this.#asked = true;
    this.#send({ kind: "join", fresh: this.#session === null });
    this.#cancel();
    this.#cancel = this.#own.after(STEAL, () => this.steal());
  }

  steal() {
    this.#cancel();
    this.#release();
    this.#request({ steal: true }, this.#own.lead).catch(() => {});
  }

  #send(message) { this.#channel?.postMessage({ from: this.#id, ...message }); }

  #hear({ from, to, kind, ...said }) {
    if (this.leading) {
      if (kind === "join") this.#greet(from, said);
      else if (kind === "say" && said.session === this.#welcome?.session) this.#pass(said.frame, from);
      else if (kind === "left") for (const tabs of this.#topics.values()) tabs.delete(from);
      return;
    }
    if (to !== undefined && to !== this.#id) return;
    if (kind === "lead") this.#own.show({ phase: "connecting" });
    if (kind === "lead" || said.hello && this.#asked) { // one that has lost the lock while it was frozen may still answer
      this.#leader = from;
      this.#asked = false;
    } else if (said.hello) return;
    if (from !== this.#leader) return;
    this.#cancel();
    if (kind === "state") {
      const { error, ...state } = said.state;
      this.#own.show(error === undefined ? state : { ...state, error: new Error(error) });
    } else if (kind === "frame") this.#take(said);
  }

  #take({ frame, count, hello }) {
    const known = this.#session, { session = known } = frame;
    if (hello) frame.complete = known === null || session === known && count === this.#count;
    this.#count = count;
    this.#session = session;
    if (session !== known && this.#own.connection.state.phase === "open") this.#own.show({ phase: "connecting" });
    this.#own.take(frame);
  }

  /** The storage of the application: the tab with the connection stores for all. */
  storage() {
    const { storage } = this.#own;
    return storage && {
      getItem: (key) => storage.getItem(key),
      setItem: (key, text) => { if (!this.following) storage.setItem(key, text); },
    };
  }

  // --- in a tab that follows ---

  /** In place of a WebSocket, for one session. */
  socket({ session, oneWay }) {
    return { readyState: 1, oneWay, close() {}, send: (text) => this.#send({ kind: "say", session, frame: JSON.parse(text) }) };
  }

  // --- in the leader; the connection calls these in all tabs ---

  #greet(to, { fresh }) {
    this.#own.awake();
    const state = this.#own.connection.state;
    if (state.phase !== "open") return this.#send({ to, hello: true, ...stateOf(state) });
    const memory = fresh ? this.#own.memory() : undefined; // a new tab begins where this one is
    this.#send({ to, hello: true, kind: "frame", count: this.#count, frame: { ...this.#welcome, memory } });
  }

  #pass(frame, from) {
    const { type, ref, topic } = frame;
    const answer = (what) => this.#send({ to: from, kind: "frame", count: this.#count, frame: { ref, ...what } });
    if (type === "ack" && this.acked(this.#own.keyOf(frame)) && ref === undefined) return;
    if (ref !== undefined && (this.#refs.has(ref) || this.#own.said.has(ref))) {
      return answer({ type: "error", code: "busy", message: "this ref is under way" });
    }
    if (type === "subscribe") this.#topics.set(topic, (this.#topics.get(topic) ?? new Set()).add(from));
    if (type === "unsubscribe") {
      this.#topics.get(topic)?.delete(from);
      if (this.#own.topics.get(topic)?.on || this.want(topic)) return answer({ type: "ok" });
    }
    if (ref !== undefined) this.#refs.set(ref, from);
    this.#own.send(frame);
  }

  /** Whether another tab waits for the answer to this ref. */
  asks(ref) { return this.#refs.has(ref); }

  /** Whether another tab wants this topic. */
  want(topic) { return this.leading && this.#topics.get(topic)?.size > 0; }

  /** Note that a push is acknowledged; whether it was before. A tab that follows leaves that to the leader. */
  acked(key) {
    if (!this.leading || this.#acks.has(key)) return this.leading;
    this.#acks.add(key);
    if (this.#acks.size > KEPT) this.#acks.delete(this.#acks.values().next().value);
    return false;
  }

  post(frame) {
    if (!this.leading) return;
    this.#posted = this.#own.now();
    this.#count += 1;
    this.#send({ kind: "frame", count: this.#count, frame });
  }

  welcome(welcome) {
    if (!this.leading) return;
    this.#count = 0;
    this.#acks.clear();
    this.#topics.clear();
    this.#session = welcome.session;
    this.post(this.#welcome = { type: "welcome", ...welcome });
  }

  /** Give a frame to the tabs that it is for; whether it is for another than this one alone. */
  relay(frame) {
    if (!this.leading) return false;
    const { type, ref } = frame;
    const to = type === "ok" || type === "error" ? this.#refs.get(ref) : undefined;
    if (to !== undefined) {
      this.#refs.delete(ref);
      this.#send({ to, kind: "frame", count: this.#count, frame });
    }
    if (type === "push") this.#acks.delete(this.#own.keyOf(frame)); // it is to be acknowledged again
    if (type === "push" || type === "withdraw") this.post(frame);
    else if (this.#own.now() - this.#posted > BEAT) this.post({ type: "heartbeat" });
    return to !== undefined;
  }

  told(state) {
    if (!this.leading) {
      if (state.phase === "closed") this.#send({ kind: "left" });
      return;
    }
    if (state.phase === "open") return; // the welcome has said so
    this.#refs.clear();
    // Where only this tab ends, as without a token, another takes over.
    if (state.phase === "closed" && !(state.code >= 4400)) return;
    this.#send(stateOf(state));
    if (state.phase !== "closed") return;
    const release = this.#release; // the lock may be faster than the channel, and who has the lock would connect
    this.#release = () => this.#own.after(HEARD, release);
  }
}

// As it can be sent: an error may be anything.
function stateOf({ error, ...state }) {
  return { kind: "state", state: { ...state, ...(error && { error: String(error.message) }) } };
}
