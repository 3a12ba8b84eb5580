"""The routes of the ops port, in one table; a file for each group of them.

Each but the free ones asks for a scope, see `bridge.adapters.credentials`.

| route               | answers                                                                             |
|---------------------|-------------------------------------------------------------------------------------|
| GET /livez          | 200 while the process serves                                                        |
| GET /readyz         | 200, or 503 with the causes; only their names without a credential that may read   |
| GET /metrics        | Prometheus' text format                                                             |
| GET /status         | a JSON object: who this is, whether it is ready, its gauges, the first sessions     |
| POST /v1/push       | publishes a push request v1, or an array of them, through the broker                |
| GET /v1/outcomes    | server-sent events, one for each committed row; `?user=` and `?push_id=` choose     |
| GET /v1/pushes/{id} | what became of a push, as `bridge why` tells it; `?user=` and `?tenant=` choose.    |
|                     | 404 unless the delivery log is in Postgres                                          |
| POST /v1/recall     | takes pushes back, by id or by user and collapse key; says what that ended          |
| POST /v1/revoke     | closes sessions and refuses their tokens, by user and time, token id or session     |
| GET /v1/users/{id}  | a user's sessions, what is kept for them and how their last pushes ended. 404 without   |
|                     | the ledger, which is in Postgres                                                    |
| POST /v1/users/{id}/disconnect | closes their sessions, or one; their clients may come back               |
| POST /v1/dev/token  | a token for a user; 404 outside of development                                      |
| GET /v1/pushes      | pushes by id, user, event, topic, tenant or trace id, a page at a time. This, topics,  |
|                     | actions, dead letters and replay: 404 unless the delivery log is in Postgres        |
| GET /v1/topics      | topics with their subscribers; GET /v1/topics/{topic} one of them and its last values |
| GET /v1/actions     | what people did by hand                                                             |
| GET /v1/audit       | what the last audit of this process found                                           |
| GET /v1/history     | the figures of the last hour, a sample every ten seconds                            |
| GET /v1/me          | the name and the scopes of whoever asks                                             |
| GET /v1/dead        | the oldest dead letters; POST /v1/dead/replay and /v1/dead/purge do so with some    |
| POST /v1/replay     | publishes logged pushes again; with `"dry_run": true` says how many it would be     |
| GET /               | the console; its files are GET /console/{file}                                      |
| GET /demo           | the demo page and its files                                                         |
| GET /endings.json   | what each outcome and reason mean, for the pages                                    |
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from aiohttp import web

from bridge.adapters.credentials import Scope
from bridge.ops.access import OpsAccess
from bridge.ops.context import OpsContext
from bridge.ops.routes import page
from bridge.ops.routes.console import Figures, Lists
from bridge.ops.routes.dev_token import DevTokens
from bridge.ops.routes.looking import Looking
from bridge.ops.routes.mending import Mending
from bridge.ops.routes.outcomes import Outcomes
from bridge.ops.routes.page import Page
from bridge.ops.routes.push import Pushing
from bridge.ops.routes.recall import Recalling
from bridge.ops.routes.revoke import RevokingTokens
from bridge.ops.routes.users import Users
from bridge.ops.routes.why import LOOK_UPS_AT_ONCE, Why


class Route(NamedTuple):
    """A method and a path, and who answers them. A GET answers HEAD as well unless it is endless."""

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    scope: Scope | None
    """What a credential must allow; None: anybody may ask, without one and from any origin."""
    endless: bool = False

    @property
    def free(self) -> bool:
        """Whether anybody may ask."""
        return self.scope is None

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Register it with aiohttp."""
        if self.method == "GET":
            router.add_get(self.path, self.handler, allow_head=not self.endless)
        else:
            router.add_route(self.method, self.path, self.handler)


def routes(context: OpsContext, access: OpsAccess) -> Sequence[Route]:
    """Every route that this context has the means for."""
    looking, figures = Looking(context, access), Figures(context)
    # Each look into the log opens a connection to the database, so others wait: pushes must not go without.
    free = asyncio.Semaphore(LOOK_UPS_AT_ONCE)
    read, push, admin = Scope.READ, Scope.PUSH, Scope.ADMIN
    found = [
        Route("GET", "/livez", looking.livez, None),
        Route("GET", "/readyz", looking.readyz, None),
        Route("GET", "/metrics", looking.metrics, read),
        Route("GET", "/status", looking.status, read),
        Route("POST", "/v1/push", Pushing(context).push, push),
        Route("GET", "/v1/outcomes", Outcomes(context.feed, access).get, read, endless=True),
        Route("POST", "/v1/recall", Recalling(context).post, admin),
        Route("POST", "/v1/revoke", RevokingTokens(context).post, admin),
        Route("GET", "/v1/me", figures.me, read),
        Route("GET", "/v1/history", figures.history, read),
        Route("GET", "/v1/audit", figures.audit, read),
    ]
    if context.desk is not None:
        lists, mending = Lists(context.desk, free), Mending(context, context.desk, free)
        found += [
            Route("GET", "/v1/pushes", lists.pushes, read),
            Route("GET", "/v1/topics", lists.topics, read),
            Route("GET", "/v1/topics/{topic:[^/]+}", lists.topic, read),
            Route("GET", "/v1/actions", lists.actions, read),
            Route("GET", "/v1/dead", mending.dead, read),
            Route("POST", "/v1/dead/replay", mending.dead_replay, admin),
            Route("POST", "/v1/dead/purge", mending.dead_purge, admin),
            Route("POST", "/v1/replay", mending.replay, admin),
        ]
    if context.look_up is not None:
        # An id may contain slashes: those of batches and replays do.
        found.append(Route("GET", "/v1/pushes/{id:.+}", Why(context.look_up, free).get, read))
    if context.people is not None:
        users = Users(context, context.people)
        found.append(Route("GET", "/v1/users/{id}", users.get, read))
        found.append(Route("POST", "/v1/users/{id}/disconnect", users.disconnect, admin))
    if context.dev_token is not None:
        found.append(Route("POST", "/v1/dev/token", DevTokens(context, context.dev_token).post, admin))
    pages = Page()
    found += [
        Route("GET", path, pages.get, None) for path in (*page.FILES, page.ENDINGS_PATH, page.CONSOLE_PATH)
    ]
    return found
