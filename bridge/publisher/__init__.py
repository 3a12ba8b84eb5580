"""Publish push requests from Python, confirmed, and await what became of them: `Publisher`, `BlockingPublisher`.

    async with Publisher("amqp://...") as bridge:
        sent = await bridge.send({"order": 7}, user="u42", event="order.paid", receipts=True)
        print(await sent.outcome(timeout=10))

docs/publishing.md, "From Python". Nobody needs it: every AMQP client can do the same.
"""

from bridge.adapters.amqp.producer import NotTaken
from bridge.core.errors import BrokerRefused, BrokerUnavailable, InvalidRequest
from bridge.publisher.blocking import BlockingPublisher, BlockingSent
from bridge.publisher.publisher import Publisher
from bridge.publisher.sent import Receipt, Sent

__all__ = [
    "BlockingPublisher",
    "BlockingSent",
    "BrokerRefused",
    "BrokerUnavailable",
    "InvalidRequest",
    "NotTaken",
    "Publisher",
    "Receipt",
    "Sent",
]
