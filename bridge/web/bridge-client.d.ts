// The types of bridge-client.js. docs/clients.md says what everything means.

/** Connect, and stay connected until `close()` or until the bridge says not to reconnect. */
export function connect<Data = any>(options: Options<Data>): Connection;

export type Options<Data = any> = Callbacks<Data> & Surroundings & Entry & {
  /** The address of the WebSocket, also relative to the page. */
  url: string | { readonly href: string };
  /** Acknowledge each push that `onPush` has finished. */
  autoAck?: boolean;
  /** false: never fall back to a stream of events where WebSockets are blocked. */
  sse?: boolean;
  /** One connection for all tabs of the site that have the same user; each has its own where the browser can't. */
  tabs?: "shared";
  /** To resume after a reload. */
  storage?: PushStorage | null;
  /** In seconds. */
  timing?: Partial<Timing>;
};

/** How the client says who its user is. */
export type Entry =
  | { token: string | TokenFunction; tokenBy?: "frame" }
  | { tokenBy: "cookie"; token?: undefined };

/** Called for the first connection, and whenever a new token is needed; null: nobody is signed in, close for good. */
export type TokenFunction = () => string | null | Promise<string | null>;

export interface Callbacks<Data = any> {
  /** Called for one push at a time: the next waits for the promise. If it throws, the push counts as not seen. */
  onPush(push: Push<Data>): unknown;
  /** That push was recalled. */
  onWithdraw?(push: PushId): unknown;
  /** Pushes before the next may be missing: reload your state. */
  onGap?(): unknown;
  onState?(state: State): void;
  /** Each error says what to do. */
  onError?(error: Error): void;
}

export interface PushId {
  id: string;
  tenant?: string | null;
}

export interface Push<Data = any> extends PushId {
  event: string;
  data: Data;
  /** The topic that it was pushed to. */
  topic?: string;
  /** The data are bytes. */
  encoding?: "base64";
  /** Tell the bridge that the application has the push; whether it has noted that. Never rejected. */
  ack(): Promise<boolean>;
}

export type State =
  | { phase: "connecting" }
  | { phase: "open"; user: string; session: string }
  | { phase: "waiting"; seconds: number; code?: number; reason?: string; error?: Error }
  | { phase: "closed"; code?: number; reason: string; error?: Error };

export interface Connection {
  /** The last one that was given to onState. */
  readonly state: State;
  /** Pushes that were left out, since they had come before. */
  readonly duplicates: number;
  /** @deprecated The name of `duplicates` until 0.2. */
  readonly doubles: number;
  /** Close for good. */
  close(): void;
  /** Resolved when the session is open, at once if it is; rejected when it is closed for good. */
  ready(): Promise<{ user: string; session: string }>;
  /** Acknowledge a push by its id, even one from before a reload; `push.ack()` does the same. */
  ack(id: string, tenant?: string | null): Promise<boolean>;
  /** Call it for each push with this event, beside `onPush`; the result ends that. */
  on(event: string, listener: (push: Push) => unknown): () => void;
  off(event: string, listener: (push: Push) => unknown): void;
  /** Resolved when the broker has it, rejected with a PublishError. Nothing waits for a connection. */
  publish(event: string, data?: unknown, options?: { topic?: string; ref?: string | number }): Promise<void>;
  /** Resolved when the bridge has recorded it, rejected with a TopicError; repeated after every reconnect. */
  subscribe(topic: string): Promise<void>;
  unsubscribe(topic: string): Promise<void>;
}

export interface PublishError extends Error {
  code:
    | "forbidden"
    | "nobody_listens"
    | "busy"
    | "unavailable"
    | "one_way"
    | "unknown"
    | "bad_frame";
  /** Publish again with it, so that a message which has arrived after all can be told. */
  ref: string | number;
}

export interface TopicError extends Error {
  code:
    | "forbidden"
    | "over_limit"
    | "try_later"
    | "bad_frame"
    | "replaced"
    | "unavailable"
    | "one_way";
  topic: string;
}

/** localStorage, sessionStorage, or what works as they do. */
export interface PushStorage {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
}

export interface Timing {
  /** The first wait after a break. */
  min: number;
  /** The longest. */
  max: number;
  /** How long a connection must be open for the waits to start over. */
  steady: number;
  /** How long a connection may take until it is welcomed. */
  welcome: number;
}

/** What other environments and tests replace. */
export interface Surroundings {
  /** A class like that of browsers, for Node before version 22. */
  WebSocket?: new (url: string, protocols?: string[]) => any;
  fetch?: (url: string, init?: any) => Promise<any>;
  /** Calls back once after so many seconds; returns what cancels that. */
  after?: (seconds: number, then: () => void) => () => void;
  /** From 0 to 1. */
  random?: () => number;
  /** Seconds, monotonic. */
  now?: () => number;
}
