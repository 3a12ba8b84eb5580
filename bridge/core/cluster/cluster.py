"""The parts that know of other nodes, put together. They do not know how a push is taken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bridge.core.cluster.forwards import Forwards
from bridge.core.cluster.lately import Lately
from bridge.core.cluster.neighbours import Neighbours
from bridge.core.cluster.post import Post
from bridge.core.cluster.ringing import Ringing
from bridge.core.cluster.unheard import Unheard
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Directory, NodePost
from bridge.core.ports.plugins import ErrorHandler, Metrics
from bridge.core.settlement.persistence import Persistence


class Cluster:
    """What a node knows of others, and sends to them."""

    def __init__(
        self,
        directory: Directory | None,
        post: NodePost | None,
        metrics: Metrics,
        rings: Persistence,
        routed: Callable[[], Awaitable[None]],
        clock: Clock,
        errors: ErrorHandler,
        boot: str,
    ) -> None:
        """`rings`: by which it is asked whom to ring. For `routed` see `Ringing`."""
        self.metrics = metrics
        self.directory = directory
        self.neighbours = Neighbours(directory, post, clock=clock, errors=errors)
        self.lately = Lately(self.neighbours)
        self.unheard_reports, self.unheard_recalls, unheard_rings = Unheard(), Unheard(), Unheard()
        unheard = (self.unheard_reports, unheard_rings, self.unheard_recalls)
        self.post = Post(post, self.neighbours, metrics, clock, boot, unheard)
        self.ringing = Ringing(
            directory,
            persistence=rings,
            routed=routed,
            neighbours=self.neighbours,
            post=self.post,
            unheard=unheard_rings,
            errors=errors,
            clock=clock,
        )
        self.forwards = Forwards(post=self.post, lacks=self.ringing.lacked, clock=clock)
