"""Settings: where values come from, their bounds, and what an error says and never says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.addresses import is_loopback, redacted
from bridge.config import (
    GROUPS,
    CommonSettings,
    InvalidSettings,
    Settings,
    TokenSettings,
    env_name,
    misspelt_variables,
)
from bridge.core.errors import SettingsError
from bridge.core.redaction import redact
from tests.support.keys import jwks, pair

SECRET = "n0t-a-real-secret-but-long-enough-for-it"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory without files and an environment without our variables."""
    for name in [n for n in os.environ if n.upper().startswith("BRIDGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bridge.config.common.SECRETS_DIR", str(tmp_path / "run-secrets"))
    return tmp_path


def problems(**values: object) -> dict[str, str]:
    """What is wrong with these values, by setting."""
    with pytest.raises(InvalidSettings) as caught:
        Settings(**{"jwt_secret": SECRET, **values})
    return dict(caught.value.problems)


# --- where values come from --------------------------------------------------------------------------------


def test_defaults_are_those_of_the_contract() -> None:
    settings = Settings(jwt_secret=SECRET)
    assert (settings.ws_host, settings.ws_port) == ("0.0.0.0", 8181)
    assert (settings.ops_host, settings.ops_port) == ("127.0.0.1", 8182)
    assert settings.delivery_log == ("postgres",)
    assert settings.uses_postgres
    assert settings.origins == ()
    assert settings.jwt_algorithms == ("HS256",)
    assert settings.node


def test_flag_beats_environment_beats_dotenv_beats_dev_file_beats_secret_file_beats_default(
    monkeypatch: pytest.MonkeyPatch, nowhere: Path
) -> None:
    assert CommonSettings().log_level == "info"
    secrets = nowhere / "secrets"
    secrets.mkdir()
    (secrets / "bridge_log_level").write_text("debug\n")
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", str(secrets))
    assert CommonSettings().log_level == "debug"
    (nowhere / ".dev").mkdir()
    (nowhere / ".dev" / "env").write_text("BRIDGE_LOG_LEVEL=warning\n")
    assert CommonSettings().log_level == "warning"
    (nowhere / ".env").write_text("BRIDGE_LOG_LEVEL=error\nOTHER_PROGRAM=1\nBRIDGE_IMAGE_TAG=7\n")
    assert CommonSettings().log_level == "error"
    monkeypatch.setenv("BRIDGE_LOG_LEVEL", "info")
    assert CommonSettings().log_level == "info"
    assert CommonSettings.load({"log_level": "debug"}).log_level == "debug"


def test_secret_files_of_the_usual_directory_are_read_without_being_asked_for(nowhere: Path) -> None:
    (nowhere / "run-secrets").mkdir()
    (nowhere / "run-secrets" / "BRIDGE_JWT_SECRET").write_text(SECRET + "\n")
    assert Settings().jwt_secret.get_secret_value() == SECRET


def test_a_secrets_directory_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", "/nonexistent")
    with pytest.raises(SettingsError, match="BRIDGE_SECRETS_DIR: a directory expected"):
        CommonSettings()


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_WS_PORT", "")
    monkeypatch.setenv("BRIDGE_JWT_SECRET", SECRET)
    assert Settings().ws_port == 8181


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_DELIVERY_LOG", "postgres, stdout,my.log:make")
    monkeypatch.setenv("BRIDGE_ORIGINS", "https://App.example.com:443/ , http://localhost:8000,")
    settings = Settings(jwt_secret=SECRET)
    assert settings.delivery_log == ("postgres", "stdout", "my.log:make")
    assert settings.origins == ("https://app.example.com", "http://localhost:8000")


def test_an_unreadable_dotenv_is_a_settings_error(nowhere: Path) -> None:
    (nowhere / ".env").write_bytes(b"BRIDGE_NODE=\xff\xfe")
    with pytest.raises(SettingsError, match=r"\.env: UTF-8"):
        CommonSettings()


def test_a_setting_that_does_not_exist_is_an_error_in_code_and_a_hint_for_the_environment() -> None:
    with pytest.raises(TypeError, match="ws_prot"):
        Settings(ws_prot=1)
    assert misspelt_variables({"BRIDGE_WSPORT": "1", "BRIDGE_JWT_SECRETS": "x"}) == {
        "BRIDGE_WSPORT": "BRIDGE_WS_PORT",
        "BRIDGE_JWT_SECRETS": "BRIDGE_JWT_SECRET",
    }
    # What Kubernetes sets for a service named bridge.
    assert not misspelt_variables({"BRIDGE_PORT": "tcp://10.0.0.1:80", "BRIDGE_SERVICE_HOST": "10.0.0.1"})
    assert not misspelt_variables({"BRIDGE_WS_PORT": "1", "BRIDGE_SECRETS_DIR": "/x", "PATH": "/bin"})


def test_settings_are_frozen() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="frozen"):
        Settings(jwt_secret=SECRET).ws_port = 1


# --- bounds and what an error says -------------------------------------------------------------------------


def test_several_workers_need_postgres_and_room_for_their_names() -> None:
    logs = {"delivery_log": "stdout"}
    assert problems(workers=2, **logs) == {
        "BRIDGE_WORKERS": "1 expected, not 2: several processes know of one another only with postgres in"
        " BRIDGE_DELIVERY_LOG"
    }
    assert problems(workers=10, node="n" * 62) == {
        "BRIDGE_WORKERS": f"BRIDGE_NODE of at most 61 characters expected: worker 10 is node {'n' * 62}-10"
    }
    assert Settings(jwt_secret=SECRET, workers=1, node="n" * 64, **logs).nodes == ("n" * 64,)
    assert Settings(jwt_secret=SECRET, workers=3, node="n").nodes == ("n-1", "n-2", "n-3")


def test_data_is_erased_so_many_days_after_it_is_of_no_use_or_never() -> None:
    days = {
        given: Settings(jwt_secret=SECRET, payload=given).erased_after
        for given in (" Days:7", "while_kept", "none")
    }
    assert days == {" Days:7": 7, "while_kept": 0, "none": 0}
    assert Settings(jwt_secret=SECRET).erased_after is None


PAYLOADS = "retention, days:N (a whole number of 1 to 3650), while_kept or none expected"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("ws_port", "abc", "a whole number from 0 to 65535 expected, not 'abc'"),
        ("ws_port", 65536, "a whole number from 0 to 65535 expected, not 65536"),
        ("prefetch", 0, "a whole number from 1 to 65535 expected, not 0"),
        ("confirm_timeout", "nan", "a number from 0.1 to 300 expected, not 'nan'"),
        ("max_attempts", 100, "a whole number from 1 to 99 expected, not 100"),
        ("retention_days", 1, "a whole number from 2 to 3650 expected, not 1"),
        ("payload", "days:0", f"{PAYLOADS}, not 'days:0'"),
        ("payload", "days:3651", f"{PAYLOADS}, not 'days:3651'"),
        ("payload", "week", f"{PAYLOADS}, not 'week'"),
        ("log_level", "loud", "one of debug, info, warning, error expected, not 'loud'"),
        ("declare", "no", "one of active, passive expected, not 'no'"),
        ("dev", "perhaps", "true or false expected, not 'perhaps'"),
        ("node", "a b", "1 to 64 letters, digits, '.', '_', '-' expected, not 'a b'"),
        ("node", "n" * 65, f"1 to 64 letters, digits, '.', '_', '-' expected, not '{'n' * 65}'"),
        ("ws_host", "http://x", "an address or a host name expected, not 'http://x'"),
        ("jwt_algorithms", "RS256", "one or more of HS256, HS384, HS512 expected, not 'RS256'"),
        ("jwt_algorithms", "", "one or more of HS256, HS384, HS512 expected"),
        ("delivery_log", "", "one or more of postgres, stdout, traces, module:factory expected"),
        ("delivery_log", "kafka", "postgres, stdout, traces, module:factory expected, not 'kafka'"),
        ("delivery_log", "stdout,stdout", "each may be named once"),
        ("error_handler", "sentry", "log, module:factory expected, not 'sentry'"),
        ("hooks", "log", "module:factory expected, not 'log'"),
        ("origins", "*", "'*' is not an origin: leave it empty to allow any"),
        ("origins", "https://a/b", "https://host or https://host:port expected, not 'https://a/b'"),
        ("origins", "example.com", "https://host or https://host:port expected, not 'example.com'"),
        ("session_bytes", 2048, "at least BRIDGE_MAX_DATA_BYTES (65536) expected, not 2048"),
        ("amqp_url", "http://x", "amqp://user:password@host:port/vhost expected, or amqps://"),
        ("amqp_url", "amqp://", "amqp://user:password@host:port/vhost expected, or amqps://"),
        (
            "amqp_url",
            "amqp://h:port",
            "the host, or the port behind it, can't be read: a port is a number up to 65535",
        ),
        (
            "postgres_dsn",
            "mysql://x",
            "postgresql://user:password@host:port/database expected, or host=... dbname=...",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(field: str, value: object, expected: str) -> None:
    assert problems(**{field: value}) == {env_name(field): expected}


def test_all_wrong_settings_are_told_at_once() -> None:
    assert set(problems(ws_port="x", prefetch=0, log_level="y")) == {
        "BRIDGE_WS_PORT",
        "BRIDGE_PREFETCH",
        "BRIDGE_LOG_LEVEL",
    }


def test_a_wrong_flag_is_named_as_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_PREFETCH", "0")
    with pytest.raises(InvalidSettings) as caught:
        Settings.load({"ws_port": "x", "jwt_secret": SECRET})
    assert [name for name, _ in caught.value.problems] == ["--ws-port", "BRIDGE_PREFETCH"]


def test_total_bytes_hold_at_least_one_session() -> None:
    assert problems(session_bytes=1 << 22, total_bytes=1 << 21) == {
        "BRIDGE_TOTAL_BYTES": f"at least BRIDGE_SESSION_BYTES ({1 << 22}) expected, not {1 << 21}"
    }


def test_the_two_ports_differ_unless_any_will_do() -> None:
    assert "BRIDGE_OPS_PORT" in problems(ws_port=9000, ops_port=9000)
    assert Settings(jwt_secret=SECRET, ws_port=0, ops_port=0).ops_port == 0


@pytest.mark.parametrize(
    "dsn", ["postgresql:///bridge?host=/run/pg", "postgres://h1,h2:5433/db", "host=/tmp dbname='b c' user=x"]
)
def test_every_way_to_name_a_database_is_taken(dsn: str) -> None:
    assert CommonSettings(postgres_dsn=dsn).postgres_dsn == dsn


# --- secrets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        ("", "a secret of at least 32 bytes is required"),
        ("short", "at least 32 bytes expected, this one has 5"),
        ("a" * 64, "too easy to guess"),
        ("secretsecretsecretsecretsecretsecret", "too easy to guess"),
    ],
)
def test_a_missing_or_weak_secret_is_refused(secret: str, problem: str) -> None:
    assert problem in problems(jwt_secret=secret)["BRIDGE_JWT_SECRET"]


def test_a_longer_hash_wants_a_longer_secret() -> None:
    assert "at least 64 bytes" in problems(jwt_algorithms="HS256,HS512")["BRIDGE_JWT_SECRET"]


def test_several_secrets_are_each_checked_and_the_first_one_signs() -> None:
    other = SECRET[::-1]
    assert Settings(jwt_secret=f"{SECRET}, {other},").jwt_secrets == (SECRET, other)
    told = problems(jwt_secret=f"{SECRET},short")["BRIDGE_JWT_SECRET"]
    assert told.startswith(
        "secret 2 of 2 (commas separate them, so none may have one): at least 32 bytes expected"
    )
    assert redact(f"{SECRET} or {other}") == "*** or ***"


def test_a_secret_keys_or_an_address_of_keys_is_required(nowhere: Path) -> None:
    (nowhere / "keys.json").write_bytes(jwks(pair("ES256", "k1").jwk()))
    assert "or keys: BRIDGE_JWT_KEYS or BRIDGE_JWT_JWKS_URL" in problems(jwt_secret="")["BRIDGE_JWT_SECRET"]
    assert Settings(jwt_keys="keys.json").jwt_secrets == ()
    assert Settings(jwt_jwks_url="https://id.example/keys").jwt_secrets == ()
    assert "at least 32 bytes" in problems(jwt_secret="short", jwt_keys="keys.json")["BRIDGE_JWT_SECRET"]


def test_a_file_of_keys_that_cannot_be_used_is_refused_without_showing_a_key(nowhere: Path) -> None:
    private = pair("ES256", "k1").private_jwk()
    (nowhere / "keys.json").write_bytes(jwks(private))
    told = problems(jwt_secret="", jwt_keys="keys.json")
    assert list(told) == ["BRIDGE_JWT_KEYS"]
    assert "key 0 (kid 'k1'): it is a private key" in told["BRIDGE_JWT_KEYS"]
    assert private["d"] not in str(told)
    assert "No such file" in problems(jwt_keys="none.json")["BRIDGE_JWT_KEYS"]
    (nowhere / "keys.json").write_text("{}")
    assert "not a JWK Set" in problems(jwt_keys="keys.json")["BRIDGE_JWT_KEYS"]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://id.example/keys", "https:// expected: http:// is only for development"),
        ("ftp://id.example/keys", "an https:// address expected"),
        ("id.example", "an https:// address expected"),
        ("https:///keys", "an https:// address expected"),
        ("https://id.example:x/", "an https:// address expected"),
        ("https://id.example/a b", "an https:// address expected"),
        ("https://me:s3cret@id.example/", "an address without user and password expected"),
    ],
)
def test_the_address_of_keys_is_https_outside_development_and_never_shown(url: str, problem: str) -> None:
    told = problems(jwt_jwks_url=url)["BRIDGE_JWT_JWKS_URL"]
    assert problem in told
    assert "s3cret" not in told
    assert Settings(jwt_jwks_url="https://id.example/keys?tenant=1", jwt_secret=SECRET).jwt_jwks_url


def test_a_cookie_needs_a_list_of_origins() -> None:
    assert "cookie needs BRIDGE_ORIGINS" in problems(token_from="cookie")["BRIDGE_TOKEN_FROM"]
    app = {"jwt_secret": SECRET, "origins": "https://app.example"}
    assert Settings(**app, token_from="cookie,query,cookie").token_from == ("cookie", "query")
    assert Settings(**app).token_from == ("authorization", "subprotocol", "query", "frame")
    assert "a name of 1 to 64 letters" in problems(token_cookie="a b")["BRIDGE_TOKEN_COOKIE"]
    assert Settings(**app, token_cookie="__Host-push").token_cookie == "__Host-push"


@pytest.mark.parametrize("value", ["", "header", "query,header"])
def test_where_a_token_may_come_from_is_one_of_five_ways(value: str) -> None:
    told = problems(token_from=tuple(value.split(",")) if value else ())["BRIDGE_TOKEN_FROM"]
    assert told.startswith("one or more of authorization, subprotocol, query, frame, cookie expected")


def test_in_development_keys_may_come_over_http() -> None:
    url = "http://127.0.0.1:8080/keys"
    assert Settings(dev=True, jwt_jwks_url=url).jwt_jwks_url == url


def test_with_a_connect_hook_no_secret_is_needed_and_the_first_message_is_no_carrier() -> None:
    hook = Settings(connect_url="https://app.example/connect")
    assert hook.jwt_secrets == ()
    assert hook.token_from == ("authorization", "subprotocol", "query")
    assert (hook.connect_timeout, hook.connect_at_once) == (2.0, 100)
    assert hook.connect_headers == ("cookie", "authorization", "origin", "user-agent")
    told = problems(connect_url="https://app.example/connect", token_from="frame,query")
    assert "frame can't be used with BRIDGE_CONNECT_URL" in told["BRIDGE_TOKEN_FROM"]
    assert Settings(jwt_secret=SECRET, connect_headers="X-Tenant,x-tenant").connect_headers == ("x-tenant",)
    assert Settings(jwt_secret=SECRET, connect_headers="").connect_headers == ()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://app.example/connect?key=s3cret", "https:// expected: http:// is only for this machine"),
        ("ftp://app.example/?key=s3cret", "an https:// address expected"),
        ("app.example/s3cret", "an https:// address expected"),
        ("https:///s3cret", "an https:// address expected"),
        ("https://s3cret:s3cret@[x/", "an https:// address expected"),
        ("https://app.example:s3cret/", "an https:// address expected"),
        ("https://app.example/s3cret x", "an https:// address expected"),
    ],
)
def test_the_address_of_the_connect_hook_is_https_or_this_machine_and_never_shown(
    url: str, problem: str
) -> None:
    told = problems(connect_url=url)
    assert problem in told["BRIDGE_CONNECT_URL"]
    assert "s3cret" not in str(told)
    assert "s3cret" not in str(problems(connect_url=url, connect_timeout=99, token_from="x"))


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:1", "app.localhost"])
def test_a_connect_hook_on_this_machine_may_be_http(host: str) -> None:
    assert Settings(connect_url=f"http://{host}/connect").connect_url
    assert Settings(dev=True, connect_url="http://app.example/").connect_url


def test_the_secrets_in_the_address_of_the_connect_hook_are_removed_from_every_text() -> None:
    made = Settings(connect_url="https://app:pa%73s-w0rd@app.example/connect?key=k3y-k3y-k3y&b=other%20key")
    assert "w0rd" not in repr(made)
    assert "k3y" not in repr(made)
    for secret in ("pa%73s-w0rd", "pass-w0rd", "k3y-k3y-k3y", "other%20key", "other key"):
        assert redact(f"it is {secret}, they say") == "it is ***, they say", secret


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("connect_headers", "a b", "names of headers expected, with commas between"),
        ("connect_headers", "cookie:", "names of headers expected, with commas between"),
        ("connect_headers", ",".join(f"h{n}" for n in range(33)), "at most 32 names expected"),
        ("connect_timeout", 9, "a number from 0.1 to 8 expected, not 9"),
        ("connect_at_once", 1, "a whole number from 2 to 10000 expected, not 1"),
    ],
)
def test_a_wrong_value_about_the_connect_hook_is_named(field: str, value: object, expected: str) -> None:
    assert problems(**{field: value}) == {env_name(field): expected}


def test_in_dev_a_short_secret_will_do_and_a_missing_one_is_made() -> None:
    assert Settings(dev=True, jwt_secret="x").jwt_secret.get_secret_value() == "x"
    made = Settings(dev=True).jwt_secret.get_secret_value()
    assert len(made) >= 64
    assert made != Settings(dev=True).jwt_secret.get_secret_value()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.com"])
def test_an_ops_port_in_reach_of_others_wants_a_token_also_in_dev(host: str) -> None:
    assert "a token is required" in problems(ops_host=host, dev=True)["BRIDGE_OPS_TOKEN"]
    assert Settings(jwt_secret=SECRET, ops_host=host, ops_token="t").ops_host == host


def test_credentials_do_as_well_as_a_token_and_wrong_ones_are_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(f"grafana read {SECRET}\n")
    assert Settings(jwt_secret=SECRET, ops_host="::", ops_credentials=str(file)).ops_credentials == str(file)
    file.write_text(f"grafana read {SECRET}\ngrafana write s3cr3t\n")
    told = problems(ops_host="::", ops_credentials=str(file), jwt_secret=SECRET)
    assert told == {
        "BRIDGE_OPS_CREDENTIALS": f"{file} line 2: scopes out of read,push,admin expected",
    }
    # What docker puts into its secrets directory is the value, not a path.
    told = problems(ops_credentials="grafana read s3cr3t", jwt_secret=SECRET)
    assert told == {
        "BRIDGE_OPS_CREDENTIALS": "the path of a file or of a directory expected, without spaces",
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)


def test_no_secret_is_ever_shown() -> None:
    values = {
        "jwt_secret": "s3cr3t-0123456789-abcdefghijklmnopq",
        "ops_token": "s3cr3t-t0k3n",
        "amqp_url": "amqp://me:s3cr3t-amqp@h/",
        "postgres_dsn": "postgresql://me:s3cr3t-pg@h/db",
    }
    settings = Settings(**values)
    for shown in (repr(settings), str(settings), f"{settings!r}", repr(settings.ops_token)):
        assert "s3cr3t" not in shown
    wrong = {
        "jwt_secret": "s3cr3t",
        "ops_token": ["s3cr3t"],
        "amqp_url": "http://me:s3cr3t-amqp@h/",
        "postgres_dsn": "mysql://me:s3cr3t-pg@h/db",
    }
    with pytest.raises(InvalidSettings) as caught:
        Settings(**wrong)
    assert len(caught.value.problems) == 4
    shown_error: BaseException | None = caught.value
    while shown_error is not None:
        assert "s3cr3t" not in str(shown_error) + repr(shown_error)
        shown_error = shown_error.__cause__


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://guest:guest@h:5672/v", "amqp://guest:***@h:5672/v"),
        ("amqp://u:p@ss@h/", "amqp://u:***@h/"),
        ("amqp://u:p/q@h/", "amqp://u:***@h/"),
        ("amqp://u:p%40@h/?x=1", "amqp://u:***@h/?x=1"),
        ("amqp://:p@h/", "amqp://:***@h/"),
        ("amqp://u@h/", "amqp://u@h/"),
        ("amqp://h/a@b", "amqp://h/a@b"),
        ("postgresql://h/db?user=u&password=p&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("host=h password='a b' user=u", "host=h password=*** user=u"),
        ("host=h password = a\\ b user=u", "host=h password = *** user=u"),
        ("host=h password='a b", "host=h password=***"),
    ],
)
def test_redacted_takes_out_passwords_only(url: str, shown: str) -> None:
    assert redacted(url) == shown


# --- order -----------------------------------------------------------------------------------------------


def test_commands_that_need_no_secret_ask_for_none() -> None:
    assert CommonSettings().amqp_url
    with pytest.raises(InvalidSettings, match="BRIDGE_JWT_SECRET"):
        TokenSettings()


def test_every_setting_is_in_one_group_and_says_what_it_is() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(Settings.model_fields)
    assert all((info.description or "").endswith(".") for info in Settings.model_fields.values())
