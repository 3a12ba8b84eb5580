"""Every setting of `bridge serve`: name, default, bounds and meaning."""

from __future__ import annotations

import secrets
import socket
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from bridge.addresses import http_secrets, is_loopback
from bridge.config import checks
from bridge.config.common import KEYS, CommonSettings
from bridge.config.names import PREFIX
from bridge.core import redaction
from bridge.core.model.pushes import MESSAGE_BYTES_MAX
from bridge.core.sessions.admission import AdmissionLimits, SessionsOver
from bridge.core.sessions.carriers import usual_carriers

BROKER_DELIVERY_LIMIT: Final = 100
"""The broker's own limit on the queue of requests. `max_attempts` is lower: the bridge writes a row when it gives a
message up, the broker would not."""

CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(checks.comma_list)]


class TokenSettings(CommonSettings):
    """What makes and checks tokens."""

    if TYPE_CHECKING:
        # Values come as text from everywhere; type checkers would derive an __init__ of the final types.
        def __init__(self, **values: Any) -> None: ...

    jwt_algorithms: CommaList = Field(
        ("HS256",),
        description="Signatures that are accepted of the secrets, comma-separated: `HS256`, `HS384`, `HS512`.",
    )
    jwt_keys: str = Field(
        "",
        description="A file with the public keys that check tokens, as a JWK Set: `RS256`, `ES256` (P-256), `EdDSA`"
        " (Ed25519). It is read again every ten minutes, and when a token has an unknown `kid`.",
    )
    jwt_jwks_url: str = Field(
        "",
        description="The address of such a JWK Set, as identity providers publish it; `https` only, but for"
        " `BRIDGE_DEV`.",
    )
    connect_url: SecretStr = Field(
        SecretStr(""),
        description="The connect hook: the address of a business system that is asked who a client without a token is;"
        " `https`, or `http` on this machine. A user and a password in it are sent along.",
    )
    jwt_secret: SecretStr = Field(
        default_factory=lambda data: SecretStr(secrets.token_urlsafe(48) if data.get("dev") else ""),
        description="Required without keys and connect hook: the secret that signs the tokens of users, at least 32"
        " bytes (`HS384`: 48, `HS512`: 64). Several may be given, comma-separated, to change it: each is accepted, the"
        " first signs. Better in a secret file or the environment than in a flag, which all users of the machine can"
        " see.",
    )
    jwt_issuer: str = Field("", description="What a token's `iss` must be; empty: not checked.")
    jwt_audience: str = Field("", description="What a token's `aud` must hold; empty: not checked.")

    def model_post_init(self, context: Any) -> None:
        """See CommonSettings."""
        super().model_post_init(context)
        keys = (getattr(self, name) for name in KEYS if name in type(self).model_fields)
        redaction.learn([*(key.get_secret_value() for key in keys), *self.jwt_secrets])
        redaction.learn(*http_secrets(self.connect_url.get_secret_value()))

    @property
    def jwt_secrets(self) -> tuple[str, ...]:
        """The secrets that verify tokens; the first one signs."""
        return checks.secrets(self.jwt_secret.get_secret_value())

    @field_validator("jwt_algorithms")
    @classmethod
    def _check_algorithms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checks.algorithms(value)

    @field_validator("jwt_keys")
    @classmethod
    def _check_keys(cls, value: str) -> str:
        if value:
            checks.keys_file(value)
        return value

    @field_validator("jwt_jwks_url")
    @classmethod
    def _check_jwks_url(cls, value: str, info: ValidationInfo) -> str:
        return checks.jwks_url(value, dev=bool(info.data.get("dev"))) if value else value

    @field_validator("connect_url")
    @classmethod
    def _check_connect_url(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        if value.get_secret_value():
            checks.connect_url(value.get_secret_value(), dev=bool(info.data.get("dev")))
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        given = checks.secrets(value.get_secret_value())
        # A wrong one of these is not in `data`, and is told by itself.
        keys = any(info.data.get(name, "wrong") for name in ("jwt_keys", "jwt_jwks_url", "connect_url"))
        if given or not keys:
            signatures = info.data.get("jwt_algorithms", ("HS256",))
            checks.each_secret(given or ("",), signatures, dev=bool(info.data.get("dev")))
        return value


class Settings(TokenSettings):
    """What `bridge serve` needs."""

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...

    node: Annotated[str, AfterValidator(checks.node)] = Field(
        default_factory=lambda: socket.gethostname(),
        description="This process's name in the log, unique among running bridges;"
        " the same after a restart. At most 64 letters, digits, `.`, `_`, `-`.",
    )
    ws_host: str = Field("0.0.0.0", description="The address that WebSockets are served on.")
    ws_port: int = Field(
        8181, ge=0, le=65535, description="The port that WebSockets are served on; 0: any free."
    )
    ops_host: str = Field(
        "127.0.0.1",
        description="The address that the ops port is served on (metrics, status, demo page);"
        " any but loopback needs a token.",
    )
    ops_port: int = Field(8182, ge=0, le=65535, description="The ops port; 0: any free one.")
    ops_credentials: str = Field(
        "",
        description="Who may ask the ops port, and for what: a file with lines `name scopes secret`, or a directory"
        " with a file for each name and `scopes secret` in it. Scopes are `read`, `push` and `admin`, separated by"
        " commas; a secret has at least 32 characters. It is read again within ten seconds of a change.",
    )
    ops_token: SecretStr = Field(
        SecretStr(""),
        description="A bearer token for the ops port that may do everything there; its name is `ops`. Without it and"
        " `BRIDGE_OPS_CREDENTIALS` none is asked for, and the port is on loopback only.",
    )
    origins: CommaList = Field(
        (),
        description="Web origins that may open a session (`https://app.example.com`), comma-separated;"
        " empty: any.",
    )

    token_from: CommaList = Field(
        default_factory=lambda data: usual_carriers(hook=bool(data.get("connect_url"))),
        description="Where a token may come from, comma-separated: `authorization` (the header), `subprotocol`,"
        " `query`, `frame` (the first message; not with `BRIDGE_CONNECT_URL`), `cookie`.",
    )
    token_cookie: Annotated[str, AfterValidator(checks.cookie_name)] = Field(
        "bridge_token",
        description="The name of the cookie that has the token, where `BRIDGE_TOKEN_FROM` names `cookie`; it counts"
        " only from the pages of `BRIDGE_ORIGINS`.",
    )
    token_days: float = Field(
        400.0,
        ge=0.01,
        le=36500,
        description="Days that a token may be good for, from `iat` to `exp`. Revocations are kept for as long.",
    )
    connect_headers: Annotated[CommaList, AfterValidator(checks.header_names)] = Field(
        ("cookie", "authorization", "origin", "user-agent"),
        description="The headers of a handshake that the connect hook gets, comma-separated. Cookies only from the"
        " pages of `BRIDGE_ORIGINS`: from others, handshakes with a cookie are refused.",
    )
    connect_timeout: float = Field(
        2.0, ge=0.1, le=8, description="Seconds that the connect hook has for an answer; then 503."
    )
    connect_at_once: int = Field(
        100,
        ge=2,
        le=10_000,
        description="The most requests to the connect hook that wait for an answer; over it handshakes get 503.",
    )
    delivery_log: CommaList = Field(
        ("postgres",),
        description="Where outcomes are written, comma-separated: `postgres`, `stdout` (JSON lines), `traces` (spans),"
        " `module:factory`. Without `postgres` the bridge knows repeats from memory only, and rejects every ttl but 0.",
    )
    error_handler: str = Field(
        "log", description="Where errors go that do not stop the bridge: `log` or `module:factory`."
    )
    hooks: CommaList = Field(
        (), description="Told of sessions, outcomes and errors: `module:factory`, comma-separated."
    )
    max_sessions: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="Sessions of this process; over it handshakes get 503. 0: as many as it may have files open.",
    )
    max_sessions_per_user: int = Field(
        1000, ge=0, le=1_000_000, description="Sessions of one user, over all nodes; 0: any number."
    )
    sessions_over: SessionsOver = Field(
        SessionsOver.REPLACE,
        description="What happens when a user opens one more: `replace` closes the oldest with 4409, `refuse` answers"
        " 429.",
    )
    max_sessions_per_address: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="Sessions from one address on this process (of IPv6, from one /64); over it handshakes get 429. 0:"
        " any number, since many people may share one.",
    )
    trusted_proxies: CommaList = Field(
        (),
        description="Addresses and networks of your proxies, comma-separated: their `X-Forwarded-For` is believed.",
    )
    handshakes_per_second: float = Field(
        5000.0, ge=0, le=1e6, description="Handshakes a second; over it they get 503. 0: any number."
    )
    handshake_timeout: float = Field(
        10.0, ge=0.1, le=300, description="Seconds that a client has for its opening request."
    )
    max_header_bytes: int = Field(
        40 * 1024,
        ge=4096,
        le=1 << 20,
        description="Bytes of an opening request with its headers; each line may have half of them.",
    )
    max_frame_bytes: int = Field(
        64 * 1024,
        ge=1024,
        le=1 << 24,
        description="Bytes of one message from a client; a larger one ends with 1009.",
    )
    frames_per_second: float = Field(
        2000.0,
        ge=1,
        le=1e6,
        description="Frames that a client may send a second; one that sends more is not read for a while.",
    )
    frames_per_minute: float = Field(
        60_000.0,
        ge=60,
        le=6e7,
        description="Frames that a client may send a minute; one that sends more is closed with 4429.",
    )
    retention_days: int = Field(30, ge=2, le=3650, description="Days that rows are kept.")
    payload: Annotated[str, AfterValidator(checks.payload)] = Field(
        "retention",
        description="How long the log has the data of pushes and the bodies of rejected requests: `retention` (as long"
        " as their rows), `days:N` (N days after the push is no longer kept), `while_kept` (bodies: never), `none`"
        " (never: what must be stored, such as a push with a ttl, is rejected).",
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share the WebSocket port, each a node of its own named `<node>-<k>`; more than one"
        " needs `postgres` in the delivery log.",
    )

    confirm_timeout: float = Field(
        5.0, ge=0.1, le=300, description="Seconds to wait for the proof of a push."
    )
    max_age: float = Field(
        60.0,
        ge=1,
        le=86400,
        description="A push without a ttl ends as `expired` when it is taken more than this many seconds after it was"
        " published.",
    )
    start_grace: float = Field(
        2.0,
        ge=0,
        le=60,
        description="Seconds after a start in which pushes wait for clients to reconnect.",
    )
    drain_timeout: float = Field(
        10.0,
        ge=0.5,
        le=600,
        description="Seconds that a stop may take; messages that are open then go back to the queue.",
    )
    drain_rate: float = Field(
        500.0,
        ge=0,
        le=100_000,
        description="Sessions that a stop closes a second. Those for which `BRIDGE_DRAIN_TIMEOUT` leaves no time are"
        " closed at its end, and told to come back one after the other at this rate. 0: all at once.",
    )
    topic_linger: float = Field(
        3600.0,
        ge=0,
        le=30 * 86_400,
        description="Seconds for which a user whose session has closed still counts as a subscriber of its topics:"
        " pushes to them with a ttl are kept for the user. 0: only who is connected.",
    )
    session_lifetime: float = Field(
        0.0,
        ge=0,
        le=365 * 86400,
        description="Seconds after which, about, a session is asked to move on: it comes back at a node that the load"
        " balancer chooses, so nodes become even after one was added. 0: never.",
    )
    prefetch: int = Field(
        1000,
        ge=1,
        le=65535,
        description="The most messages that the broker hands out and that are not acknowledged yet, of each partition; "
        "with `BRIDGE_TENANT_SHARE=fair` those of one tenant that are taken.",
    )
    partitions: int = Field(
        1,
        ge=1,
        le=64,
        description="Queues over which requests are spread by their routing key, so that several nodes take at once;"
        " the same for all nodes, and fixed once they are made. More than 1 need RabbitMQ's plug-in"
        " `rabbitmq_consistent_hash_exchange`.",
    )
    tenant_share: Literal["off", "fair"] = Field(
        "off", description="`fair`: tenants take turns, for which pushes are read ahead; `off`: one line."
    )
    max_attempts: int = Field(
        20,
        ge=1,
        le=BROKER_DELIVERY_LIMIT - 1,
        description="How often a message is taken before it ends as `rejected`/`poison`.",
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
        description="Bytes that wait for one session, including what its socket buffers.",
    )
    total_bytes: int = Field(
        268435456, ge=1 << 20, le=1 << 40, description="Bytes that wait for all sessions together."
    )
    mailbox_pushes: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Pushes kept for one user; beyond it the oldest end as `dropped`/`mailbox_full`.",
    )
    mailbox_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1,
        le=1 << 40,
        description="Bytes of data kept for one user; beyond it the oldest end in the same way.",
    )

    id_memory_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1 << 16,
        le=1 << 36,
        description="Bytes of memory for the ids of the last day, by which repeats are recognised before they are sent."
        " With 16 bits an id, one new id in a hundred is looked up in the log; with 4 bits, one in six. No repeat is"
        " missed.",
    )

    outcome_events: bool = Field(True, description="Publish every outcome on the exchange `push.outcomes`.")
    session_events: bool = Field(
        True, description="Publish on the exchange `push.sessions` that sessions open and close."
    )
    declare: Literal["active", "passive"] = Field(
        "active",
        description="`active`: missing exchanges, queues and bindings are made; `passive`: they are only looked for.",
    )
    uvloop: bool = Field(True, description="Run on uvloop, where it is installed.")

    @property
    def admission(self) -> AdmissionLimits:
        """How many may come in."""
        return AdmissionLimits(
            sessions=self.max_sessions,
            of_user=self.max_sessions_per_user,
            over=self.sessions_over,
            of_address=self.max_sessions_per_address,
            handshakes_per_second=self.handshakes_per_second,
        )

    @property
    def trusted_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks of the proxies."""
        return tuple(checks.network(entry) for entry in self.trusted_proxies)

    @field_validator("trusted_proxies")
    @classmethod
    def _check_trusted_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(checks.network(entry)) for entry in value)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of all nodes that `bridge serve` is with these settings, by worker."""
        if self.workers == 1:
            return (self.node,)
        return tuple(f"{self.node}-{k}" for k in range(1, self.workers + 1))

    @property
    def erased_after(self) -> float | None:
        """Days after which data is erased once its push is no longer kept; None: it goes with its row."""
        return checks.payload_days(self.payload)

    @property
    def uses_postgres(self) -> bool:
        """Whether the rows are kept in Postgres; else in memory."""
        return "postgres" in self.delivery_log

    @field_validator("ws_host", "ops_host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        return checks.host(value)

    @field_validator("ops_port")
    @classmethod
    def _check_ops_port(cls, value: int, info: ValidationInfo) -> int:
        if value and value == info.data.get("ws_port"):
            raise ValueError(f"{value} is already the port for WebSockets")
        return value

    @field_validator("ops_credentials")
    @classmethod
    def _check_ops_credentials(cls, value: str) -> str:
        if value:
            checks.credentials(value)
        return value

    @field_validator("ops_token")
    @classmethod
    def _check_ops_token(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        host = info.data.get("ops_host", "127.0.0.1")
        # Wrong credentials are not in `data`, and are told by themselves.
        others = info.data.get("ops_credentials", "wrong")
        if not value.get_secret_value() and not others and not is_loopback(host):
            raise ValueError(
                f"a token is required (or {PREFIX}OPS_CREDENTIALS), since {PREFIX}OPS_HOST is {host}, which is not"
                " loopback"
            )
        return value

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(checks.origin(entry) for entry in value))

    @field_validator("token_from")
    @classmethod
    def _check_token_from(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        origins, hook = bool(info.data.get("origins", "wrong")), bool(info.data.get("connect_url"))
        return checks.carriers(value, origins=origins, hook=hook)

    @field_validator("delivery_log")
    @classmethod
    def _check_delivery_log(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("one or more of postgres, stdout, traces, module:factory expected")
        return checks.plugins(value, ("postgres", "stdout", "traces"))

    @field_validator("partitions")
    @classmethod
    def _check_partitions(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and "postgres" not in info.data.get("delivery_log", ("postgres",)):
            raise ValueError("more than 1 need BRIDGE_DELIVERY_LOG=postgres, by which nodes share them")
        return value

    @field_validator("error_handler")
    @classmethod
    def _check_error_handler(cls, value: str) -> str:
        return checks.plugins((value,), ("log",))[0]

    @field_validator("hooks")
    @classmethod
    def _check_hooks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checks.plugins(value, ())

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, value: int, info: ValidationInfo) -> int:
        # A wrong one of these is not in `data`, and is told by itself.
        return checks.workers(value, info.data.get("node", ""), info.data.get("delivery_log", ("postgres",)))

    @field_validator("session_bytes")
    @classmethod
    def _check_session_bytes(cls, value: int, info: ValidationInfo) -> int:
        return checks.at_least(value, "max_data_bytes", info)

    @field_validator("total_bytes")
    @classmethod
    def _check_total_bytes(cls, value: int, info: ValidationInfo) -> int:
        return checks.at_least(value, "session_bytes", info)
