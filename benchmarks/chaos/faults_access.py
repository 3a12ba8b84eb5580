"""Faults of who may come in: tokens are revoked during a flood, a replay, a handshake, and before a kill."""

from __future__ import annotations

import asyncio
import base64
import json
import time

import aiohttp

from benchmarks.chaos.bridges import token
from benchmarks.chaos.clients import Client, Manner
from benchmarks.chaos.evidence import Revoked
from benchmarks.chaos.fault import fault
from benchmarks.chaos.faults_process import KILLING_PACE
from benchmarks.chaos.stage import Stage

REVOCATIONS = 12
"""Revocations in the short run's unit."""
TRIES_SECONDS = 1.0
"""Seconds in which a client tries to come back with its old token."""


@fault("tokens are revoked", short=True)
async def revocations(stage: Stage) -> int:
    """Revoke tokens of clients that read, reconnect or are sent what is kept; each gets a new one a second later."""
    times = REVOCATIONS * stage.scale.repeats
    for _ in range(times):
        client = _one_of(stage)
        # A third has just begun its handshake, or its replay; the others are in the flood.
        if stage.rng.random() < 0.33:
            client.drop()
            await stage.sleep_some(0.0, 0.7)
        await _revoke(stage, client)
        await _comes_back(stage, client)
    stage.now_healed()
    return times


@fault("kill -9 after a revocation is committed")
async def killed_after_commit(stage: Stage) -> int:
    """Die when a revocation is committed, before a socket is closed or the answer is sent."""
    times = 0
    stage.pace = KILLING_PACE
    for _ in range(1 if stage.scale.repeats == 1 else 4):
        await stage.bridge.kill()
        await stage.bridge.start(point="after a revocation")
        await stage.bridge.ready()
        client = _one_of(stage)
        await _revoke(stage, client)
        times += await stage.dies()
        await stage.starts_again()
        await stage.bridge.ready()
        await _comes_back(stage, client)
    stage.pace = 1.0
    return times


def _one_of(stage: Stage) -> Client:
    return stage.rng.choice([c for c in stage.clients if c.stays and c.manner is not Manner.BARE])


async def _revoke(stage: Stage, client: Client) -> None:
    """Ask for the client's token to be revoked. If the bridge dies of it, it is revoked from the next start on."""
    part = client.token.split(".")[1]
    token_id = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["jti"]
    url = f"http://127.0.0.1:{stage.bridge.ops_port}/v1/revoke"
    connection = client.connects
    try:
        async with aiohttp.ClientSession() as http, http.post(url, json={"jti": token_id}) as answer:
            if answer.status != 200:
                stage.evidence.troubles.append(f"a revocation was answered with {answer.status}")
                return
            said = await answer.json()
            if said["silent"]:
                stage.evidence.troubles.append(f"a revocation was not confirmed: {said}")
    except aiohttp.ClientError:
        pass  # it died: the caller sees that
    client.tab.revoked.append(Revoked(connection, time.monotonic()))


async def _comes_back(stage: Stage, client: Client) -> None:
    """The client tries its old token for a while, which must open nothing, and then gets a new one."""
    before = len(client.sessions)
    await asyncio.sleep(TRIES_SECONDS)
    if len(client.sessions) > before:
        stage.evidence.troubles.append(f"{client.user} opened a session with a revoked token")
    client.token = token(client.user)
