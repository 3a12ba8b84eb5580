"""Push requests in: one AMQP message to checked requests and rejections. Pure, and it never raises.

What the contract (schemas/) leaves to the decoder is settled here:

- **Two modes.** The body is a push request, or a JSON array of them (a batch). Payload-only mode, where the
  body is the data itself, starts with any `x-push-` header but these: `x-push-id` and `x-push-published-ms`
  are welcome in both modes; `x-push-reason`, `x-push-detail` and `x-push-buried-at` are what `push.dead` adds,
  and `x-push-replayed-at` what `bridge dead replay` adds, so that a dead letter can be published again as it
  is; `x-push-replay-of` is what `bridge replay` adds. Header names count exactly as written, in lower case;
  another spelling of one (`X-Push-User`, `x_push_user`) is no such header. A rejection names it, and in
  payload-only mode it is what is wrong.
- **CloudEvents.** A content type of `application/cloudevents+json` makes it one: see `cloud_event`.
- **Ids.** A request's own `id`, else the header `x-push-id`, else the AMQP `message_id`, else a UUIDv7. In a
  batch an element without an id takes `<that id>/<its index>`. A rejected request without a usable id gets
  `sha256-<hex>` of its bytes, its place and its properties, leaving out what changes when it comes again.
- **JSON** is RFC 8259 in UTF-8: no NaN, no lone surrogates. Of a key that occurs twice the last one counts.
  `data` nests at most 128 levels. An array whose brackets pair is a batch: what is not JSON inside one element
  costs that element only. Where they do not, it costs all of them.
- **`meta`** goes on as the shortest JSON that says the same: without spaces, and no key occurs twice. Of those
  that did, none may be wrong, whichever counts.
- **Payload-only bodies** by content type: `application/json` and `+json` must be JSON; `text/*` must be
  UTF-8; none given: JSON where it is JSON, else text where it is UTF-8, else bytes (say `text/plain` for
  text such as `123`); anything else: bytes. `x-push-users` and `x-push-except` are an AMQP array, or a
  string with commas. `x-push-all` is true, "true" in any case, 1 or "1"; false likewise, and then it says nothing.
  Numbers may be strings (`60`, `0.5`): many tools can set no other type. A header that is null is absent.
- **Times in headers.** An AMQP timestamp is in seconds, an integer in milliseconds; one before 2001 is rejected, since
  it looks like seconds.
- **published_at** that is not after 1970, or more than `CLOCK_SKEW_MAX` ahead of the arrival, is no time:
  the next source counts (the header, the AMQP timestamp, the arrival).
- **Size.** A message over `MESSAGE_BYTES_MAX`, or naming more than `USERS_MAX` (request, user) pairs, is
  rejected as a whole; an accepted request to one session or to everyone counts as one pair.
- **Time.** What is right is read in one pass (`straight`); only what is wrong is read again (`careful`). No step of
  `decode_in_steps` takes longer than some milliseconds: whatever makes an object of each part of a text, or looks
  at each of its bytes outside of C, is done for `stepping.AT_ONCE` bytes at a time.
"""

from bridge.core.contract.requests.building import request_body
from bridge.core.contract.requests.headers import CLOCK_SKEW_MAX, is_payload_only
from bridge.core.contract.requests.message import begin, decode, decode_in_steps
from bridge.core.contract.requests.tenancy import tenant_of
from bridge.core.contract.requests.terms import DEFAULT_LIMITS, Decoded, Limits

__all__ = [
    "CLOCK_SKEW_MAX",
    "DEFAULT_LIMITS",
    "Decoded",
    "Limits",
    "begin",
    "decode",
    "decode_in_steps",
    "is_payload_only",
    "request_body",
    "tenant_of",
]
