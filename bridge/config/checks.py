"""What values of settings must look like: each check returns the value, cleaned, or raises ValueError with what was
expected."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final
from urllib.parse import SplitResult, urlsplit

from pydantic import ValidationInfo

from bridge.addresses import is_loopback
from bridge.config.names import env_name
from bridge.core.sessions.carriers import CARRIERS

SECRET_VARIETY: Final = 8
"""Different characters that a secret must have: random ones have more, `aaaa...` and `change-me...` have not."""

KEYS_FILE_BYTES: Final = 1 << 20
"""Bytes that are read of a file with keys; it may have fewer, and says so itself."""

HEADERS_MAX: Final = 32
"""Headers that the connect hook may get."""

_PLUGIN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_DAYS = re.compile(r"days:[1-9][0-9]{0,3}")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def comma_list(value: object) -> object:
    """The parts of a comma-separated text."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def lower(value: object) -> object:
    """A word that may be written in any case."""
    return value.strip().lower() if isinstance(value, str) else value


def node(value: str) -> str:
    """The name of a process."""
    if not _NODE.fullmatch(value):
        raise ValueError(f"1 to 64 letters, digits, '.', '_', '-' expected, not {value!r}")
    return value


def workers(value: int, base: str, logs: tuple[str, ...]) -> int:
    """How many processes share the port, each a node named after `base`."""
    if value == 1:
        return value
    if "postgres" not in logs:
        raise ValueError(
            f"1 expected, not {value}: several processes know of one another only with postgres in"
            f" {env_name('delivery_log')}"
        )
    longest = f"{base}-{value}"
    if base and not _NODE.fullmatch(longest):
        raise ValueError(
            f"{env_name('node')} of at most {64 - len(longest) + len(base)} characters expected: worker {value} is"
            f" node {longest}"
        )
    return value


def host(value: str) -> str:
    """A host name or address to listen on."""
    if not value or any(c in value for c in "/@ "):
        raise ValueError(f"an address or a host name expected, not {value!r}")
    return value


def algorithms(value: tuple[str, ...]) -> tuple[str, ...]:
    """Signatures that the bridge can check."""
    # Imported here: the cryptography under it takes longer to load than most commands to run.
    from bridge.adapters.tokens import KEY_BYTES

    wrong = [name for name in value if name not in KEY_BYTES]
    if wrong or not value:
        raise ValueError(
            f"one or more of {', '.join(KEY_BYTES)} expected" + "".join(f", not {w!r}" for w in wrong)
        )
    return value


def secrets(value: str) -> tuple[str, ...]:
    """The secrets of a comma-separated text."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def each_secret(given: tuple[str, ...], signatures: tuple[str, ...], *, dev: bool) -> None:
    """Secrets that sign tokens; each must be a good one."""
    for place, value in enumerate(given, 1):
        try:
            secret(value, signatures, dev=dev)
        except ValueError as error:
            if len(given) == 1:
                raise
            of = f"secret {place} of {len(given)} (commas separate them, so none may have one)"
            raise ValueError(f"{of}: {error}") from None


def keys_file(path: str) -> None:
    """A file with a JWK Set whose keys can all be used."""
    from bridge.adapters.keys import read_jwks

    try:
        with open(path, "rb") as file:
            problems = read_jwks(file.read(KEYS_FILE_BYTES)).problems
    except OSError as error:
        raise ValueError(f"the file can't be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"the file can't be used: {error}") from None
    if problems:
        raise ValueError("the file can't be used: " + "; ".join(problems))


def credentials(path: str) -> None:
    """A file or a directory with credentials of the ops port."""
    from bridge.adapters.credentials import read_entries

    read_entries(path)


def _http_address(value: str) -> SplitResult:
    """The parts of an address of HTTP. It is never quoted: it may hold a password."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("an https:// address expected") from None
    if parts.scheme not in ("https", "http") or not parts.hostname or re.search(r"[\x00-\x20\x7f]", value):
        raise ValueError("an https:// address expected")
    return parts


def jwks_url(value: str, *, dev: bool) -> str:
    """The address of a JWK Set."""
    parts = _http_address(value)
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address without user and password expected")
    if parts.scheme == "http" and not dev:
        raise ValueError(f"https:// expected: http:// is only for development ({env_name('dev')})")
    return value


def connect_url(value: str, *, dev: bool) -> str:
    """The address of the connect hook. Cookies go there: only over TLS, or to this machine."""
    parts = _http_address(value)
    if parts.scheme == "http" and not dev and not is_loopback(parts.hostname or ""):
        raise ValueError(f"https:// expected: http:// is only for this machine, or with {env_name('dev')}")
    return value


def header_names(value: tuple[str, ...]) -> tuple[str, ...]:
    """Names of HTTP headers (RFC 9110 5.1), in lower case."""
    for name in value:
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", name):
            raise ValueError("names of headers expected, with commas between")
    if len(value) > HEADERS_MAX:
        raise ValueError(f"at most {HEADERS_MAX} names expected")
    return tuple(dict.fromkeys(name.lower() for name in value))


def secret(value: str, signatures: tuple[str, ...], *, dev: bool) -> None:
    """A secret that signs tokens; with `dev` any will do."""
    from bridge.adapters.tokens import KEY_BYTES

    key = value.encode()
    need = max(KEY_BYTES[name] for name in signatures)
    if not key:
        raise ValueError(
            f"a secret of at least {need} bytes is required, for example from `openssl rand -base64 48`;"
            f" or keys: {env_name('jwt_keys')} or {env_name('jwt_jwks_url')}; or {env_name('connect_url')}, which asks"
            " for no token"
        )
    if dev:
        return
    if len(key) < need:
        raise ValueError(f"at least {need} bytes expected, this one has {len(key)}")
    if len(set(key)) < SECRET_VARIETY:
        raise ValueError(
            "too easy to guess: it has fewer than"
            f" {SECRET_VARIETY} different characters; `openssl rand -base64 48` makes a good one"
        )


def plugins(specs: tuple[str, ...], built_in: tuple[str, ...]) -> tuple[str, ...]:
    """Names of plug-ins, `module:factory`, or of what is built in."""
    for spec in specs:
        if spec not in built_in and not _PLUGIN.fullmatch(spec):
            raise ValueError(f"{', '.join((*built_in, 'module:factory'))} expected, not {spec!r}")
    if len(set(specs)) != len(specs):
        raise ValueError("each may be named once")
    return specs


def origin(entry: str) -> str:
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


def carriers(value: tuple[str, ...], *, origins: bool, hook: bool) -> tuple[str, ...]:
    """Where a token may come from."""
    wrong = [word for word in value if word not in CARRIERS]
    if wrong or not value:
        given = "".join(f", not {word!r}" for word in wrong)
        raise ValueError(f"one or more of {', '.join(CARRIERS)} expected{given}")
    if "cookie" in value and not origins:
        # A browser sends the cookie whichever page asks it to.
        raise ValueError(f"cookie needs {env_name('origins')}: the pages that may use it")
    if "frame" in value and hook:
        raise ValueError(
            f"frame can't be used with {env_name('connect_url')}: who comes without a token is decided on at once"
        )
    return tuple(dict.fromkeys(value))


def cookie_name(value: str) -> str:
    """The name of a cookie (RFC 6265 4.1.1)."""
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", value):
        raise ValueError("a name of 1 to 64 letters, digits, '_', '-' or '.' expected")
    return value


def payload(value: str) -> str:
    """How long the log has the data of pushes: a word, or `days:N`."""
    value = value.strip().lower()
    if value not in ("retention", "while_kept", "none") and (
        not _DAYS.fullmatch(value) or int(value[5:]) > 3650
    ):
        raise ValueError(
            f"retention, days:N (a whole number of 1 to 3650), while_kept or none expected, not {value!r}"
        )
    return value


def payload_days(value: str) -> float | None:
    """The days of such a value after which data is erased that no push needs any more; None: it stays."""
    if value == "retention":
        return None
    return float(value.removeprefix("days:")) if value.startswith("days:") else 0.0


def at_least(value: int, other: str, info: ValidationInfo) -> int:
    """A limit that makes sense only if another is no larger."""
    least = info.data.get(other)
    if least is not None and value < least:
        raise ValueError(f"at least {env_name(other)} ({least}) expected, not {value}")
    return value


def network(value: str) -> IPv4Network | IPv6Network:
    """A network, or an address as one; raises ValueError that says what was expected."""
    try:
        return ip_network(value.strip(), strict=False)
    except ValueError as error:
        raise ValueError(f"{value!r} is neither an address (10.0.0.7) nor a network (10.0.0.0/8)") from error
