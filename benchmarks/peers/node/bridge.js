// The bridge that a competent person writes by hand: one process, rows written and messages acked in batches.
//
// It consumes `push.requests`, sends the data to the user's sockets, and writes a row per push: up to 500 rows in one
// statement, then one ack for all of their messages. Messages are acked after their rows are committed, and a repeat
// adds no row. It makes none of the other promises: no proof of receipt, no receipts to the publisher, no bounds for a
// slow browser, and it ends when the broker or the database goes down, so that its supervisor starts it again.
//
// It takes its settings from the same variables as `bridge serve` and says `ready` when it consumes.

import http from 'node:http';
import amqplib from 'amqplib';
import jwt from 'jsonwebtoken';
import pg from 'pg';
import { WebSocketServer } from 'ws';

const PREFETCH = 1000;
const ROWS = 500; // of one statement: half of the prefetch, so that messages come while it is written
const LINGER = 5; // ms that a row waits for others; the browser does not wait for it
const PING_EVERY = 20_000; // ms

const SCHEMA = `
  create table if not exists node_log (
    push_id      text        not null,
    user_id      text        not null,
    outcome      text        not null,
    reason       text        not null,
    final        boolean     not null,
    sessions     integer     not null,
    attempts     integer     not null,
    published_at timestamptz not null,
    taken_at     timestamptz not null,
    written_at   timestamptz,
    finished_at  timestamptz not null,
    node         text        not null,
    event        text        not null,
    app_id       text        not null,
    primary key (push_id, user_id)
  )`;
const INSERT = `
  insert into node_log (push_id, user_id, outcome, reason, final, sessions, attempts,
                        published_at, taken_at, written_at, finished_at, node, event, app_id)
  select push_id, user_id,
         case when sent > 0 then 'written' else 'offline' end,
         case when sent > 0 then 'handed_over' else 'no_session' end,
         true, sent, 1, to_timestamp(published_ms / 1000), to_timestamp(taken_ms / 1000),
         case when sent > 0 then to_timestamp(sent_ms / 1000) end, to_timestamp(sent_ms / 1000),
         'node', event, app_id
  from unnest($1::text[], $2::text[], $3::int[], $4::float8[], $5::float8[], $6::float8[], $7::text[], $8::text[])
       as pushes (push_id, user_id, sent, published_ms, taken_ms, sent_ms, event, app_id)
  on conflict do nothing`;

// --- sockets ---

const users = new Map(); // user id -> Set of WebSockets
const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });

function admit(request, socket, head) {
  let user;
  try {
    const url = new URL(request.url, 'http://bridge');
    const token = url.searchParams.get('token') ?? (request.headers.authorization ?? '').replace(/^Bearer /, '');
    const claims = jwt.verify(token, process.env.BRIDGE_JWT_SECRET, { algorithms: ['HS256'] });
    if (!claims.sub || !claims.exp) throw new Error('the token needs sub and exp');
    user = claims.sub;
  } catch {
    socket.end('HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\n');
    return;
  }
  sockets.handleUpgrade(request, socket, head, (ws) => open(ws, user));
}

function open(ws, user) {
  let mine = users.get(user);
  if (mine === undefined) users.set(user, (mine = new Set()));
  mine.add(ws);
  ws.alive = true;
  ws.on('pong', () => { ws.alive = true; });
  ws.on('error', () => ws.terminate());
  ws.on('close', () => {
    mine.delete(ws);
    if (mine.size === 0 && users.get(user) === mine) users.delete(user);
  });
}

setInterval(() => {
  for (const ws of sockets.clients) {
    if (ws.alive) {
      ws.alive = false;
      ws.ping();
    } else {
      ws.terminate();
    }
  }
}, PING_EVERY);

// --- messages and rows ---

let channel;
const database = new pg.Client({ connectionString: process.env.BRIDGE_POSTGRES_DSN });
let columns = [[], [], [], [], [], [], [], []];
let last = null; // the newest message of these rows
let writing = false;
let timer = null;

function handle(message) {
  if (message === null) fail(new Error('the broker cancelled the consumer'));
  const taken = Date.now();
  const request = JSON.parse(message.content);
  const { data } = request;
  const user = request.to.user;
  const text = typeof data === 'string' ? data : JSON.stringify(data);
  let sent = 0;
  for (const ws of users.get(user) ?? []) {
    if (ws.readyState === ws.OPEN) {
      ws.send(text);
      sent += 1;
    }
  }
  const { timestamp, appId } = message.properties;
  columns[0].push(request.id);
  columns[1].push(user);
  columns[2].push(sent);
  columns[3].push(timestamp === undefined ? taken : timestamp * 1000);
  columns[4].push(taken);
  columns[5].push(Date.now());
  columns[6].push(request.event ?? 'message');
  columns[7].push(appId ?? '');
  last = message;
  if (writing) return; // when it is done, it looks again
  if (columns[0].length >= ROWS) write();
  else timer ??= setTimeout(write, LINGER);
}

async function write() {
  clearTimeout(timer);
  timer = null;
  writing = true;
  const rows = columns;
  const newest = last;
  columns = [[], [], [], [], [], [], [], []];
  await database.query({ name: 'log', text: INSERT, values: rows });
  channel.ack(newest, true); // this one and all before it
  writing = false;
  if (columns[0].length >= ROWS) write();
  else if (columns[0].length) timer = setTimeout(write, LINGER);
}

// --- the process ---

function fail(error) {
  console.error(error);
  process.exit(1); // unacked messages come again
}

process.on('unhandledRejection', fail);
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => process.exit(0));

database.on('error', fail);
await database.connect();
await database.query(SCHEMA);
const connection = await amqplib.connect(process.env.BRIDGE_AMQP_URL, { noDelay: true });
connection.on('error', fail);
connection.on('close', () => fail(new Error('the broker closed the connection')));
channel = await connection.createChannel();
channel.on('error', fail);
await channel.prefetch(PREFETCH);
await channel.assertQueue('push.requests', { durable: true, arguments: { 'x-queue-type': 'quorum' } });
await channel.assertExchange('push', 'topic', { durable: true });
await channel.bindQueue('push.requests', 'push', '#');
const server = http.createServer((request, response) => response.writeHead(426).end());
server.on('upgrade', admit);
server.listen(
  { host: process.env.BRIDGE_WS_HOST ?? '127.0.0.1', port: Number(process.env.BRIDGE_WS_PORT ?? 8181), backlog: 4096 },
  async () => {
    await channel.consume('push.requests', handle);
    console.log('ready');
  },
);
