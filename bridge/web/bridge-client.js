// The bridge's client for browsers and Node: each push once and in order, resumed after every break.
// An ES module without dependencies; docs/clients.md says how to use it.

const KEPT = 4096, STORED = 1000; // ids of finished pushes, to recognise duplicates: in memory, and in `storage`
const USERS = 8; // users whose memories are kept, if the page's tokens name several
const SAVE_EVERY = 64; // pushes, while more wait; pushes that were not saved come again after a reload
const TIMING = { min: 0.5, max: 30, steady: 10, welcome: 15 }; // seconds
const SILENT = 2.5, GRACE = 1; // heartbeats without a frame after which a connection is dead; seconds for frames that already wait
const FRESH = 1, ANSWER = 4; // seconds since the last frame in which nobody asks; for the answer of the bridge
const SHOWN = ["visibilitychange", "resume"]; // of the document: it is looked at again; a frozen one goes on
const LATER = 10; // seconds at most, until a topic is asked for again which the bridge could not record
const NEVER_OPENED = 3, NOT_OPENED = 8; // failed tries in a row, after which onError is called
const STEAL = 8; // seconds without an answer of the tab that has the connection, after which another takes over
const BEAT = 5; // seconds after which the other tabs are told that the connection is alive, if nothing else was
const JWT = /^[\w+-]+\.[\w+-]+\.[\w+-]*$/; // as a subprotocol can carry it
const TOKEN_EXPIRED = 4401, TOO_SLOW = 4408; // all other codes of 4400-4499 mean: do not reconnect

/**
 * Connect, and stay connected until `close()` or until the bridge says not to reconnect. Callbacks are called after
 * the return; those for pushes one at a time: the next waits for the promise of the one before.
 * `url` of the WebSocket; `token`: a JWT, or a function that returns one or a promise of one (null: close for good),
 * called at first, before the token expires, when it has, and when a connection could not be opened (a browser hides why);
 * `tokenBy`: "frame" to send it as the first message, instead of beside the subprotocol; "cookie" where the page has no
 * token, and the cookie that the browser sends says who it is;
 * `onPush({id, tenant?, topic?, event, data, encoding?, ack()})`; `onWithdraw({id, tenant?})`: that push was recalled;
 * `onGap()`: pushes before the next may be missing, reload your state; `onState({phase, ...})`: `connecting`,
 * `open` (user, session), `waiting` (seconds, code, reason, error) or `closed` (code, reason, error);
 * `onError(error)`: errors of callbacks, storage or bridge, something that is not a token, and why it closed for good,
 * each with what to do (`error` of the state, too); `storage`: localStorage or similar, to resume
 * after a reload; `autoAck`: acknowledge each push that onPush has finished; `tabs: "shared"`: one connection for all tabs of the site; `sse: false`: never fall back to a stream
 * of events, where WebSockets are blocked. For tests: `timing`, `after`, `random`, `now`, `WebSocket`, `fetch`.
 */
export function connect(options) {
  if (typeof options.onPush !== "function") throw new TypeError("onPush: a function is needed");
  const { token, tokenBy, tabs } = options;
  if (![undefined, "shared"].includes(tabs)) throw new TypeError('tabs: only "shared" is possible');
  if (![undefined, "frame", "cookie"].includes(tokenBy)) throw new TypeError('tokenBy: "frame" or "cookie" is possible');
  if (tokenBy === "cookie" && token !== undefined) throw new TypeError('token: leave it out, tokenBy says "cookie"');
  return new Connection(options);
}

class Connection {
  duplicates = 0; // pushes that were left out: the bridge resends a push if it can't know that it arrived
  state = { phase: "connecting" }; // the last one given to onState
  #options;
  #turn = 0; // number of the current attempt: compared after each await
  #socket = null;
  #jwt = null; // in use
  #expired = null;
  #mine; // memory of the user that the bridge named last; before the first welcome, of nobody
  #users = new Map(); // user -> memory, for each user that the bridge named, the latest at the end
  #read = null; // the user as read from the token when the bridge named the user of #mine
  #guess; // memory of the user as guessed from the token; from the welcome on, #mine
  #sent = null; // `last` of #guess when the address was made
  #moved = null; // the token whose user was guessed wrong: the library connected again with the right `last`
  #queue = new Set(); // [frame, known] for the application, in order, all for the user of #mine
  #busy = false; // whether #hand is running
  #bye = null;
  #tries = 0; // since the last steady connection
  #patient = false; // whether the bridge has said how long to wait
  #opened = false; // whether any connection ever opened
  #failed = 0; // tries in a row that did not open
  #unopened = false; // the last WebSocket did not open
  #reached = false; // nor did it open before, though plain HTTP got through
  #asking = new AbortController(); // whether plain HTTP gets through
  #askedAt = -Infinity; // when that was asked, while there is no answer
  #blocked = false; // so it is the WebSocket that does not get through: a stream of events comes next
  #heard = 0; // when the last frame came
  #cancel = () => {}; // cancels the timer of the phase: welcome while connecting, steady while open, the next try while waiting
  #unwatch = () => {}; // cancels the timer of the heartbeat, while open
  #said = new Map(); // ref -> [resolve, reject, lost] of what was sent on #socket and is not answered; lost: without it
  #tabs = null; // those that share the connection
  #readies = []; // [resolve, reject] of ready()
  #topics = new Map(); // topic -> {on, had, waits}: what was asked last, whether the bridge ever said ok, promises for the next welcome
  #listeners = new Map(); // event -> functions that get its pushes
  #name = `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 10)}`; // begins the refs of this page
  #refs = 0;

  constructor(options) {
    const { after = inSeconds, random = Math.random, now = inSeconds.now, WebSocket = globalThis.WebSocket } = options;
    const fetch = options.fetch ?? globalThis.fetch?.bind(globalThis);
    const told = options.onError ?? globalThis.reportError ?? console.error;
    const onError = (error) => queueMicrotask(() => told(error)); // if it throws, nothing here must stop
    this.#options = { ...options, after, random, now, WebSocket, fetch, onError, timing: { ...TIMING, ...options.timing } };
    if (options.tabs && globalThis.navigator?.locks && globalThis.BroadcastChannel) this.#share();
    this.#mine = this.#guess = new Memory(null, this.#options);
    globalThis.addEventListener?.("online", this.#wake);
    globalThis.addEventListener?.("offline", this.#cut);
    globalThis.addEventListener?.("pageshow", this.#wake);
    for (const event of SHOWN) globalThis.document?.addEventListener(event, this.#wake);
    queueMicrotask(() => this.state.phase !== "closed" && this.#open());
  }

  /** Deprecated: the name of `duplicates` until version 0.2. It will be removed in 1.0. */
  get doubles() { return this.duplicates; }

  /** Close for good: after this only onState is called, with `closed`, and onError. */
  close() { this.#end({ code: 1000, reason: "closed" }, null); }

  /** A promise of `{user, session}`, resolved when the session is open, or at once; rejected when it is closed for good. */
  ready() {
    return new Promise((resolve, reject) => {
      this.#readies.push([resolve, reject]);
      this.#settle();
    });
  }

  /**
   * Acknowledge a push by its id (and tenant), even one from before a reload; push.ack() does the same. A promise of whether
   * the bridge has noted it; false also where there is no connection for it: it is sent when the push comes again.
   */
  ack(id, tenant) { return this.#ackKey(keyOf({ id, tenant }), true); }

  /**
   * Call `listener(push)` for each push with this event, beside onPush; returns a function that ends it, as `off` does. A
   * push is finished when onPush and all listeners are. Who throws gets it again if the bridge resends it, and nobody else.
   */
  on(event, listener) {
    if (typeof listener !== "function") throw new TypeError(`on("${event}"): a function is needed`);
    this.#listeners.set(event, (this.#listeners.get(event) ?? new Set()).add(listener));
    return () => this.off(event, listener);
  }

  /** End that. */
  off(event, listener) {
    const listeners = this.#listeners.get(event);
    if (listeners?.delete(listener) && !listeners.size) this.#listeners.delete(event);
  }

  /**
   * Publish to the systems that listen for `event`; the promise is resolved when the broker has it. It is rejected with an
   * Error that has a `code` (docs/clients.md lists them), and a `ref`: publish again with that, so that a message which
   * has arrived after all can be told. `topic`: what it is about. Nothing waits for a connection here.
   */
  publish(event, data = null, { topic, ref = `${this.#name}-${++this.#refs}` } = {}) {
    if (this.state.phase !== "open" || this.#socket?.readyState !== 1) {
      return Promise.reject(unpublished("unavailable", "there is no connection, nothing was sent", ref));
    }
    if (this.#socket.oneWay) return Promise.reject(unpublished(ONE_WAY.code, ONE_WAY.message, ref));
    if (this.#said.has(ref) || this.#tabs?.asks(ref)) return Promise.reject(unpublished("busy", "this ref is under way", ref));
    return new Promise((resolve, reject) => {
      this.#socket.send(JSON.stringify({ type: "publish", event, data, topic, ref }));
      const lost = () => reject(unpublished("unknown", "the connection was lost: it may have arrived", ref));
      this.#said.set(ref, [resolve, ({ code, message }) => reject(unpublished(code, message, ref)), lost]);
    });
  }

  /**
   * Get what is pushed to a topic, from the moment on in which the promise is resolved, also after every reconnect. It
   * is rejected with an Error that has a `code` (docs/clients.md lists them). Without a connection it waits for one.
   */
  subscribe(topic) { return this.#want(topic, true); }

  /** End that. What is kept for the user already comes all the same. */
  unsubscribe(topic) { return this.#want(topic, false); }

  // --- topics ---

  #want(topic, on) {
    return new Promise((resolve, reject) => {
      if (this.state.phase === "closed") return reject(unheard(topic, on, CLOSED));
      let wish = this.#topics.get(topic);
      if (wish?.on !== on) {
        for (const [, reject] of wish?.waits ?? []) reject(unheard(topic, !on, REPLACED));
        this.#topics.set(topic, wish = { on, had: false, waits: [] });
      }
      wish.waits.push([resolve, reject]);
      if (this.state.phase === "open") this.#ask(topic, wish);
    });
  }

  // Ask the bridge on this connection, and settle the promises that wait as it answers.
  #ask(topic, wish) {
    const { onError, after, random } = this.#options;
    const socket = this.#socket, ref = `${this.#name}-${++this.#refs}`, waits = wish.waits.splice(0);
    const current = () => this.#topics.get(topic) === wish;
    if (socket.oneWay) { // what the bridge has agreed to before is asked for again on the next WebSocket
      const error = unheard(topic, wish.on, ONE_WAY);
      if (!wish.had) this.#topics.delete(topic);
      if (!waits.length) onError(error);
      for (const [, reject] of waits) reject(error);
      return;
    }
    const ok = () => {
      wish.had = true;
      if (!wish.on && current()) this.#topics.delete(topic);
      for (const [resolve] of waits) resolve();
    };
    const refused = (answer) => {
      const error = unheard(topic, wish.on, answer);
      const later = answer.code === "try_later" && wish.had;
      if (!later && current()) this.#topics.delete(topic);
      if (later) after(LATER * (0.5 + random() / 2), () => socket === this.#socket && current() && this.#ask(topic, wish));
      if (!waits.length) onError(error);
      for (const [, reject] of waits) reject(error);
    };
    const lost = () => { // nothing is lost by asking again
      if (current()) return wish.waits.unshift(...waits);
      for (const [, reject] of waits) reject(unheard(topic, wish.on, REPLACED));
    };
    this.#said.set(ref, [ok, refused, lost]);
    if (!wish.on && this.#tabs?.want(topic)) return this.#take({ type: "ok", ref });
    socket.send(JSON.stringify({ type: wish.on ? "subscribe" : "unsubscribe", topic, ref }));
  }

  // --- the connection ---

  async #open() {
    const { url, token, tokenBy, timing, after, WebSocket, fetch } = this.#options;
    const turn = ++this.#turn;
    this.#tell({ phase: "connecting" });
    const cookie = tokenBy === "cookie";
    let jwt = cookie ? "" : this.#jwt, asked = false;
    try {
      if (jwt === null) jwt = (asked = typeof token === "function") ? await token() : token;
      if (typeof jwt === "string") jwt = jwt.trim();
      if (!cookie && !(asked && jwt === null) && !JWT.test(jwt)) throw new Error(noToken(jwt, asked));
    } catch (error) {
      if (turn !== this.#turn) return;
      if (!asked) return this.#end({ reason: "unusable" }, error);
      this.#retry({ reason: "token", error });
      return this.#options.onError(error);
    }
    if (turn !== this.#turn) return;
    if (jwt === null) return this.#end({ reason: "no_token" }, new Error(NO_TOKEN));
    if (jwt === this.#expired) return this.#end({ code: TOKEN_EXPIRED, reason: "token_expired" }, new Error(SAME_TOKEN));
    const read = userOf(jwt);
    if (this.#tabs && !(await this.#tabs.enter(url, read, cookie))) return;
    if (turn !== this.#turn) return;
    this.#jwt = jwt;
    this.#guess = read === this.#read ? this.#mine : this.#memoryOf(read);
    this.#sent = this.#guess.resume();
    try {
      const address = new URL(url, globalThis.location?.href);
      if (this.#sent !== null) address.searchParams.set("last", this.#sent);
      const entry = tokenBy === undefined ? [`bridge.token.${jwt}`] : [];
      const oneWay = this.#blocked && this.#mayStream();
      const socket = this.#socket = oneWay
        ? new EventStream(address, fetch, cookie ? null : jwt)
        : new WebSocket(address.href, ["bridge.v1.json", ...entry]);
      if (!oneWay) this.#unopened = true;
      socket.onopen = () => {
        if (!oneWay) this.#unopened = this.#forget();
        if (tokenBy === "frame") socket.send(JSON.stringify({ type: "auth", token: jwt }));
      };
    } catch (cause) { // trying again would not help
      return this.#end({ reason: "unusable" }, new Error(`The address ${url} can't be used: ${cause.message}`, { cause }));
    }
    this.#socket.onmessage = ({ data }) => {
      this.#heard = this.#options.now();
      let frame = null;
      try { frame = JSON.parse(data); } catch { /* handled below */ }
      if (typeof frame?.type === "string") this.#take(frame);
      else this.#lost(1006, "no bridge");
    };
    this.#socket.onclose = ({ code, reason }) => this.#lost(code, reason);
    this.#socket.onerror = () => {}; // onclose follows; some WebSockets of Node throw without a listener
    this.#cancel = after(timing.welcome, () => this.#lost(1006, "no welcome"));
    this.#hand(); // another user's token may have stopped it in the attempt before
  }

  // With "frame" the token must not stand in a header, and a stream has no first message.
  #mayStream() {
    const { sse, fetch, tokenBy } = this.#options;
    return sse !== false && tokenBy !== "frame" && typeof fetch === "function";
  }

  #take(frame) {
    const open = this.state.phase === "open"; // the welcome comes first: it names the user of the pushes
    if (open && this.#tabs?.relay(frame)) return;
    if (frame.type === "push" && open) {
      const key = keyOf(frame);
      const known = this.#mine.known.get(key);
      const on = this.#socket;
      if (!known) return this.#enqueue(frame, this.#mine.add({ key, on, acked: false }));
      this.duplicates += 1;
      known.on = on;
      if (known.acked) this.#ack(known, this.#mine);
    } else if (frame.type === "withdraw" && open) {
      this.#enqueue(frame);
    } else if (frame.type === "welcome") {
      if (this.#socket.oneWay) this.#socket.key = frame.key;
      this.#welcome(frame);
    } else if (frame.type === "ping" && this.#socket.oneWay) {
      this.#socket.send(JSON.stringify({ type: "pong", payload: frame.payload }));
    } else if (frame.type === "refresh") {
      this.#refresh(this.#socket);
    } else if (frame.type === "bye") {
      this.#bye = frame;
    } else if (this.#said.has(frame.ref) && (frame.type === "ok" || frame.type === "error")) {
      const [resolve, reject] = this.#said.get(frame.ref);
      this.#said.delete(frame.ref);
      if (frame.type === "ok") resolve();
      else reject(frame);
    } else if (frame.type === "error") {
      this.#options.onError(new Error(`the bridge says: ${frame.message} (${frame.code})`));
    } // heartbeats only set #heard; frames of later versions are ignored
  }

  // The token expires soon. Whatever fails here, the function is called again when it has expired.
  async #refresh(socket) {
    const { token, onError } = this.#options;
    if (typeof token !== "function") return;
    let jwt;
    try {
      jwt = await token();
      if (jwt === null) return;
      if (typeof jwt === "string") jwt = jwt.trim();
      if (!JWT.test(jwt)) throw new Error(noToken(jwt, true));
    } catch (error) { return onError(error); }
    if (socket !== this.#socket || jwt === this.#jwt) return;
    const same = userOf(jwt) === userOf(this.#jwt);
    this.#jwt = jwt;
    if (same && !socket.oneWay) return socket.send(JSON.stringify({ type: "refresh", token: jwt }));
    this.#drop(); // another user has signed in, or a stream needs its token at the beginning
    this.#open();
  }

  #welcome({ user, session, complete, heartbeat, memory }) {
    const { timing, after } = this.#options;
    if (this.state.phase !== "open") { // a second one says that something is missing after all
      const guess = this.#guess;
      this.#become(user);
      if (memory) this.#mine.load(memory);
      const following = this.#tabs?.following;
      if (following) this.#sent = this.#mine.resume(); // `complete` is about the place of the leader
      const last = this.#mine === guess || following ? this.#sent : this.#mine.resume();
      if (last !== this.#sent) { // `complete` is about the `last` of another user
        if (last !== null && this.#moved !== this.#jwt) { // once per token, or two names in turn would be a loop
          this.#moved = this.#jwt;
          this.#drop();
          return this.#open();
        }
        complete = last === null; // a user without a `last` misses nothing; one with a `last` may
      }
      this.#cancel();
      this.#cancel = after(timing.steady, () => { this.#tries = 0; });
      this.#opened = true;
      this.#failed = 0;
      if (heartbeat > 0) this.#watch(heartbeat * SILENT);
      this.#tabs?.welcome({ user, session, complete, heartbeat, oneWay: this.#socket.oneWay });
      for (const [topic, wish] of this.#topics) this.#ask(topic, wish);
      this.#tell({ phase: "open", user, session });
    } else if (!complete) {
      this.#tabs?.post({ type: "welcome", complete });
    }
    if (!complete && this.#socket) this.#enqueue({ type: "gap" });
    this.#hand();
  }

  // Browsers hide pings from pages, so a dead connection is recognised by the absence of frames.
  #watch(limit, again = false) {
    const { after, now } = this.#options;
    const silent = now() - this.#heard;
    if (silent < limit) this.#unwatch = after(limit - silent, () => this.#watch(limit));
    // In a page that was busy or asleep, timers run before the frames that have come meanwhile.
    else if (!again) this.#unwatch = after(GRACE, () => this.#watch(limit, true));
    else this.#lost(1006, "silent", true);
  }

  // Ask something that any bridge answers, whatever its version: no push has this id. A stream has its pings for that.
  #look() {
    const socket = this.#socket, at = this.#options.now();
    if (this.state.phase !== "open" || socket.oneWay || at - this.#heard < FRESH) return;
    const ref = `${this.#name}-${++this.#refs}`, answered = () => {};
    this.#said.set(ref, [answered, answered, answered]);
    socket.send(JSON.stringify({ type: "ack", id: "", ref }));
    this.#options.after(ANSWER, () => {
      if (socket === this.#socket && this.#said.has(ref) && this.#heard <= at) this.#lost(1006, "silent", true);
    });
  }

  #lost(closeCode, closeReason, now = false) {
    if (this.#tabs?.following) return this.#tabs.steal();
    // The bye names code and reason even if the close frame was lost.
    const { code = closeCode, reason = closeReason, retry_after: wait = 0 } = this.#bye ?? {};
    const opened = this.state.phase === "open";
    if (this.#socket?.oneWay) this.#blocked = false; // a WebSocket in between, the network may be another
    else if (this.#unopened) this.#suspect();
    const told = opened || this.#options.tokenBy === "frame"; // then 4401 is about the token
    const renew = told && code === TOKEN_EXPIRED && typeof this.#options.token === "function";
    if (renew) this.#expired = this.#jwt;
    if (renew || !opened) this.#jwt = null;
    this.#drop();
    const cookie = this.#options.tokenBy === "cookie" && code === TOKEN_EXPIRED;
    // Where whoever knows the cookie could not be asked, the session has run out: that is no refusal.
    const over = cookie ? reason !== "token_expired" : code >= 4400 && code < 4500 && code !== TOO_SLOW;
    if (!renew && over) return this.#end({ code, reason }, cookie ? new Error(SIGNED_OUT) : ended(code, reason));
    const hopeless = this.#hopeless(opened || reason === "offline");
    this.#retry({ code, reason, ...hopeless }, wait, (renew || now) && this.#tries === 0);
  }

  // A WebSocket did not open. Where nothing answers it is not the WebSocket that is blocked, so ask, without a token.
  async #suspect() {
    const { url, fetch, timing, now } = this.#options;
    if (!this.#mayStream()) return;
    this.#blocked = this.#reached;
    if (this.#reached || now() - this.#askedAt < timing.welcome) return; // it may take longer than the next try
    this.#askedAt = now();
    this.#asking.abort(); // one at a time
    const asking = this.#asking = new AbortController();
    try {
      const how = { credentials: "omit", cache: "no-store", signal: asking.signal };
      const { status } = await fetch(streamAt(new URL(url, globalThis.location?.href)).href, how);
      if (asking === this.#asking && !asking.signal.aborted) this.#reached = status < 500 && status !== 429;
    } catch { /* nothing answers */ }
    if (asking === this.#asking) this.#askedAt = -Infinity;
    asking.abort(); // it may have a body without end
  }

  // What was known of the network; false.
  #forget() {
    this.#asking.abort();
    this.#askedAt = -Infinity;
    return this.#reached = false;
  }

  // What to check if one try after the other fails: a browser hides the status of the answer.
  #hopeless(told) {
    const { url, onError } = this.#options;
    if (!told) this.#failed += 1;
    const limit = this.#opened ? NOT_OPENED : NEVER_OPENED;
    if (this.#failed < limit) return {};
    const error = new Error(`${this.#failed} tries to open ${url} failed. ${this.#opened ? LOST : WHERE}`);
    if (!told && this.#failed === limit) onError(error);
    return { error };
  }

  #retry(why, wait = 0, now = false) {
    const { timing, random, after } = this.#options;
    const ceiling = Math.min(timing.max, timing.min * 2 ** this.#tries);
    const seconds = now ? 0 : wait + ceiling * (0.5 + random() / 2);
    this.#tries += 1;
    this.#patient = wait > 0;
    this.#cancel = after(seconds, () => this.#open());
    this.#tell({ phase: "waiting", seconds, ...why });
  }

  #wake = ({ type, persisted }) => {
    if (type === "visibilitychange" && document.visibilityState !== "visible" || persisted === false) return;
    if (this.#tabs?.following) return this.#tabs.join();
    const waits = this.state.phase === "waiting" && !this.#patient;
    if (type === "online") this.#blocked = this.#forget(); // it may be another network
    // When the network is back an old socket may be dead unnoticed, and resuming costs almost nothing.
    if (!waits && !(type === "online" && this.#socket)) return this.#look();
    this.#drop();
    this.#open();
  };

  #cut = () => { if (this.#socket && !this.#tabs?.following) this.#lost(1006, "offline"); };

  #drop() {
    this.#cancel();
    this.#unwatch();
    const socket = this.#socket;
    this.#socket = this.#bye = null;
    if (socket) socket.onmessage = socket.onclose = socket.onopen = null;
    socket?.close(1000);
    const said = [...this.#said];
    this.#said.clear();
    for (const [, [, , lost]] of said) lost();
  }

  #end(why, error) {
    if (this.state.phase === "closed") return;
    this.#turn += 1;
    this.#forget();
    this.#drop();
    this.#queue.clear();
    for (const [topic, { on, waits }] of this.#topics) for (const [, reject] of waits) reject(unheard(topic, on, CLOSED));
    this.#topics.clear();
    globalThis.removeEventListener?.("online", this.#wake);
    globalThis.removeEventListener?.("offline", this.#cut);
    globalThis.removeEventListener?.("pageshow", this.#wake);
    for (const event of SHOWN) globalThis.document?.removeEventListener(event, this.#wake);
    this.#tell({ phase: "closed", ...why, ...(error && { error }) });
    this.#tabs?.leave();
    if (error) this.#options.onError(error);
  }

  #tell(state) {
    this.state = state;
    this.#tabs?.told(state);
    try { this.#options.onState?.(state); } catch (error) { this.#options.onError(error); }
    this.#settle();
  }

  // Keep or break the promises of ready().
  #settle() {
    const { phase, user, session, reason, error } = this.state;
    if (phase !== "open" && phase !== "closed") return;
    const over = () => error ?? new Error(`The connection is closed for good (${reason}).`);
    for (const [resolve, reject] of this.#readies.splice(0)) phase === "open" ? resolve({ user, session }) : reject(over());
  }

  // --- calling the application, one callback after the other ---

  #enqueue(frame, known) {
    this.#queue.add([frame, known]);
    this.#hand();
  }

  async #hand() {
    if (this.#busy) return;
    this.#busy = true;
    let done = 0;
    for (const item of this.#queue) { // including those that are added meanwhile
      const mine = this.#mine;
      if (mine !== this.#guess) break; // the token may be another user's: wait for the welcome
      this.#queue.delete(item);
      try { await this.#handle(item, mine); } catch (error) { this.#options.onError(error); }
      done += 1;
      if (!this.#queue.size || done % SAVE_EVERY === 0 || mine !== this.#guess) mine.save();
    }
    this.#busy = false;
  }

  // `mine` is a parameter since the bridge may name another user while onPush runs.
  async #handle([frame, known], mine) {
    const { onWithdraw, onGap, autoAck } = this.#options;
    if (frame.type === "gap") return await onGap?.();
    if (frame.type === "withdraw") return await onWithdraw?.({ id: frame.id, tenant: frame.tenant });
    try {
      await this.#give({ ...frame, ack: () => this.#ack(known, mine, true) }, known.key, mine);
    } catch (error) {
      if (known.acked) mine.done(known);
      else mine.known.delete(known.key); // onPush gets it again if the bridge resends it
      throw error;
    }
    mine.done(known);
    mine.last = frame.id;
    if (autoAck && !known.acked) this.#ack(known, mine);
  }

  // Give a push to those who have not finished it before. Throws once all are through, if one of them threw.
  async #give(push, key, mine) {
    const { onPush, onError } = this.#options;
    const finished = mine.partly.get(key) ?? new Set();
    const errors = [];
    const listeners = [onPush, ...this.#listeners.get(push.event) ?? []].filter((listener) => !finished.has(listener));
    await Promise.all(listeners.map(async (listener) => {
      try {
        await listener(push);
        finished.add(listener);
      } catch (error) { errors.push(error); }
    }));
    mine.partly.delete(key);
    if (!errors.length) return;
    mine.partly.set(key, finished);
    if (mine.partly.size > KEPT) mine.partly.delete(mine.partly.keys().next().value);
    for (const error of errors.splice(1)) onError(error);
    throw errors[0];
  }

  // If its connection is closed, the ack is sent when the push comes again: no other session may ack it.
  #ack(known, mine, asked = false) {
    const socket = this.#socket, may = socket?.readyState === 1 && known.on === socket; // WebSocket.OPEN
    let noted = false;
    if (may) {
      const [id, tenant = null] = known.key.split("\n");
      const ref = asked ? `${this.#name}-${++this.#refs}` : undefined;
      const no = (resolve) => () => resolve(false);
      const acked = this.#tabs?.acked(known.key); // by another tab
      if (asked) noted = new Promise((resolve) => this.#said.set(ref, [() => resolve(true), no(resolve), no(resolve)]));
      if (asked || !acked) socket.send(JSON.stringify({ type: "ack", id, tenant, ref }));
    }
    const news = !known.acked;
    known.acked = true;
    if (news && !(this.#busy && mine === this.#mine)) mine.save();
    return Promise.resolve(noted);
  }

  #ackKey(key, asked) {
    const mine = this.#mine;
    return this.#ack(mine.known.get(key) ?? mine.done(mine.add({ key, on: null, acked: false })), mine, asked);
  }

  // --- one connection for all tabs ---

  #share() {
    const { storage } = this.#options;
    const tabs = this.#tabs = new Tabs({
      ...this.#options,
      state: () => this.state,
      memory: () => this.#mine.text(),
      asks: (ref) => this.#said.has(ref),
      wants: (topic) => this.#topics.get(topic)?.on === true,
      send: (frame) => { if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(frame)); },
      awake: () => this.#wake({ type: "look" }),
      lead: () => {
        this.#turn += 1;
        this.#jwt = null; // it may have expired
        this.#drop();
        this.#open();
      },
      show: (state) => { // as it is in the tab that has the connection, or "connecting" until that has answered
        this.#turn += 1;
        if (state.phase === "closed") return this.#end({ code: state.code, reason: state.reason }, state.error);
        this.#drop();
        if (state.phase !== "connecting" || this.state.phase !== "connecting") this.#tell(state);
      },
      take: (frame) => {
        this.#heard = this.#options.now();
        if (frame.type === "welcome" && this.state.phase !== "open") this.#socket = tabs.socket(frame);
        this.#take(frame);
      },
    });
    this.#options.storage = storage && { // the one with the connection stores for all
      getItem: (key) => storage.getItem(key),
      setItem: (key, text) => { if (!tabs.following) storage.setItem(key, text); },
    };
  }

  // --- whose memory it is ---

  #memoryOf(user) {
    if (user === this.#guess.user) return this.#guess;
    return this.#users.get(user) ?? new Memory(user, this.#options);
  }

  #become(user) {
    const before = this.#mine;
    const mine = this.#mine = this.#guess = this.#memoryOf(user);
    this.#read = userOf(this.#jwt);
    if (mine === before) return;
    for (const [, known] of this.#queue) if (known) before.known.delete(known.key); // their user gets them again
    this.#queue.clear();
    if (this.#busy) before.save();
    this.#users.delete(user);
    this.#users.set(user, mine);
    const [[first, oldest]] = this.#users;
    if (this.#users.size > USERS) {
      this.#users.delete(first);
      oldest.key = null; // never stored again: if its user connects again, a new memory is loaded
    }
    if (before.user === null) for (const key of before.known.keys()) this.#ackKey(key); // acked before the welcome
  }
}

// One connection for all tabs of a site that have the same user. The one that holds the lock, the leader, has the connection. It sends
// each frame to the others over a channel, and passes on what they say. Each tab keeps its own order, memory and callbacks, so
// another can take over where it is itself: what comes twice then is left out in each tab.
class Tabs {
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
    if (session !== known && this.#own.state().phase === "open") this.#own.show({ phase: "connecting" });
    this.#own.take(frame);
  }

  // --- in a tab that follows ---

  /** In place of a WebSocket, for one session. */
  socket({ session, oneWay }) {
    return { readyState: 1, oneWay, close() {}, send: (text) => this.#send({ kind: "say", session, frame: JSON.parse(text) }) };
  }

  // --- in the leader; the connection calls these in all tabs ---

  #greet(to, { fresh }) {
    this.#own.awake();
    const state = this.#own.state();
    if (state.phase !== "open") return this.#send({ to, hello: true, ...stateOf(state) });
    const memory = fresh ? this.#own.memory() : undefined; // a new tab begins where this one is
    this.#send({ to, hello: true, kind: "frame", count: this.#count, frame: { ...this.#welcome, memory } });
  }

  #pass(frame, from) {
    const { type, ref, topic } = frame;
    const answer = (what) => this.#send({ to: from, kind: "frame", count: this.#count, frame: { ref, ...what } });
    if (type === "ack" && this.acked(keyOf(frame)) && ref === undefined) return;
    if (ref !== undefined && (this.#refs.has(ref) || this.#own.asks(ref))) {
      return answer({ type: "error", code: "busy", message: "this ref is under way" });
    }
    if (type === "subscribe") this.#topics.set(topic, (this.#topics.get(topic) ?? new Set()).add(from));
    if (type === "unsubscribe") {
      this.#topics.get(topic)?.delete(from);
      if (this.#own.wants(topic) || this.want(topic)) return answer({ type: "ok" });
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
    if (type === "push") this.#acks.delete(keyOf(frame)); // it is to be acknowledged again
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
    if (state.phase !== "closed" || state.code >= 4400) this.#send(stateOf(state));
  }
}

// As it can be sent: an error may be anything.
function stateOf({ error, ...state }) {
  return { kind: "state", state: { ...state, ...(error && { error: String(error.message) }) } };
}

// Where the stream of events is, beside a WebSocket.
function streamAt(address) {
  const events = new URL(address);
  events.protocol = events.protocol.replace("ws", "http");
  events.pathname = events.pathname.replace(/ws$/, "sse");
  return events;
}

// A stream of events in place of a WebSocket. What the page says goes by requests of their own: an ack, and the pong that
// proves what came before its ping. Nothing else can be said there.
class EventStream {
  oneWay = true;
  readyState = 0;
  key = null; // as the welcome said it
  #fetch;
  #acks; // where acks go
  #over = new AbortController();

  constructor(address, fetch, jwt) {
    const events = streamAt(address);
    this.#acks = new URL(events);
    this.#acks.pathname = events.pathname.replace(/sse$/, "v1/ack");
    this.#fetch = fetch;
    this.#read(events, jwt === null ? { credentials: "include" } : { headers: { Authorization: `Bearer ${jwt}` } });
  }

  send(text) {
    const { type, id, tenant, payload, ref } = JSON.parse(text);
    if (type === "pong") this.#say({ pong: payload });
    else if (type === "ack") this.#say(tenant == null ? { id } : { id, tenant }, ref);
  }

  close() {
    this.readyState = 3;
    this.#over.abort();
  }

  // A request that fails has told nothing: the bridge sends the push again, or ends the stream.
  #say(said, ref) {
    const address = new URL(this.#acks);
    address.search = new URLSearchParams(said);
    const headers = { Authorization: `Bearer ${this.key}` };
    const told = (ok) => { if (ref !== undefined) this.onmessage?.({ data: JSON.stringify({ type: ok ? "ok" : "error", ref }) }); };
    this.#fetch(address.href, { method: "POST", headers, keepalive: true }).then(({ ok }) => told(ok), () => told(false));
  }

  async #read(address, how) {
    let reason = "";
    try {
      const answer = await this.#fetch(address.href, { ...how, cache: "no-store", signal: this.#over.signal });
      if (answer.status !== 200 || !answer.headers.get("content-type")?.startsWith("text/event-stream")) {
        reason = `HTTP ${answer.status}`;
      } else {
        this.readyState = 1;
        this.onopen?.();
        await this.#messages(answer.body.pipeThrough(new TextDecoderStream()).getReader());
      }
    } catch { /* the connection broke, or was closed */ }
    this.close();
    this.onclose?.({ code: 1006, reason });
  }

  async #messages(reader) {
    let rest = "", data = [];
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data: ")) data.push(line.slice(6));
        else if (line === "" && data.length) {
          this.onmessage?.({ data: data.join("\n") });
          data = [];
        }
      }
    }
  }
}

// What is remembered for one user. An id is never forgotten while its push waits or onPush works on it; of the finished
// ones, the oldest are forgotten first.
class Memory {
  last = null; // id of the push that onPush finished last
  partly = new Map(); // key -> who has finished the push, while others have thrown
  known = new Map(); // key -> {key, on: the socket it came on last, acked: by the application}
  #done = []; // those that are finished, in order; the forgotten ones come first
  #forgotten = 0; // how many are forgotten: removing each from the array would move all of it
  #again = 0; // how many were not finished when the connection began
  #options;

  constructor(user, options) {
    const { url, storage, onError } = this.#options = options;
    this.user = user;
    this.key = storage && user ? `bridge ${url} ${user}` : null; // in `storage`
    if (!this.key) return;
    try { this.load(storage.getItem(this.key)); } catch (error) { onError(error); }
  }

  load(text) {
    const { last = null, ids } = JSON.parse(text) ?? { ids: [] };
    for (const [key, acked] of ids) if (!this.known.has(key)) this.done(this.add({ key, on: null, acked: acked === 1 }));
    this.last = last;
  }

  text() {
    const ids = this.#done.slice(-STORED).map(({ key, acked }) => [key, acked ? 1 : 0]);
    return JSON.stringify({ last: this.last, ids });
  }

  /** Begin a connection and return its `last`. Pushes that are not finished now come again on it; they may be finished by then. */
  resume() {
    this.#again = this.known.size - (this.#done.length - this.#forgotten);
    return this.last;
  }

  add(known) {
    this.known.set(known.key, known);
    return known;
  }

  done(known) {
    this.#done.push(known);
    while (this.#done.length - this.#forgotten > KEPT + this.#again) {
      this.known.delete(this.#done[this.#forgotten].key);
      this.#forgotten += 1;
    }
    if (this.#forgotten > this.#done.length / 2) {
      this.#done.splice(0, this.#forgotten);
      this.#forgotten = 0;
    }
    return known;
  }

  save() {
    if (!this.key) return;
    try { this.#options.storage.setItem(this.key, this.text()); } catch (error) { this.#options.onError(error); }
  }
}

// An id is unique within its tenant; neither has control characters.
function keyOf({ id, tenant }) { return tenant ? `${id}\n${tenant}` : id; }

function inSeconds(seconds, then) {
  const timer = setTimeout(then, seconds * 1000);
  return () => clearTimeout(timer);
}
inSeconds.now = () => performance.now() / 1000;

// --- messages that say what to do ---

const AGAIN = "then call connect() again";
const NO_TOKEN = `No token: the function \`token\` returned null, so nobody is signed in. Sign in, ${AGAIN}.`;
const SIGNED_OUT = `Whoever knows the cookie says that this session is over (4401): sign in again, ${AGAIN}.`;
const TOKEN_OVER = "The token has expired: give a function as `token`, which fetches a new one whenever it is called.";
const SAME_TOKEN = "The token has expired, and the function `token` returned the same one again: it must fetch a new one.";
const WHERE = "Is a bridge running, and is this its WebSocket port and path (usually port 8181, /ws; not the ops port)? "
  + "Does it accept this token, or cookie, and this page's origin? With BRIDGE_LOG_LEVEL=debug its log says why it refuses.";
const LOST = "It was open before: is the bridge still running, and does it accept the new token? With BRIDGE_LOG_LEVEL=debug "
  + "its log says why it refuses.";
const ENDS = {
  [TOKEN_EXPIRED]: TOKEN_OVER,
  4403: `The session was revoked (4403): sign in again, ${AGAIN}.`,
  4409: `A newer session of this user replaced this one (4409): close the other, ${AGAIN}.`,
  4429: `This client did more than the bridge allows (4429): wait a while, ${AGAIN}.`,
};

function ended(code, reason) {
  const said = `The bridge closed the session with ${code}${reason ? ` ${reason}` : ""}, which means not to reconnect: find out`;
  return new Error(ENDS[code] ?? `${said} why, ${AGAIN}.`);
}

function unpublished(code, why, ref) {
  return Object.assign(new Error(`not published: ${why} (${code})`), { code, ref });
}

const CLOSED = { code: "unavailable", message: "the connection is closed for good" };
const ONE_WAY = { code: "one_way", message: "WebSockets are blocked here, and a stream of events has no way back for this" };
const REPLACED = { code: "replaced", message: "the opposite was asked for before the bridge could answer" };

function unheard(topic, on, { code, message }) {
  const text = `not ${on ? "subscribed to" : "unsubscribed from"} ${topic}: ${message} (${code})`;
  return Object.assign(new Error(text), { code, topic });
}

// Describes what came in place of a token. It is not quoted: it may be almost a token.
function noToken(got, asked) {
  const text = typeof got === "string" ? got : "";
  const what = typeof got !== "string" ? (got === undefined ? "undefined" : `of type ${typeof got}`)
    : !text ? "empty"
      : /^<|<\/?(html|body)/i.test(text) ? "a web page (an error, or a page to sign in?)"
        : /^[[{"]/.test(text) ? "JSON, or in quotes: take the token out of it"
          : JWT.test(text.replace(/[/=]/g, "-")) ? "in base64 with / or =, which no subprotocol can carry: make it base64url"
            : "not a JWT, which has three parts with dots between them";
  return `The token is ${what}. ${asked ? "Look at what the function `token` fetches: check `ok` and the type of the answer." : ""}`.trim();
}

// The user of a token, read as the bridge reads it; "" if it can't be read. It is only a guess: older engines do not give
// the digits of an integer, and beyond 2^53 its value is not exact.
function userOf(jwt) {
  try {
    const text = atob(jwt.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
    const claims = new TextDecoder().decode(Uint8Array.from(text, (c) => c.charCodeAt(0)));
    const exact = (_, value, context) => (typeof value === "number" ? context?.source ?? value : value);
    const { sub, uid } = JSON.parse(claims, exact);
    return String(sub ?? uid ?? "");
  } catch { return ""; }
}
