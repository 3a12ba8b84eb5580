// A stream of events in place of a WebSocket. What the page says goes by requests of their own: an ack, and the pong that
// proves what came before its ping. Nothing else can be said there.
export class EventStream {
  oneWay = true;
  readyState = 0;
  #key = null; // as the welcome said it
  #fetch;
  #acks; // where acks go
  #over = new AbortController();

  /** `events`: the address; `jwt`: null where a cookie says who it is. */
  constructor(events, fetch, jwt) {
    this.#acks = new URL(events);
    this.#acks.pathname = events.pathname.replace(/sse$/, "v1/ack");
    this.#fetch = fetch;
    this.#read(events, jwt === null ? { credentials: "include" } : { headers: { Authorization: `Bearer ${jwt}` } });
  }

  send(text) {
    const { type, id, tenant, ref } = JSON.parse(text);
    if (type === "ack") this.#say(tenant == null ? { id } : { id, tenant }, ref);
  }

  close() {
    this.readyState = 3;
    this.#over.abort();
  }

  // A request that fails has told nothing: the bridge sends the push again, or ends the stream.
  #say(said, ref) {
    const address = new URL(this.#acks);
    address.search = new URLSearchParams(said);
    const headers = { Authorization: `Bearer ${this.#key}` };
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
          this.#hear(data.join("\n"));
          data = [];
        }
      }
    }
  }

  // The pong comes after its ping was passed on, as everything before it was.
  #hear(data) {
    let frame = null;
    try { frame = JSON.parse(data); } catch { /* the connection will tell */ }
    if (frame?.type === "welcome") this.#key = frame.key ?? this.#key;
    this.onmessage?.({ data });
    if (frame?.type === "ping" && this.readyState === 1) this.#say({ pong: frame.payload });
  }
}
