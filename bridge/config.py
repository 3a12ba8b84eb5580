"""Every setting: name, default, bounds and meaning; read from flags, environment, `.env` and secret files.

A value is looked for in this order: a flag (`--ws-port`), the environment (`BRIDGE_WS_PORT`), the file `.env`
in the working directory, the file `.dev/env` that `bridge dev` keeps there while it runs, a file
`BRIDGE_WS_PORT` (any case) in the secrets directory, the default. An empty variable counts as not set. The
secrets directory is `BRIDGE_SECRETS_DIR`, or `/run/secrets` where that exists.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, get_args, get_origin
from urllib.parse import urlsplit

import annotated_types
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as UnreadableSource

from bridge.addresses import (
    amqp_problem,
    amqp_secrets,
    is_loopback,
    postgres_problem,
    postgres_secrets,
    redacted,
)
from bridge.core import redaction
from bridge.core.errors import SettingsError
from bridge.core.model.pushes import MESSAGE_BYTES_MAX

PREFIX: Final = "BRIDGE_"
ENV_FILE: Final = ".env"
DEV_ENV_FILE: Final = ".dev/env"
"""Where `bridge dev` says how to reach its servers, so that `bridge push` in another shell finds them."""
SECRETS_DIR: Final = "/run/secrets"
"""Where container engines put secret files."""
BROKER_DELIVERY_LIMIT: Final = 100
"""The broker's own limit on the queue of requests: ours has to come first, since ours writes a row."""
SECRET_VARIETY: Final = 8
"""Different bytes that a secret must have: random ones have more, `aaaa...` and `change-me...` have not."""

_PLUGIN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class InvalidSettings(SettingsError):
    """One or more settings are wrong: `problems` holds (the setting as the user writes it, what is wrong)."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__(*self.problems[0])
        self.args = ("\n".join(f"{setting}: {problem}" for setting, problem in self.problems),)


class CommonSettings(BaseSettings):
    """What every command may need. Every way to make one raises InvalidSettings, never a pydantic error."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=(DEV_ENV_FILE, ENV_FILE),
        env_ignore_empty=True,
        # Other programs keep their variables in `.env`, too; `misspelt` finds ours that are nearly right.
        extra="ignore",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
        str_strip_whitespace=True,
    )

    amqp_url: str = Field(
        "amqp://guest:guest@127.0.0.1:5672/",
        description="Where RabbitMQ is: `amqp://user:password@host:port/vhost`, `amqps://` with TLS; user, password and"
        " vhost are percent-encoded. Behind a `?` may stand `auth`, `interleave`, `happy_eyeballs_delay`, and with"
        " `amqps://` `cafile`, `capath`, `cadata`, `certfile`, `keyfile`, `no_verify_ssl`; `heartbeat` and `name` are"
        " taken and not used: the bridge has its own.",
    )
    postgres_dsn: str = Field(
        "postgresql://127.0.0.1:5432/bridge",
        description="Where Postgres is: a `postgresql://` URI or libpq's `key=value` words.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least important level that is logged."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="How log lines look; `auto`: text on a terminal, JSON otherwise."
    )
    dev: bool = Field(
        False,
        description="For a developer's machine: a short JWT secret will do, without any a random one is made"
        " at each start, and the demo page gives out tokens. Never on a network.",
    )

    def __init__(self, **values: Any) -> None:
        fields = type(self).model_fields
        unknown = [name for name in values if name not in fields and not name.startswith("_")]
        if unknown:
            raise TypeError(f"there is no setting {', '.join(unknown)}")
        # Before anything is read: a secret may stand in the wrong place, and be quoted there as a wrong value.
        for name in _KEYS:
            redaction.learn([os.environ.get(env_name(name), "").strip(), str(values.get(name, ""))])
        try:
            super().__init__(**values)
        except UnreadableSource as error:
            raise SettingsError(f"{PREFIX}SECRETS_DIR", "a file there is no UTF-8 text") from error
        except ValidationError as error:
            problems = [
                _problem(type(self), e["loc"], e["msg"], e["type"], e["input"])
                for e in error.errors()
                # A default that hangs on another setting, which is wrong and named already.
                if e["type"] != "default_factory_not_called"
            ]
            raise InvalidSettings(problems) from error
        except UnicodeDecodeError as error:
            raise SettingsError(ENV_FILE, "UTF-8 text expected") from error
        except OSError as error:
            raise SettingsError(error.filename or ENV_FILE, f"cannot be read: {error.strerror}") from error

    @classmethod
    def load(cls, flags: Mapping[str, object]) -> Self:
        """Make one from the command line's flags (field names, strings or bools) and all other places.

        Problems with the value of a flag name the flag, others the variable. `_env_file` among the flags
        stands for the two files.
        """
        try:
            return cls(**flags)
        except InvalidSettings as error:
            flagged = {env_name(field): flag_name(field) for field in flags}
            raise InvalidSettings([(flagged.get(n, n), problem) for n, problem in error.problems]) from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order of the module's docstring, with a secrets directory that the environment may name."""
        sources = (init_settings, env_settings, dotenv_settings)
        directory = os.environ.get(f"{PREFIX}SECRETS_DIR", "")
        if not directory and not Path(SECRETS_DIR).is_dir():
            return sources
        if directory and not Path(directory).is_dir():
            shown = "this" if _may_be_secret(directory) else repr(directory)
            raise SettingsError(f"{PREFIX}SECRETS_DIR", f"a directory expected, {shown} is none")
        return (*sources, SecretsSettingsSource(settings_cls, secrets_dir=directory or SECRETS_DIR))

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, redacted(value) if name in _URLS else value

    @field_validator("amqp_url")
    @classmethod
    def _check_amqp_url(cls, value: str) -> str:
        return _without(amqp_problem(value), value)

    @field_validator("postgres_dsn")
    @classmethod
    def _check_postgres_dsn(cls, value: str) -> str:
        return _without(postgres_problem(value), value)

    def model_post_init(self, context: Any) -> None:
        """From now on no text that leaves the process has one of these secrets in it."""
        for held in (amqp_secrets(self.amqp_url), postgres_secrets(self.postgres_dsn)):
            redaction.learn(held.secrets, held.public)
        redaction.learn([os.environ.get("PGPASSWORD", "")])

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _ignore_case(cls, value: object) -> object:
        return value.strip().lower() if isinstance(value, str) else value


class TokenSettings(CommonSettings):
    """What tokens are made and checked by."""

    if TYPE_CHECKING:
        # Values come as text from everywhere; type checkers would derive an __init__ of the final types.
        def __init__(self, **values: Any) -> None: ...

    jwt_algorithms: CommaList = Field(
        ("HS256",), description="Signatures that are accepted, comma-separated: `HS256`, `HS384`, `HS512`."
    )
    jwt_secret: SecretStr = Field(
        default_factory=lambda data: SecretStr(secrets.token_urlsafe(48) if data.get("dev") else ""),
        description="Required: the secret that signs the tokens of users, at least 32 bytes (`HS384`: 48, `HS512`: 64)."
        " Better in a secret file or the environment than in a flag, which all users of the machine can see.",
    )
    jwt_issuer: str = Field("", description="What a token's `iss` must be; empty: not checked.")
    jwt_audience: str = Field("", description="What a token's `aud` must hold; empty: not checked.")

    def model_post_init(self, context: Any) -> None:
        """See CommonSettings."""
        super().model_post_init(context)
        keys = (getattr(self, name) for name in _KEYS if name in type(self).model_fields)
        redaction.learn(key.get_secret_value() for key in keys)

    @field_validator("jwt_algorithms")
    @classmethod
    def _check_algorithms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # Imported here: the cryptography under it takes longer to load than most commands to run.
        from bridge.adapters.tokens import KEY_BYTES

        wrong = [name for name in value if name not in KEY_BYTES]
        if wrong or not value:
            raise ValueError(
                f"one or more of {', '.join(KEY_BYTES)} expected" + "".join(f", not {w!r}" for w in wrong)
            )
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        from bridge.adapters.tokens import KEY_BYTES

        key = value.get_secret_value().encode()
        need = max(KEY_BYTES[name] for name in info.data.get("jwt_algorithms", ("HS256",)))
        if not key:
            raise ValueError(
                f"a secret of at least {need} bytes is required, for example from `openssl rand -base64 48`"
            )
        if info.data.get("dev"):
            return value
        if len(key) < need:
            raise ValueError(f"at least {need} bytes expected, this one has {len(key)}")
        if len(set(key)) < SECRET_VARIETY:
            raise ValueError(
                "too easy to guess: it has fewer than"
                f" {SECRET_VARIETY} different characters; `openssl rand -base64 48` makes a good one"
            )
        return value


class Settings(TokenSettings):
    """What `bridge serve` needs."""

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...

    node: str = Field(
        default_factory=lambda: socket.gethostname(),
        description="This process's name in the log, unique among those that run at once;"
        " keep it over restarts. At most 64 letters, digits, `.`, `_`, `-`.",
    )
    ws_host: str = Field("0.0.0.0", description="The address that WebSockets are served on.")
    ws_port: int = Field(
        8181, ge=0, le=65535, description="The port that WebSockets are served on; 0: any free."
    )
    ops_host: str = Field(
        "127.0.0.1",
        description="The address of metrics, status and the demo page; other than loopback needs a token.",
    )
    ops_port: int = Field(8182, ge=0, le=65535, description="The port of the same; 0: any free one.")
    ops_token: SecretStr = Field(
        SecretStr(""), description="The bearer token that the ops port asks for; empty: none, loopback only."
    )
    origins: CommaList = Field(
        (),
        description="Web origins that may open a session (`https://app.example.com`), comma-separated;"
        " empty: any.",
    )

    delivery_log: CommaList = Field(
        ("postgres",),
        description="Where the ends of pushes are written, comma-separated: `postgres`, `stdout` (JSON"
        " lines), `module:factory`. Without `postgres`, repeats are known from memory only, and every ttl"
        " but 0 is rejected.",
    )
    error_handler: str = Field(
        "log", description="Where errors go that the service survives: `log` or `module:factory`."
    )
    hooks: CommaList = Field(
        (), description="Told of sessions, outcomes and errors: `module:factory`, comma-separated."
    )
    retention_days: int = Field(30, ge=2, le=3650, description="Days that rows are kept.")

    confirm_timeout: float = Field(
        5.0, ge=0.1, le=300, description="Seconds that the proof of a push is awaited."
    )
    max_age: float = Field(
        60.0,
        ge=1,
        le=86400,
        description="Seconds after which a push is `expired` when it is taken that late.",
    )
    start_grace: float = Field(
        2.0,
        ge=0,
        le=60,
        description="Seconds after a start in which pushes wait for browsers that are coming back.",
    )
    drain_timeout: float = Field(
        10.0,
        ge=0.5,
        le=600,
        description="Seconds that a stop may take; what is open then goes back to the queue.",
    )
    prefetch: int = Field(
        1000,
        ge=1,
        le=65535,
        description="Messages that the broker gives out before the first is acknowledged.",
    )
    max_attempts: int = Field(
        20,
        ge=1,
        le=BROKER_DELIVERY_LIMIT - 1,
        description="Times a message is taken before it is given up as `rejected`/`poison`.",
    )
    max_data_bytes: int = Field(
        65536, ge=1, le=MESSAGE_BYTES_MAX, description="Bytes of `data` in one push request."
    )
    session_queue: int = Field(
        256, ge=1, le=65536, description="Frames that wait for one session before it is closed with 4408."
    )
    session_bytes: int = Field(
        1048576,
        ge=1024,
        le=1 << 30,
        description="Bytes that wait for one session, what its socket buffers included.",
    )
    total_bytes: int = Field(
        268435456, ge=1 << 20, le=1 << 40, description="Bytes that wait for all sessions together."
    )
    mailbox_pushes: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Pushes that are kept for one user; over it the oldest end as `dropped`/`mailbox_full`.",
    )
    mailbox_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1,
        le=1 << 40,
        description="Bytes of data that are kept for one user; over it the oldest end in the same way.",
    )

    id_memory_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1 << 16,
        le=1 << 36,
        description="Bytes in which the ids of the last day are remembered, to tell repeats before they are sent. At 16"
        " bits an id one new id in a hundred is looked up in the log, at 4 bits one in six; none is ever missed.",
    )

    outcome_events: bool = Field(True, description="Publish every outcome on the exchange `push.outcomes`.")
    declare: Literal["active", "passive"] = Field(
        "active",
        description="`active`: exchanges, queues and bindings are made where they are missing;"
        " `passive`: they are only looked for.",
    )
    uvloop: bool = Field(True, description="Run on uvloop, where it is installed.")

    @property
    def uses_postgres(self) -> bool:
        """Whether the rows are kept in Postgres; else in memory."""
        return "postgres" in self.delivery_log

    @field_validator("node")
    @classmethod
    def _check_node(cls, value: str) -> str:
        if not _NODE.fullmatch(value):
            raise ValueError(f"1 to 64 letters, digits, '.', '_', '-' expected, not {value!r}")
        return value

    @field_validator("ws_host", "ops_host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        if not value or any(c in value for c in "/@ "):
            raise ValueError(f"an address or a host name expected, not {value!r}")
        return value

    @field_validator("ops_port")
    @classmethod
    def _check_ops_port(cls, value: int, info: ValidationInfo) -> int:
        if value and value == info.data.get("ws_port"):
            raise ValueError(f"{value} is the port of the WebSockets already")
        return value

    @field_validator("ops_token")
    @classmethod
    def _check_ops_token(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        host = info.data.get("ops_host", "127.0.0.1")
        if not value.get_secret_value() and not is_loopback(host):
            raise ValueError(f"a token is required, since {PREFIX}OPS_HOST is {host}, which is not loopback")
        return value

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_origin(entry) for entry in value))

    @field_validator("delivery_log")
    @classmethod
    def _check_delivery_log(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("one or more of postgres, stdout, module:factory expected")
        return _plugins(value, ("postgres", "stdout"))

    @field_validator("error_handler")
    @classmethod
    def _check_error_handler(cls, value: str) -> str:
        return _plugins((value,), ("log",))[0]

    @field_validator("hooks")
    @classmethod
    def _check_hooks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _plugins(value, ())

    @field_validator("session_bytes")
    @classmethod
    def _check_session_bytes(cls, value: int, info: ValidationInfo) -> int:
        return _at_least(value, "max_data_bytes", info)

    @field_validator("total_bytes")
    @classmethod
    def _check_total_bytes(cls, value: int, info: ValidationInfo) -> int:
        return _at_least(value, "session_bytes", info)


GROUPS: Final[Mapping[str, Sequence[str]]] = {
    "Where things are": ("amqp_url", "postgres_dsn", "node", "ws_host", "ws_port", "ops_host", "ops_port"),
    "Who may come in": (
        "jwt_secret",
        "jwt_algorithms",
        "jwt_issuer",
        "jwt_audience",
        "origins",
        "ops_token",
    ),
    "The delivery log and plug-ins": ("delivery_log", "retention_days", "error_handler", "hooks"),
    "Times": ("confirm_timeout", "max_age", "start_grace", "drain_timeout"),
    "Limits": (
        "prefetch",
        "max_attempts",
        "max_data_bytes",
        "session_queue",
        "session_bytes",
        "total_bytes",
        "mailbox_pushes",
        "mailbox_bytes",
        "id_memory_bytes",
    ),
    "The broker": ("outcome_events", "declare"),
    "The process": ("log_level", "log_format", "dev", "uvloop"),
}
"""The settings by what they are about, in the order in which people read them."""

_URLS: Final = ("amqp_url", "postgres_dsn")
_KEYS: Final = ("jwt_secret", "ops_token")
_SECRET: Final = (*_KEYS, *_URLS)


def env_name(field: str) -> str:
    """The environment variable of a setting: `BRIDGE_WS_PORT`."""
    return PREFIX + field.upper()


def flag_name(field: str) -> str:
    """The flag of a setting: `--ws-port`."""
    return "--" + field.replace("_", "-")


def expected(field: str, info: FieldInfo) -> str:
    """What a value of this setting looks like, in words; empty where the description says it all."""
    kind = info.annotation
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        low = next(m.ge for m in info.metadata if isinstance(m, annotated_types.Ge))
        high = next(m.le for m in info.metadata if isinstance(m, annotated_types.Le))
        return f"a {'whole number' if kind is int else 'number'} from {low} to {high}"
    return ""


def default_text(field: str) -> str:
    """The default as a user would write it; for settings whose default is made at the start, how."""
    made = {"node": "the host name", "jwt_secret": ""}
    if field in made:
        return made[field]
    value = Settings.model_fields[field].default
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def misspelt(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Variables that begin like ours and are none, with the setting that was probably meant.

    Only near misses: container engines set variables such as BRIDGE_PORT for a service named bridge.
    """
    ours = [*map(env_name, Settings.model_fields), f"{PREFIX}SECRETS_DIR"]
    found: dict[str, str] = {}
    for name in sorted(n for n in environ if n.startswith(PREFIX) and n not in ours):
        near = difflib.get_close_matches(name, ours, n=1, cutoff=0.9)
        if near:
            found[name] = near[0]
    return found


def _problem(
    model: type[CommonSettings], loc: tuple[int | str, ...], message: str, kind: str, value: object
) -> tuple[str, str]:
    """A pydantic error in our words: the setting as the environment names it, and what was expected."""
    field = str(loc[0])
    if kind == "value_error":
        problem = message.removeprefix("Value error, ")
        for part in (str(value), *str(value).split(",")):
            if _may_be_secret(part):
                problem = problem.replace(repr(part.strip()), "what is given")
        return env_name(field), redaction.without_known(problem)
    wanted = expected(field, model.model_fields[field]) or "text"
    shown = "" if field in _SECRET or _may_be_secret(str(value)) else f", not {value!r}"
    return env_name(field), f"{wanted} expected{shown}"


def _may_be_secret(text: str) -> bool:
    """Whether this looks like an address or a connection string, which has a place of its own."""
    return "@" in text or "password" in text.lower()


def _without(problem: str, value: str) -> str:
    if problem:
        raise ValueError(problem)
    return value


def _plugins(specs: tuple[str, ...], built_in: tuple[str, ...]) -> tuple[str, ...]:
    for spec in specs:
        if spec not in built_in and not _PLUGIN.fullmatch(spec):
            raise ValueError(f"{', '.join((*built_in, 'module:factory'))} expected, not {spec!r}")
    if len(set(specs)) != len(specs):
        raise ValueError("each may be named once")
    return specs


def _origin(entry: str) -> str:
    """An origin as browsers send it (RFC 6454 6.2): lower case, no path, no default port."""
    if entry == "*":
        raise ValueError("'*' is not an origin: leave it empty to allow any")
    try:
        parts = urlsplit(entry)
        port = parts.port
    except ValueError:
        raise ValueError(f"https://host or https://host:port expected, not {entry!r}") from None
    if not parts.scheme or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError(f"https://host or https://host:port expected, not {entry!r}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None and port != default else "")


def _at_least(value: int, other: str, info: ValidationInfo) -> int:
    least = info.data.get(other)
    if least is not None and value < least:
        raise ValueError(f"at least {env_name(other)} ({least}) expected, not {value}")
    return value
