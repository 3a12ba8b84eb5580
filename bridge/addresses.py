"""The addresses of broker and database as users write them: what is wrong with one, and which secrets are in it.

A problem quotes nothing of the address: if it can't be read, nobody knows which part is the password.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from bridge.core.redaction import without_known

AMQP_SHAPE: Final = "amqp://user:password@host:port/vhost expected, or amqps://"
POSTGRES_SHAPE: Final = "postgresql://user:password@host:port/database expected, or host=... dbname=..."
NO_HOST: Final = "the host is no host name, whose parts have 1 to 63 characters each"
VHOST_BYTES_MAX: Final = 255
"""The size of a short string in AMQP."""
ENCODE: Final = "in a user, password or name, write it as %{:02X}"

_SCHEMES: Final = ("postgresql://", "postgres://")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_PARAMETER: Final = re.compile(r'"([a-z_]{1,40})"')
_NUMBERS: Final = (
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)
_CHOICES: Final = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "gssencmode": ("disable", "prefer", "require"),
    "channel_binding": ("disable", "prefer", "require"),
    "target_session_attrs": (
        "any",
        "read-write",
        "read-only",
        "primary",
        "standby",
        "prefer-standby",
    ),
}
_QUERY_PASSWORD: Final = re.compile(r"((?:ssl)?password=)[^&]+", re.IGNORECASE)
_CONNINFO_PASSWORD: Final = re.compile(
    r"((?:ssl)?password\s*=\s*)('(?:\\.|[^'\\])*'?|(?:\\.|[^\s\\])+)", re.IGNORECASE
)


class Secrets(NamedTuple):
    """What of an address must not be shown, and the words beside it that may be."""

    secrets: Sequence[str]
    public: Sequence[str]


def amqp_problem(url: str) -> str:
    """What is wrong with the address of the broker; empty if nothing is (RabbitMQ URI specification)."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in ("amqp", "amqps"):
        return AMQP_SHAPE
    return _uri_problem(url) or _amqp_parts_problem(url)


def _amqp_parts_problem(url: str) -> str:
    # Errors of `urlsplit` and `port` would quote what they could not read.
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "the host, or the port behind it, can't be read: a port is a number up to 65535"
    if not parts.hostname:
        return AMQP_SHAPE
    if port == 0:
        return "the port is a number from 1 to 65535"
    if not _is_host(unquote(parts.hostname)):
        return NO_HOST
    # A password with a `?` in it is read as parameters: see `_conninfo_problem`.
    may_name = parts.username is not None or parts.port is None
    return _vhost_problem(parts.path[1:]) or _amqp_query_problem(
        parts.query, may_name=may_name, secure=parts.scheme == "amqps"
    )


def _vhost_problem(path: str) -> str:
    vhost = unquote(path)
    if len(vhost.encode()) > VHOST_BYTES_MAX:
        return f"the vhost has more than {VHOST_BYTES_MAX} bytes"
    return "the vhost has a control character" if _CONTROL.search(vhost) else ""


def _amqp_query_problem(query: str, *, may_name: bool, secure: bool) -> str:
    """What the library would ignore, or fail on when it connects.

    `may_name`: a parameter's name can't be part of a password. `secure`: the address is amqps://.
    """
    for name, value in parse_qsl(query, keep_blank_values=True):
        parameter = _AMQP_PARAMETERS.get(name)
        if parameter is None:
            named = f" {name}" if may_name and _NAME.fullmatch(name) else ""
            known = ", ".join(_AMQP_PARAMETERS)
            return f"there is no parameter{named} of the broker's address; there are {known}"
        wanted, fits = parameter
        if not fits(value):
            return f"{name}: {wanted} expected"
        if name in _OF_TLS and not secure:
            return f"{name}: it is for amqps:// only, and this address is amqp://"
    return ""


def _is_base64(value: str) -> bool:
    try:
        base64.b64decode(value, validate=True)
    except ValueError:
        return False
    return True


def _is_number(value: str, most: int) -> bool:
    return value.isascii() and value.isdigit() and len(value) < 10 and int(value) <= most


def _is_seconds(value: str) -> bool:
    return re.fullmatch(r"\d{1,6}(\.\d{1,6})?", value, re.ASCII) is not None


_AMQP_PARAMETERS: Final[Mapping[str, tuple[str, Callable[[str], bool]]]] = {
    "auth": ("plain or external", lambda value: value.lower() in ("plain", "external")),
    "cafile": ("a path", bool),
    "capath": ("a path", bool),
    "cadata": ("base64", _is_base64),
    "certfile": ("a path", bool),
    "keyfile": ("a path", bool),
    "no_verify_ssl": ("0 or 1", lambda value: value in ("0", "1")),
    "heartbeat": ("whole seconds, 65535 at most", lambda value: _is_number(value, 65535)),
    "name": ("a text", lambda value: True),
    "interleave": ("a whole number", lambda value: _is_number(value, 999_999_999)),
    "happy_eyeballs_delay": ("seconds", _is_seconds),
}
"""The parameters of the broker's address: what is expected, and whether a value fits."""
_OF_TLS: Final = ("cafile", "capath", "cadata", "certfile", "keyfile", "no_verify_ssl")


def _is_host(host: str) -> bool:
    """Whether this can be a host name; the resolver would raise an error that is none of ours."""
    try:
        return bool(host.rstrip(".").encode("idna"))
    except UnicodeError:
        return False


def postgres_problem(dsn: str) -> str:
    """What is wrong with the address of the database; empty if nothing is (libpq, Connection Strings)."""
    # Loaded here: most commands that read settings need no database.
    from psycopg import ProgrammingError, conninfo

    is_uri = dsn.startswith(_SCHEMES)
    if not is_uri and "=" not in dsn:
        return POSTGRES_SHAPE
    if is_uri and (problem := _uri_problem(dsn)):
        return problem
    try:
        values = conninfo.conninfo_to_dict(dsn)
    except ProgrammingError as error:
        return _conninfo_problem(dsn, str(error))
    return _values_problem({name: str(value) for name, value in values.items() if value is not None})


def _conninfo_problem(dsn: str, said: str) -> str:
    """libpq's error in words that quote nothing, except the name of a parameter."""
    parameter = _PARAMETER.search(said)
    if "key/value separator" in said:
        return "name=value expected behind the ?, joined by &; a further = is written %3D"
    if "query parameter" in said or "connection option" in said:
        # A password with a `?` in it is read as parameters. Then an `@` follows, which was refused before, or there is
        # only a user and a password, without a host.
        before = dsn.partition("?")[0].partition("://")[2]
        whole = dsn.startswith(_SCHEMES) and ("@" in before or ":" not in before)
        name = f" {parameter.group(1)}" if parameter and whole else ""
        hint = "; the bridge works in schema public" if name == " schema" else ""
        return f"there is no parameter{name} of a Postgres connection{hint}"
    if "unterminated" in said:
        return "a quote is opened and not closed"
    if 'missing "="' in said:
        return "name=value expected: a value with a space wants quotes, as in password='a b'"
    return POSTGRES_SHAPE


def _values_problem(values: dict[str, str]) -> str:
    hosts, ports = values.get("host", "").split(","), values.get("port", "").split(",")
    # `/` and `@` begin the directory of a socket and an abstract socket.
    if not all(_is_host(host) for host in hosts if host and not host.startswith(("/", "@"))):
        return NO_HOST
    places = values["hostaddr"].split(",") if values.get("hostaddr") else hosts
    if len(ports) > 1 and len(ports) != len(places):
        return f"{len(places)} hosts and {len(ports)} ports: one port expected, or one for each host"
    if values.get("host") and len(hosts) != len(places):
        return "as many of host as of hostaddr expected"
    for port in values.get("port", "").split(","):
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            return "the port is a number from 1 to 65535"
    for name in _NUMBERS:
        if name in values and not re.fullmatch(r"\s*-?\d{1,9}\s*", values[name]):
            return f"{name}: a whole number expected"
    for name, choices in _CHOICES.items():
        if name in values and values[name] not in choices:
            return f"{name}: one of {', '.join(choices)} expected"
    return ""


def _uri_problem(uri: str) -> str:
    """What is forbidden in every part of a URI (RFC 3986)."""
    control = _CONTROL.search(uri)
    if control:
        return f"a control character ({ENCODE.format(ord(control.group()))})"
    if any(c.isspace() for c in uri):
        return f"a space ({ENCODE.format(32)})"
    if _BAD_ESCAPE.search(uri):
        return f"a % that begins no %XX ({ENCODE.format(37)})"
    try:
        unquote(uri, errors="strict")
    except UnicodeDecodeError:
        return "percent escapes that are not UTF-8"
    if "%00" in uri:
        return "a zero byte, %00, which nothing can have"
    if "\\" in uri:
        return f"a backslash ({ENCODE.format(92)})"
    _, _, rest = uri.partition("://")
    end = re.search(r"[/?#]", rest)
    if end is not None and "@" in rest[end.start() :]:
        return "an @ behind a /, ? or #: in a user, password or name, write / as %2F, ? as %3F, # as %23, @ as %40"
    if "#" in rest:
        return f"a # ({ENCODE.format(35)})"
    if rest[: end.start() if end else None].count("@") > 1:
        return f"more than one @ ({ENCODE.format(64)})"
    return ""


def amqp_secrets(url: str) -> Secrets:
    """The secrets of an address of the broker that has no problem."""
    return _of_uri(urlsplit(url))


def _of_uri(parts: SplitResult) -> Secrets:
    raw = parts.password or ""
    public = [unquote(parts.username or ""), parts.hostname or "", unquote(parts.path[1:])]
    return Secrets([raw, unquote(raw)], public)


def postgres_secrets(dsn: str) -> Secrets:
    """The secrets of an address of the database that has no problem."""
    from psycopg import conninfo

    values = conninfo.conninfo_to_dict(dsn)
    secrets = [str(values[name]) for name in ("password", "sslpassword") if values.get(name)]
    public = [str(values[name]) for name in ("user", "host", "dbname") if values.get(name)]
    if dsn.startswith(_SCHEMES):
        # Also as it is written, percent-encoded.
        raw = re.match(r"[a-z]+://[^:@/?#]*:([^@/?#]*)@", dsn)
        secrets += [raw.group(1)] if raw else []
    return Secrets(secrets, public)


def http_secrets(url: str) -> Secrets:
    """The secrets of an address of HTTP: its password, and every value of its query."""
    parts = urlsplit(url)
    held = _of_uri(parts)
    raw = [pair.partition("=")[2] for pair in parts.query.split("&")]
    given = [value for _, value in parse_qsl(parts.query)]
    return Secrets([*held.secrets, *raw, *given], held.public)


def is_loopback_origin(origin: str) -> bool:
    """Whether this Origin is a page that this machine serves."""
    try:
        return is_loopback(urlsplit(origin).hostname or "")
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether this host name or address always means this machine (RFC 6761 6.3); IPv6 with or without brackets."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def redacted(url: str) -> str:
    """The URL or conninfo with `***` in place of every password; safe for logs and people."""
    # First, as a secret that is masked in part is no longer recognised.
    url = without_known(url)
    scheme, separator, rest = url.partition("://")
    if separator:
        end = re.search(r"[/?#]", rest)
        # A raw `/` in a password is illegal; the host still begins behind the last `@`, or the password would show.
        cut = (
            rest.rfind("@")
            if end is None or "@" not in rest[: end.start()]
            else rest.rfind("@", 0, end.start())
        )
        if cut >= 0:
            user, colon, _ = rest[:cut].partition(":")
            rest = user + (":***" if colon else "") + rest[cut:]
        return scheme + separator + _QUERY_PASSWORD.sub(r"\1***", rest)
    return _CONNINFO_PASSWORD.sub(r"\1***", url)
