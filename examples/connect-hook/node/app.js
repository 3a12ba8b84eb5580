// A business system with a login. It tells the bridge who its cookies are: BRIDGE_CONNECT_URL=http://127.0.0.1:8300/connect.
const { createServer } = require("node:http");
const { randomUUID } = require("node:crypto");

const SESSION_SECONDS = 3600;
const sessions = new Map(); // by the value of the cookie: the user, and when the session ends
const now = () => Date.now() / 1000;

const session = (cookies = "") => cookies.match(/(?:^|;\s*)session=([^;]*)/)?.[1];

const routes = {
  // A real one checks a password.
  "POST /login": (request, body, answer) => {
    const user = new URLSearchParams(body).get("user");
    if (!user) return answer(400);
    const key = randomUUID();
    sessions.set(key, { user, ends: now() + SESSION_SECONDS });
    const cookie = `session=${key}; HttpOnly; SameSite=Strict; Path=/; Max-Age=${SESSION_SECONDS}`;
    answer(200, `hello ${user}\n`, { "Set-Cookie": cookie });
  },
  // The bridge hears of it when it asks again; to end open sessions at once, revoke the user there, too.
  "POST /logout": (request, body, answer) => {
    sessions.delete(session(request.headers.cookie));
    answer(200);
  },
  // What the bridge asks: whose handshake is this?
  "POST /connect": (request, body, answer) => {
    const found = sessions.get(session(JSON.parse(body).headers.cookie));
    if (!found || found.ends <= now()) return answer(401);
    const said = { user: found.user, expires_at: Math.min(found.ends, now() + 600) };
    answer(200, JSON.stringify(said), { "Content-Type": "application/json" });
  },
};

const server = createServer(async (request, response) => {
  const answer = (status, text = "", headers = {}) => response.writeHead(status, headers).end(text);
  try {
    let body = "";
    for await (const part of request) body += part;
    (routes[`${request.method} ${request.url}`] ?? (() => answer(404)))(request, body, answer);
  } catch {
    answer(400);
  }
});

// Only this machine may ask /connect here. In your system let nobody but the bridge do so.
server.listen(Number(process.env.PORT ?? 8300), "127.0.0.1");
