"""Credentials of the ops port: what their files may say, who gets in with one, and how they change while it runs."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from bridge.adapters.credentials import AGAIN_AFTER, LOOK_EVERY, Credentials, Scope, read_entries
from bridge.core import redaction
from bridge.core.errors import SettingsError, StoreUnavailable
from bridge.core.mailbox.recalls import Recalled
from bridge.core.model.pushes import Recall
from tests.support.ops import FakeRecall, Parts, Running, ops
from tests.support.ports import ManualClock, RecordingErrors

SECRETS = {name: f"{name}-{secrets.token_urlsafe(32)}" for name in ("read", "push", "admin", "both")}
PUSH = {"id": "p1", "to": {"user": "u1"}, "data": 1}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "credentials"
    path.write_text(
        "# who may ask\n\n"
        f"grafana read {SECRETS['read']}\n"
        f"  shop\tpush {SECRETS['push']}\n"
        f"deployer admin {SECRETS['admin']}\n"
        f"monitor read,push {SECRETS['both']}\n"
    )
    return path


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


# --- the files ---


def test_a_file_has_a_line_for_each(file: Path) -> None:
    found = [entry.credential() for entry in read_entries(str(file))]
    assert list(map(str, found)) == [
        "grafana (read)",
        "shop (push)",
        "deployer (admin)",
        "monitor (push,read)",
    ]


def test_a_directory_has_a_file_for_each_as_kubernetes_lays_it_out(tmp_path: Path) -> None:
    held = tmp_path / "..2026_11_29"
    held.mkdir()
    (held / "grafana").write_text(f"read {SECRETS['read']}")
    (held / "deployer").write_text(f"admin {SECRETS['admin']}\n# the next one\nadmin {SECRETS['push']}\n")
    (tmp_path / "..data").symlink_to(held.name)
    for name in ("grafana", "deployer"):
        (tmp_path / name).symlink_to(Path("..data") / name)
    assert [(e.name, e.secret) for e in read_entries(str(tmp_path))] == [
        ("deployer", SECRETS["admin"]),
        ("deployer", SECRETS["push"]),
        ("grafana", SECRETS["read"]),
    ]


GOOD = "0123456789abcdefghijklmnopqrstuvwxyz-c4nary"
WRONG = {
    f"grafana {GOOD}": "`name scopes secret` expected, and this has 2 words",
    f"grafana read {GOOD} more": "`name scopes secret` expected, and this has 4 words",
    f"Grafana read {GOOD}": "a name of 1 to 64 characters of a-z, 0-9 and '-' expected",
    f"{'a' * 65} read {GOOD}": "a name of 1 to 64 characters",
    f"{GOOD}! read grafana": "a name of 1 to 64 characters",
    f"ops read {GOOD}": "another name expected: ops has a meaning already",
    f"local read {GOOD}": "another name expected: local has a meaning already",
    f"grafana write {GOOD}": "scopes out of read,push,admin expected",
    f"grafana read,,push {GOOD}": "scopes out of read,push,admin expected",
    f"grafana {GOOD} read": "scopes out of read,push,admin expected",
    f"grafana read {GOOD[-31:]}": "a secret of 32 to 1024 ASCII characters expected",
    f"grafana read {GOOD}é": "a secret of 32 to 1024 ASCII characters expected",
    "grafana read " + "c4nary" * 10: "fewer than 8 different characters",
    f"other push {GOOD}": "line 3 again: a secret of its own expected",
}


@pytest.mark.parametrize("line", WRONG, ids=WRONG.values())
def test_a_wrong_line_is_named_with_what_was_expected_and_not_quoted(file: Path, line: str) -> None:
    file.write_text(f"# one of these is wrong\n\nfirst read {GOOD}\n{line}\n")
    with pytest.raises(ValueError, match=r"credentials line 4: ") as caught:
        read_entries(str(file))
    assert WRONG[line] in str(caught.value)
    assert "c4nary" not in str(caught.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    missing, empty, binary = (str(tmp_path / name) for name in ("missing", "empty", "binary"))
    Path(empty).write_text("# nobody\n")
    Path(binary).write_bytes(b"grafana read \xff\xfe")
    for path, problem in (
        (missing, f"{missing} can't be read: No such file or directory"),
        (empty, f"{empty} has no credential: `name scopes secret` expected"),
        (binary, f"{binary}: UTF-8 text expected"),
        # What docker puts into a secrets directory is the value of a setting.
        (f"grafana read {GOOD}", "the path of a file or of a directory expected, without spaces"),
    ):
        with pytest.raises(ValueError, match=r"\w") as caught:
            read_entries(path)
        assert str(caught.value) == problem


def test_the_secrets_of_a_file_are_removed_from_texts_also_if_it_cannot_be_used(file: Path) -> None:
    file.write_text(f"grafana read {GOOD}\nnobody {GOOD[::-1]}\n")
    with pytest.raises(ValueError, match="line 2"):
        read_entries(str(file))
    assert redaction.without_known(f"{GOOD} and {GOOD[::-1]}") == "*** and ***"


# --- who gets in ---


@pytest.fixture
def parts() -> Parts:
    return Parts()


async def status(running: Running, method: str, path: str, headers: dict[str, str]) -> int:
    body = PUSH if "push" in path else {"push_id": "p1"}
    async with running.client.request(
        method, path, json=body if method == "POST" else None, headers=headers
    ) as answer:
        return answer.status


async def test_a_credential_may_do_what_its_scopes_say_and_403_names_the_one_that_is_missing(
    parts: Parts, file: Path
) -> None:
    asked = (("GET", "/status"), ("POST", "/v1/push"), ("POST", "/v1/recall"), ("GET", "/nowhere"))
    async with ops(parts, path=str(file)) as running:
        for name, wanted in {
            "read": [200, 403, 403, 404],
            "push": [403, 202, 403, 404],
            "both": [200, 202, 403, 404],
            "admin": [200, 202, 200, 404],
        }.items():
            assert [await status(running, *what, bearer(SECRETS[name])) for what in asked] == wanted
        for headers in ({}, bearer("x"), bearer(SECRETS["admin"][:-1]), {"Authorization": SECRETS["admin"]}):
            assert [await status(running, *what, headers) for what in asked] == [401] * 4
        async with running.client.post(
            "/v1/recall", json={"push_id": "p1"}, headers=bearer(SECRETS["both"])
        ) as answer:
            assert await answer.json() == {
                "error": "scope",
                "problem": "This needs the scope admin, and the credential monitor has push, read.",
                "scope": "admin",
            }
            assert 'error="insufficient_scope", scope="admin"' in answer.headers["WWW-Authenticate"]
    assert len(parts.recall.calls) == 1
    assert len(parts.publisher.calls) == 3


async def test_the_token_of_the_settings_may_do_all_beside_the_others(parts: Parts, file: Path) -> None:
    async with ops(parts, token="s3cret", path=str(file)) as running:
        for path in ("/v1/push", "/v1/recall"):
            assert await status(running, "POST", path, bearer("s3cret")) in (200, 202)
        assert await status(running, "GET", "/status", bearer(SECRETS["read"])) == 200
    assert parts.publisher.calls[0].app_id == "ops"


async def test_readyz_tells_details_only_to_those_who_may_read(parts: Parts, file: Path) -> None:
    parts.causes.append("broker: away")
    async with ops(parts, path=str(file)) as running:
        for name, causes in (("read", ["broker: away"]), ("push", ["broker"])):
            async with running.client.get("/readyz", headers=bearer(SECRETS[name])) as answer:
                assert (await answer.json())["causes"] == causes


def test_all_are_compared_whichever_fits(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Credentials(str(file), "s3cret", clock=ManualClock(), errors=RecordingErrors())
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    for secret in (b"s3cret", SECRETS["read"].encode(), SECRETS["both"].encode(), b"none"):
        compared.clear()
        asked._with(secret)
        assert len(compared) == 5


# --- while it runs ---


async def test_a_new_secret_counts_at_once_and_an_old_one_for_ten_seconds_more(file: Path) -> None:
    clock, errors = ManualClock(), RecordingErrors()
    asked = Credentials(str(file), "", clock=clock, errors=errors)
    before, after = SECRETS["read"].encode(), b"rotated-" + GOOD.encode()
    clock.advance(AGAIN_AFTER)
    file.write_text(f"grafana read {after.decode()}\n")
    assert (await asked.find(before)) is not None
    found = await asked.find(after)
    assert found is not None
    assert (found.name, found.allows(Scope.READ), found.allows(Scope.ADMIN)) == ("grafana", True, False)
    assert await asked.find(before) is None
    # Strangers can't make it read more often than once a second, and a change is seen without them.
    file.write_text(f"grafana read {before.decode()}\n")
    assert await asked.find(before) is None
    assert await asked.find(after) is not None
    clock.advance(LOOK_EVERY)
    assert await asked.find(after) is None
    assert await asked.find(before) is not None
    assert errors.seen == []


async def test_what_cannot_be_read_leaves_what_was_there_and_is_told_once(file: Path) -> None:
    clock, errors = ManualClock(), RecordingErrors()
    asked = Credentials(str(file), "", clock=clock, errors=errors)
    file.write_text("grafana read short\n")
    for _ in range(3):
        clock.advance(LOOK_EVERY)
        assert await asked.find(SECRETS["admin"].encode()) is not None
    ((error, where),) = errors.seen
    assert where == "ops.credentials"
    assert isinstance(error, SettingsError)
    assert error.setting == "BRIDGE_OPS_CREDENTIALS"
    assert "line 1: a secret of 32" in error.problem


async def test_a_stream_of_outcomes_ends_when_its_credential_does(
    parts: Parts, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.ops.routes.outcomes.COMMENT_AFTER", 0.01)
    async with ops(parts, path=str(file)) as running:
        async with running.client.get("/v1/outcomes", headers=bearer(SECRETS["read"])) as answer:
            assert answer.status == 200
            file.write_text(f"deployer admin {SECRETS['admin']}\n")
            parts.clock.advance(LOOK_EVERY)
            assert (await answer.text()).startswith(": outcomes from now on\n\n")


# --- who did what ---


async def test_a_recall_has_its_row_before_it_is_done_and_its_result_after(parts: Parts, file: Path) -> None:
    results: list[object] = []

    class Watched(FakeRecall):
        async def __call__(self, recall: Recall) -> Recalled:
            results.extend(row[3] for row in parts.actions.rows.values())
            return await super().__call__(recall)

    parts.recall = Watched()
    async with ops(parts, path=str(file)) as running:
        assert await status(running, "POST", "/v1/recall", bearer(SECRETS["admin"])) == 200
        (row,) = parts.actions.rows.values()
        target, facts = {"push_id": "p1", "tenant": ""}, {"ended": 2, "sessions": 1}
        assert row == ["recall", "deployer", target, "done", facts]
        parts.recall.error = StoreUnavailable("away")
        assert await status(running, "POST", "/v1/recall", bearer(SECRETS["admin"])) == 503
    assert [row[3] for row in parts.actions.rows.values()] == ["done", "failed"]
    assert results == ["begun", "done", "begun"]


async def test_what_can_have_no_row_is_not_done_but_a_push_goes_out(parts: Parts, file: Path) -> None:
    parts.actions.error = StoreUnavailable("away")
    async with ops(parts, path=str(file)) as running:
        assert await status(running, "POST", "/v1/recall", bearer(SECRETS["admin"])) == 503
        assert await status(running, "POST", "/v1/push", bearer(SECRETS["push"])) == 202
    assert parts.recall.calls == []
    assert [call.app_id for call in parts.publisher.calls] == ["shop"]


async def test_each_change_leaves_a_line_that_says_who_did_what(
    parts: Parts, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "bridge.actions")
    async with ops(parts, path=str(file)) as running:
        await status(running, "POST", "/v1/push", bearer(SECRETS["push"]))
        await status(running, "POST", "/v1/recall", bearer(SECRETS["admin"]))
        await status(running, "POST", "/v1/recall", bearer(SECRETS["push"]))
        await status(running, "GET", "/status", bearer(SECRETS["read"]))
    assert [record.getMessage() for record in caplog.records] == [
        "push by shop: published",
        "recall by deployer: done",
    ]
    said = vars(caplog.records[0])
    assert (said["actor"], said["target"], said["node"]) == ("shop", {"push_ids": ["p1"], "pushes": 1}, "n1")


async def test_without_credentials_the_actor_is_local_and_rows_do_not_name_a_publisher(parts: Parts) -> None:
    async with ops(parts) as running:
        assert await status(running, "POST", "/v1/recall", {}) == 200
        assert await status(running, "POST", "/v1/push", {}) == 202
    assert [row[1] for row in parts.actions.rows.values()] == ["local"]
    assert parts.publisher.calls[0].app_id == ""
