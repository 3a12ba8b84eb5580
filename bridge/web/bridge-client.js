// The bridge's client for browsers and Node: each push once and in order, resumed after every break.
// An ES module without dependencies; docs/clients.md says how to use it. Those beside it whose names begin as its own are
// loaded where they are needed: -tabs.js for `tabs`, -stream.js where WebSockets are blocked, -words.js for errors.

const KEPT = 4096, STORED = 1000; // ids of finished pushes, to recognise duplicates: in memory, and in `storage`
const USERS = 8; // users whose memories are kept, if the page's tokens name several
const SAVE_EVERY = 64; // pushes, while more wait; pushes that were not saved come again after a reload
const TIMING = { min: 0.5, max: 30, steady: 10, welcome: 15 }; // seconds
const SILENT = 2.5, GRACE = 1; // heartbeats without a frame after which a connection is dead; seconds for frames that already wait
const FRESH = 1, ANSWER = 4; // seconds since the last frame in which nobody asks; for the answer of the bridge
const WORDS = 1; // seconds at most, until an error is told without the words for it
const LATER = 10; // seconds at most, until a topic is asked for again which the bridge could not record
const NEVER_OPENED = 3, NOT_OPENED = 8; // failed tries in a row, after which onError is called
const CHECK = "Is this a bridge's port and path (usually 8181, /ws)? "
  + "Does it accept token or cookie, and this page's origin? With BRIDGE_LOG_LEVEL=debug its log says why not.";
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
  const { token, tokenBy, tabs, onPush } = options;
  need(typeof onPush === "function", "onPush: a function is needed");
  need([undefined, "shared"].includes(tabs), 'tabs: only "shared" is possible');
  need([undefined, "frame", "cookie"].includes(tokenBy), 'tokenBy: only "frame" or "cookie" is possible');
  need(tokenBy !== "cookie" || token === undefined, 'token: leave it out, tokenBy says "cookie"');
  return new Connection(options);
}

function need(right, otherwise) { if (!right) throw new TypeError(otherwise); }

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
  #reached = null; // nor did it open before, though plain HTTP got through: the class EventStream, which was loaded then
  #asking = new AbortController(); // whether plain HTTP gets through
  #askedAt = -Infinity; // when that was asked, while there is no answer
  #blocked = null; // so it is the WebSocket that does not get through: that class, as a stream of events comes next
  #heard = 0; // when the last frame came
  #cancel = () => {}; // cancels the timer of the phase: welcome while connecting, steady while open, the next try while waiting
  #unwatch = () => {}; // cancels the timer of the heartbeat, while open
  #said = new Map(); // ref -> {ok, refused, lost}: what to call when what was sent on #socket is answered, or never will be
  #loading = null; // what shares the connection is being loaded
  #tabs = null; // those that share the connection
  #readies = []; // [resolve, reject] of ready()
  #topics = new Map(); // topic -> {on, had, waits}: what was asked last, whether the bridge ever said ok, promises for the next welcome
  #listeners = new Map(); // event -> functions that get its pushes
  #over = new AbortController(); // until it is closed for good
  #name = `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 10)}`; // begins the refs of this page
  #refs = 0;

  constructor(options) {
    const { after = inSeconds, random = Math.random, now = inSeconds.now, WebSocket = globalThis.WebSocket } = options;
    const fetch = options.fetch ?? globalThis.fetch?.bind(globalThis);
    const told = options.onError ?? globalThis.reportError ?? console.error;
    const onError = (error) => queueMicrotask(() => told(error)); // if it throws, nothing here must stop
    this.#options = { ...options, after, random, now, WebSocket, fetch, onError, timing: { ...TIMING, ...options.timing } };
    if (options.tabs && globalThis.navigator?.locks && globalThis.BroadcastChannel) this.#loading = this.#share();
    this.#mine = this.#guess = new Memory(null, this.#options);
    const listen = (target, ...events) => {
      for (const event of events) target?.addEventListener?.(event, this.#wake, { signal: this.#over.signal });
    };
    listen(globalThis, "online", "offline", "pageshow");
    listen(globalThis.document, "visibilitychange", "resume"); // it is looked at again; a frozen one goes on
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
    need(typeof listener === "function", `on("${event}"): a function is needed`);
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
  publish(event, data = null, { topic, ref = this.#ref() } = {}) {
    return new Promise((resolve, reject) => {
      const refused = (why) => reject(refusal("published", why, { ref }));
      if (!this.#isOpen || this.#socket?.readyState !== 1) return refused({ code: "unavailable" });
      if (this.#socket.oneWay) return refused({ code: "one_way" });
      if (this.#said.has(ref) || this.#tabs?.asks(ref)) return refused({ code: "busy" });
      this.#say({ type: "publish", event, data, topic, ref }, resolve, refused, () => refused({ code: "unknown" }));
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
      if (this.state.phase === "closed") return reject(notHeard(topic, on, { code: "unavailable" }));
      let wish = this.#topics.get(topic);
      if (wish?.on !== on) {
        for (const [, reject] of wish?.waits ?? []) reject(notHeard(topic, !on, { code: "replaced" }));
        this.#topics.set(topic, wish = { on, had: false, waits: [] });
      }
      wish.waits.push([resolve, reject]);
      if (this.#isOpen) this.#ask(topic, wish);
    });
  }

  // Ask the bridge on this connection, and settle the promises that wait as it answers.
  #ask(topic, wish) {
    const { onError, after, random } = this.#options;
    const socket = this.#socket, ref = this.#ref(), waits = wish.waits.splice(0);
    const current = () => this.#topics.get(topic) === wish;
    const broken = (why) => {
      const error = notHeard(topic, wish.on, why);
      for (const [, reject] of waits) reject(error);
      return error;
    };
    const ok = () => {
      wish.had = true;
      if (!wish.on && current()) this.#topics.delete(topic);
      for (const [resolve] of waits) resolve();
    };
    const refused = (why) => {
      // What the bridge has agreed to before: a stream has no way to ask, but the next WebSocket has.
      const later = wish.had && why.code === "try_later";
      if (!later && !(wish.had && socket.oneWay) && current()) this.#topics.delete(topic);
      if (later) after(LATER * (0.5 + random() / 2), () => socket === this.#socket && current() && this.#ask(topic, wish));
      if (!waits.length) onError(broken(why));
      else broken(why);
    };
    const lost = () => { // nothing is lost by asking again
      if (current()) wish.waits.unshift(...waits);
      else broken({ code: "replaced" });
    };
    if (socket.oneWay) return refused({ code: "one_way" });
    if (!wish.on && this.#tabs?.want(topic)) return ok();
    this.#say({ type: wish.on ? "subscribe" : "unsubscribe", topic, ref }, ok, refused, lost);
  }

  // --- what is said, and answered ---

  get #isOpen() { return this.state.phase === "open" && this.#socket !== null; }

  #ref() { return `${this.#name}-${++this.#refs}`; }

  #send(frame) { this.#socket.send(JSON.stringify(frame)); }

  // `lost` is called where the connection breaks before the answer.
  #say(frame, ok, refused, lost) {
    this.#send(frame);
    this.#said.set(frame.ref, { ok, refused, lost });
  }

  // --- the connection ---

  async #open() {
    const { url, token, tokenBy, timing, after, WebSocket, fetch } = this.#options;
    const turn = ++this.#turn;
    this.#tell({ phase: "connecting" });
    const cookie = tokenBy === "cookie";
    let jwt;
    try { jwt = cookie ? "" : this.#jwt ?? await this.#fresh(); } catch (error) {
      if (turn !== this.#turn) return;
      if (typeof token !== "function") return this.#end({ reason: "unusable" }, error);
      this.#retry({ reason: "token" }, error);
      return this.#options.onError(error);
    }
    await this.#loading;
    if (turn !== this.#turn) return;
    if (jwt === null) return this.#fail({ reason: "no_token" }, "nobody");
    if (jwt === this.#expired) return this.#fail({ code: TOKEN_EXPIRED, reason: "token_expired" }, "sameToken");
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
      if (this.#blocked) this.#socket = new this.#blocked(streamAt(address), fetch, cookie ? null : jwt);
      else {
        this.#socket = new WebSocket(address.href, ["bridge.v1.json", ...entry]);
        this.#unopened = true;
        this.#socket.onopen = () => {
          this.#unopened = false;
          this.#forget();
          if (tokenBy === "frame") this.#send({ type: "auth", token: jwt });
        };
      }
    } catch (cause) { // trying again would not help
      return this.#end({ reason: "unusable" }, new Error(`${url} can't be used: ${cause.message}`, { cause }));
    }
    this.#socket.onmessage = ({ data }) => {
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

  // A new token; null where nobody is signed in.
  async #fresh() {
    const { token } = this.#options, asked = typeof token === "function";
    let jwt = asked ? await token() : token;
    if (typeof jwt === "string") jwt = jwt.trim();
    if (!(asked && jwt === null) && !JWT.test(jwt)) throw await inWords("noToken", { got: jwt, asked }, "The token is not a JWT.");
    return jwt;
  }

  #take(frame) {
    const { type, ref } = frame, open = this.#isOpen; // the welcome comes first: it names the user of the pushes
    this.#heard = this.#options.now();
    if (open && this.#tabs?.relay(frame)) return;
    if (type === "push" && open) {
      const key = keyOf(frame), mine = this.#mine, known = mine.get(key);
      if (!known) return this.#enqueue(frame, mine.add(key, this.#socket));
      this.duplicates += 1;
      known.on = this.#socket;
      if (known.acked) this.#ack(known, mine);
    } else if (type === "withdraw" && open) {
      this.#enqueue(frame);
    } else if (type === "welcome") {
      this.#welcome(frame);
    } else if (type === "refresh") {
      this.#refresh(this.#socket);
    } else if (type === "bye") {
      this.#bye = frame;
    } else if (this.#said.has(ref) && (type === "ok" || type === "error")) {
      const { ok, refused } = this.#said.get(ref);
      this.#said.delete(ref);
      if (type === "ok") ok();
      else refused(frame);
    } else if (type === "error") {
      this.#options.onError(new Error(`the bridge says: ${frame.message} (${frame.code})`));
    } // heartbeats only set #heard; frames of later versions are ignored
  }

  // The token expires soon. Whatever fails here, the function is called again when it has expired.
  async #refresh(socket) {
    const { token, onError } = this.#options;
    if (typeof token !== "function") return;
    let jwt;
    try { jwt = await this.#fresh(); } catch (error) { return onError(error); }
    if (jwt === null || socket !== this.#socket || jwt === this.#jwt) return;
    const same = userOf(jwt) === userOf(this.#jwt);
    this.#jwt = jwt;
    if (same && !socket.oneWay) return this.#send({ type: "refresh", token: jwt });
    this.#restart(); // another user has signed in, or a stream needs its token at the beginning
  }

  #welcome({ user, session, complete, heartbeat, memory }) {
    const { timing, after } = this.#options;
    if (!this.#isOpen) { // a second one says that something is missing after all
      const guess = this.#guess;
      this.#become(user);
      if (memory) this.#mine.load(memory);
      const following = this.#tabs?.following;
      if (following) this.#sent = this.#mine.resume(); // `complete` is about the place of the leader
      const last = this.#mine === guess || following ? this.#sent : this.#mine.resume();
      if (last !== this.#sent) { // `complete` is about the `last` of another user
        if (last !== null && this.#moved !== this.#jwt) { // once per token, or two names in turn would be a loop
          this.#moved = this.#jwt;
          return this.#restart();
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
    if (!this.#isOpen || socket.oneWay || at - this.#heard < FRESH) return;
    const ref = this.#ref(), answered = () => {};
    this.#say({ type: "ack", id: "", ref }, answered, answered, answered);
    this.#options.after(ANSWER, () => {
      if (socket === this.#socket && this.#said.has(ref) && this.#heard <= at) this.#lost(1006, "silent", true);
    });
  }

  #lost(closeCode, closeReason, now = false) {
    if (this.#tabs?.following) return this.#tabs.steal();
    // The bye names code and reason even if the close frame was lost.
    const { code = closeCode, reason = closeReason, retry_after: wait = 0 } = this.#bye ?? {};
    const opened = this.#isOpen;
    if (this.#socket?.oneWay) this.#blocked = null; // a WebSocket in between, the network may be another
    else if (this.#unopened) this.#suspect();
    const told = opened || this.#options.tokenBy === "frame"; // then 4401 is about the token
    const renew = told && code === TOKEN_EXPIRED && typeof this.#options.token === "function";
    if (renew) this.#expired = this.#jwt;
    if (renew || !opened) this.#jwt = null;
    this.#drop();
    const cookie = this.#options.tokenBy === "cookie" && code === TOKEN_EXPIRED;
    // Where whoever knows the cookie could not be asked, the session has run out: that is no refusal.
    const over = cookie ? reason !== "token_expired" : code >= 4400 && code < 4500 && code !== TOO_SLOW;
    if (!renew && over) return this.#fail({ code, reason });
    const error = this.#hopeless(opened || reason === "offline");
    this.#retry({ code, reason }, error, wait, (renew || now) && this.#tries === 0);
  }

  // A WebSocket did not open. Where nothing answers it is not the WebSocket that is blocked, so ask, without a token.
  // With "frame" the token must not stand in a header, and a stream has no first message.
  async #suspect() {
    const { url, fetch, timing, now, sse, tokenBy } = this.#options;
    if (sse === false || tokenBy === "frame" || typeof fetch !== "function") return;
    this.#blocked = this.#reached;
    if (this.#reached || now() - this.#askedAt < timing.welcome) return; // it may take longer than the next try
    this.#forget(); // one at a time
    this.#askedAt = now();
    const { signal } = this.#asking = new AbortController();
    let loaded = null;
    try {
      const how = { credentials: "omit", cache: "no-store", signal };
      const { status } = await fetch(streamAt(new URL(url, globalThis.location?.href)).href, how);
      // Only then is it loaded: some browsers never load again what they could not load once, as in an outage.
      if (status < 500 && status !== 429) loaded = await import("./bridge-client-stream.js");
    } catch { /* nothing answers */ }
    if (signal.aborted) return;
    this.#forget(); // the answer may have a body without end
    this.#reached = loaded?.EventStream;
  }

  // What was known of the network.
  #forget() {
    this.#asking.abort();
    this.#askedAt = -Infinity;
    this.#reached = null;
  }

  // What to check if one try after the other fails: a browser hides the status of the answer.
  #hopeless(told) {
    const { url, onError } = this.#options;
    if (!told) this.#failed += 1;
    const limit = this.#opened ? NOT_OPENED : NEVER_OPENED;
    if (this.#failed < limit) return;
    const error = new Error(`${this.#failed} tries to open ${url} failed. ${this.#opened ? "It was open before. " : ""}${CHECK}`);
    if (!told && this.#failed === limit) onError(error);
    return error;
  }

  #retry(why, error, wait = 0, now = false) {
    const { timing, random, after } = this.#options;
    const ceiling = Math.min(timing.max, timing.min * 2 ** this.#tries);
    const seconds = now ? 0 : wait + ceiling * (0.5 + random() / 2);
    this.#tries += 1;
    this.#patient = wait > 0;
    this.#cancel = after(seconds, () => this.#open());
    this.#tell({ phase: "waiting", seconds, ...why }, error);
  }

  #wake = ({ type, persisted }) => {
    if (type === "visibilitychange" && document.visibilityState !== "visible" || persisted === false) return;
    const following = this.#tabs?.following, online = type === "online";
    if (type === "offline") return void (this.#socket && !following && this.#lost(1006, "offline"));
    if (following) return this.#tabs.join();
    const waits = this.state.phase === "waiting" && !this.#patient;
    if (online) { // it may be another network
      this.#forget();
      this.#blocked = null;
    }
    // When the network is back an old socket may be dead unnoticed, and resuming costs almost nothing.
    if (waits || online && this.#socket) this.#restart();
    else this.#look();
  };

  #restart() {
    this.#drop();
    this.#open();
  }

  #drop() {
    this.#cancel();
    this.#unwatch();
    const socket = this.#socket;
    this.#socket = this.#bye = null;
    if (socket) {
      socket.onmessage = socket.onclose = socket.onopen = null;
      socket.close(1000);
    }
    const said = [...this.#said.values()];
    this.#said.clear();
    for (const { lost } of said) lost();
  }

  // The end, with an error that says what to do. What happens until its words are there counts more.
  async #fail(why, name = "ended") {
    const turn = ++this.#turn;
    this.#drop();
    this.#queue.clear();
    const error = await inWords(name, { ...why, ...this.#options }, `Closed for good: ${why.reason}`);
    if (turn === this.#turn) this.#end(why, error);
  }

  #end(why, error) {
    if (this.state.phase === "closed") return;
    this.#turn += 1;
    this.#forget();
    this.#drop();
    this.#queue.clear();
    for (const [topic, { on, waits }] of this.#topics) for (const [, reject] of waits) reject(notHeard(topic, on, { code: "unavailable" }));
    this.#topics.clear();
    this.#over.abort();
    this.#tell({ phase: "closed", ...why }, error);
    this.#tabs?.leave();
    if (error) this.#options.onError(error);
  }

  #tell(state, error) {
    if (error) state.error = error;
    this.state = state;
    this.#tabs?.told(state);
    try { this.#options.onState?.(state); } catch (error) { this.#options.onError(error); }
    this.#settle();
  }

  // Keep or break the promises of ready().
  #settle() {
    const { phase, user, session, reason, error } = this.state;
    if (!this.#isOpen && phase !== "closed") return;
    for (const [resolve, reject] of this.#readies.splice(0)) {
      if (this.#isOpen) resolve({ user, session });
      else reject(error ?? new Error(`Closed for good: ${reason}`));
    }
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
      else mine.waiting.delete(known.key); // onPush gets it again if the bridge resends it
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
    let noted = false;
    if (this.#socket?.readyState === 1 && known.on === this.#socket) { // WebSocket.OPEN
      const [id, tenant = null] = known.key.split("\n");
      const ack = { type: "ack", id, tenant };
      const acked = this.#tabs?.acked(known.key); // by another tab
      if (asked) {
        noted = new Promise((resolve) => {
          const no = () => resolve(false);
          this.#say({ ...ack, ref: this.#ref() }, () => resolve(true), no, no);
        });
      } else if (!acked) this.#send(ack);
    }
    const news = !known.acked;
    known.acked = true;
    if (news && !(this.#busy && mine === this.#mine)) mine.save();
    return Promise.resolve(noted);
  }

  #ackKey(key, asked) {
    const mine = this.#mine;
    return this.#ack(mine.get(key) ?? mine.done(mine.add(key)), mine, asked);
  }

  // --- one connection for all tabs ---

  async #share() {
    const module = await loaded(import("./bridge-client-tabs.js"), this.#options.timing.welcome);
    if (!module) return;
    const tabs = this.#tabs = new module.Tabs({
      ...this.#options,
      keyOf,
      connection: this,
      said: this.#said,
      topics: this.#topics,
      memory: () => this.#mine.text(),
      send: (frame) => { if (this.#socket?.readyState === 1) this.#send(frame); },
      awake: () => this.#wake({ type: "look" }),
      lead: () => {
        this.#jwt = null; // it may have expired
        this.#restart();
      },
      show: (state) => { // as it is in the tab that has the connection, or "connecting" until that has answered
        this.#turn += 1;
        if (state.phase === "closed") return this.#end({ code: state.code, reason: state.reason }, state.error);
        this.#drop();
        if (state.phase !== "connecting" || this.state.phase !== "connecting") this.#tell(state);
      },
      take: (frame) => {
        if (frame.type === "welcome" && !this.#isOpen) this.#socket = tabs.socket(frame);
        this.#take(frame);
      },
    });
    this.#options.storage = tabs.storage();
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
    for (const [, known] of this.#queue) if (known) before.waiting.delete(known.key); // their user gets them again
    this.#queue.clear();
    if (this.#busy) before.save();
    this.#users.delete(user);
    this.#users.set(user, mine);
    const [[first, oldest]] = this.#users;
    if (this.#users.size > USERS) {
      this.#users.delete(first);
      oldest.key = null; // never stored again: if its user connects again, a new memory is loaded
    }
    if (before.user === null) for (const key of before.finished.keys()) this.#ackKey(key); // acked before the welcome
  }
}

// Where the stream of events is, beside a WebSocket.
function streamAt(address) {
  const events = new URL(address);
  events.protocol = events.protocol.replace("ws", "http");
  events.pathname = events.pathname.replace(/ws$/, "sse");
  return events;
}

// What is remembered for one user. An id is never forgotten while its push waits or onPush works on it; of the finished
// ones, the oldest are forgotten first.
class Memory {
  last = null; // id of the push that onPush finished last
  partly = new Map(); // key -> who has finished the push, while others have thrown
  waiting = new Map(); // key -> {key, on: the socket it came on last, acked: by the application}
  finished = new Map(); // the same for pushes that are finished, in order
  #oldest = this.finished.keys(); // goes on where it was: to begin anew would be to pass all that were removed
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
    for (const [key, acked] of ids) if (!this.get(key)) this.done(this.add(key, null, acked === 1));
    this.last = last;
  }

  text() {
    const ids = [...this.finished.values()].slice(-STORED).map(({ key, acked }) => [key, acked ? 1 : 0]);
    return JSON.stringify({ last: this.last, ids });
  }

  /** Begin a connection and return its `last`. Pushes that are not finished now come again on it; they may be finished by then. */
  resume() {
    this.#again = this.waiting.size;
    return this.last;
  }

  get(key) { return this.waiting.get(key) ?? this.finished.get(key); }

  add(key, on = null, acked = false) {
    const known = { key, on, acked };
    this.waiting.set(key, known);
    return known;
  }

  done(known) {
    this.waiting.delete(known.key);
    this.finished.set(known.key, known);
    while (this.finished.size > KEPT + this.#again) this.finished.delete(this.#oldest.next().value);
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

// --- errors ---

// Why something was not sent, or came to nothing; the bridge says so in its own words for its other codes.
const WHY = {
  unavailable: "there is no connection",
  busy: "this ref is under way",
  unknown: "the connection was lost: it may have arrived",
  one_way: "WebSockets are blocked here",
  replaced: "the opposite was asked for",
};

function refusal(what, { code, message = WHY[code] }, about) {
  return Object.assign(new Error(`not ${what}: ${message} (${code})`), { code, ...about });
}

function notHeard(topic, on, why) { return refusal(`${on ? "" : "un"}subscribed ${on ? "to" : "from"} ${topic}`, why, { topic }); }

// An error whose words say what to do: they are loaded when they are needed. Without them it is `short`.
async function inWords(name, facts, short) {
  const words = await loaded(import("./bridge-client-words.js"), WORDS);
  return new Error(words?.[name](facts) ?? short);
}

// What was imported; undefined where that fails, or takes longer. Nothing may fail or wait for ever because of it.
function loaded(module, seconds) {
  return new Promise((done) => {
    const cancel = inSeconds(seconds, done);
    module.then(done, () => done()).then(cancel);
  });
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
