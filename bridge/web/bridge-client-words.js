// What to do about the errors of bridge-client.js, which loads this file when there is one.

const AGAIN = ", then call connect() again.";
const ENDS = {
  4401: "The token has expired: give a function as `token`, which fetches a new one whenever it is called.",
  4403: `The session was revoked (4403): sign in again${AGAIN}`,
  4409: `A newer session of this user replaced this one (4409): close the other${AGAIN}`,
  4429: `This client did more than the bridge allows (4429): wait a while${AGAIN}`,
};

/** Why the connection was closed for good. */
export function ended({ code, reason, tokenBy }) {
  if (code === 4401 && tokenBy === "cookie") return `Whoever knows the cookie says that this session is over (4401): sign in again${AGAIN}`;
  const said = `The bridge closed the session with ${code}${reason ? ` ${reason}` : ""}, which means not to reconnect: find out why`;
  return ENDS[code] ?? `${said}${AGAIN}`;
}

export function nobody() {
  return `No token: the function \`token\` returned null, so nobody is signed in. Sign in${AGAIN}`;
}

export function sameToken() {
  return "The token has expired, and the function `token` returned the same one again: it must fetch a new one.";
}

/** What came in place of a token. It is not quoted: it may be almost a token. */
export function noToken({ got, asked }) {
  const text = typeof got === "string" ? got : "";
  const what = typeof got !== "string" ? (got === undefined ? "undefined" : `of type ${typeof got}`)
    : !text ? "empty"
      : /^<|<\/?(html|body)/i.test(text) ? "a web page (an error, or a page to sign in?)"
        : /^[[{"]/.test(text) ? "JSON, or in quotes: take the token out of it"
          : /^[\w+-]+\.[\w+-]+\.[\w+-]*$/.test(text.replace(/[/=]/g, "-")) ? "in base64 with / or =, which no subprotocol can carry: make it base64url"
            : "not a JWT, which has three parts with dots between them";
  return `The token is ${what}. ${asked ? "Look at what the function `token` fetches: check `ok` and the type of the answer." : ""}`.trim();
}
