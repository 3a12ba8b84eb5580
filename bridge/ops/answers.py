"""JSON answers of the ops port, and its errors.

Errors are `{"error": word, "problem": sentence}`:

| status | word               | when                                                                      |
|--------|--------------------|---------------------------------------------------------------------------|
| 400    | `bad_request`      | a wrong query, or a body that can't be read                               |
| 401    | `token`            | no bearer token, or a wrong one                                           |
| 403    | `scope`            | the credential lacks the scope that `scope` names                         |
| 403    | `host`, `origin`   | without credentials, from another machine's name or another origin's page |
| 404    | `not_found`        | no such route                                                             |
| 404    | `unknown`          | the delivery log has no row of that push (for this user, of this tenant)  |
| 405    | `not_allowed`      | a route, but not for this method                                          |
| 408    | `too_slow`         | the body did not arrive in `BODY_SECONDS`                                 |
| 413    | `too_large`        | a body over 1 MiB                                                         |
| 415    | `not_json`         | a POST without `Content-Type: application/json`, or with a coded body     |
| 429    | `too_many`         | more than `SUBSCRIBERS_MAX` readers of outcomes                           |
| 500    | `failed`           | a bug in the bridge; the error handler has the details                    |
| 503    | `broker`           | the broker did not take the push; it may be sent again with the same id   |
| 503    | `database`         | the database did not answer, or its schema is too old; or it can't note   |
|        |                    | who does this, so it was not done                                         |

A request that is not valid HTTP gets 400 as plain text. schemas/openapi.json lists the statuses of each route.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from aiohttp import web

from bridge.core.errors import BrokerUnavailable, StoreUnavailable
from bridge.core.ports.plugins import ErrorHandler


class ErrorAnswer(Exception):
    """An error of the module's table; a route raises it."""

    def __init__(
        self,
        status: int,
        word: str,
        problem: str,
        headers: Mapping[str, str] | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        """`facts`: further members of the answer."""
        self.status = status
        self.word = word
        self.problem = problem
        self.headers = headers
        self.facts = facts or {}
        super().__init__(f"{status} {word}: {problem}")

    def response(self) -> web.Response:
        """The answer to send."""
        return json_answer(
            {"error": self.word, "problem": self.problem, **self.facts}, self.status, self.headers
        )


def bad_request(problem: str) -> ErrorAnswer:
    """A 400: the request itself is wrong."""
    return ErrorAnswer(400, "bad_request", problem)


def json_answer(
    body: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """An answer with a JSON object that no cache keeps."""
    return web.Response(
        body=msgspec.json.encode(body) + b"\n",
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def answer_to_error(error: Exception, request: web.Request, errors: ErrorHandler) -> web.Response:
    """The answer to a request that ended with this error; a bug goes to the error handler."""
    match error:
        case ErrorAnswer():
            answer = error
        case web.HTTPException():
            word = {404: "not_found", 405: "not_allowed", 413: "too_large"}.get(error.status, "bad_request")
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            answer = ErrorAnswer(error.status, word, error.reason, allow)
        case BrokerUnavailable():
            answer = ErrorAnswer(503, "broker", str(error), {"Retry-After": "1"})
        case StoreUnavailable():
            answer = ErrorAnswer(503, "database", str(error), {"Retry-After": "1"})
        case _:
            errors.handle(error, "ops", {"method": request.method, "path": request.path})
            answer = ErrorAnswer(500, "failed", "This should not happen; the log has the details.")
    return answer.response()
