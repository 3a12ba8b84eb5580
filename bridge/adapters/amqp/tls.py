"""TLS to the broker: the context that its address asks for, and in one sentence what is wrong and what to do."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from typing import Final

from aiormq.connection import SSLContextProvider
from yarl import URL

from bridge.core.errors import BrokerUnavailable

FILES: Final = ("cafile", "capath", "certfile", "keyfile")
"""The parameters of the address that name files."""
_ADVICE: Final = (
    (
        "(Hostname|IP address) mismatch",
        "the broker's certificate is for another host than the address names: use a name or an address that is in the"
        " certificate",
    ),
    (
        "certificate has expired",
        "the broker's certificate has expired: it needs a new one",
    ),
    (
        "(Missing|Empty) (Authority|Subject) Key Identifier|CA cert does not include key usage",
        "the broker's certificate, or that of its authority, lacks an extension that RFC 5280 asks for, and Python from"
        " 3.13 on insists: make it again with basicConstraints and keyUsage (the authority), subjectKeyIdentifier and"
        " authorityKeyIdentifier",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the broker's certificate is signed by nobody who is trusted here: name the file with the certificate of its"
        " authority in the broker's address, as ?cafile=/path/ca.pem",
    ),
    (
        "ALERT_CERTIFICATE_REQUIRED|ALERT_HANDSHAKE_FAILURE",
        "the broker wants a certificate of the bridge: name its file and that of its key in the broker's address, as"
        " ?certfile=/path/bridge.pem&keyfile=/path/bridge.key",
    ),
    (
        "ALERT_UNKNOWN_CA|ALERT_BAD_CERTIFICATE|ALERT_CERTIFICATE_UNKNOWN",
        "the broker does not trust the certificate in certfile: its cacertfile must have the authority that signed it",
    ),
    (
        "ALERT_CERTIFICATE_EXPIRED",
        "the certificate in certfile has expired: the bridge needs a new one",
    ),
    (
        "WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE",
        "there is no TLS at this port: name the broker's port for TLS, usually 5671, or write amqp://",
    ),
)


async def context_of(url: URL, contexts: SSLContextProvider) -> ssl.SSLContext:
    """The context for this address. Raises BrokerUnavailable where a file that it names can't be used."""
    try:
        return await contexts.get_context()
    except (OSError, ValueError) as exc:
        raise BrokerUnavailable(f"connect: {_unusable(url, exc)}") from exc


def _unusable(url: URL, error: Exception) -> str:
    """Which file of the address it is. The library's error does not say it."""
    named = {name: url.query[name] for name in FILES if name in url.query}
    for name, path in named.items():
        if not os.access(path, os.R_OK):
            return f"{name} in the broker's address: {path} can't be read"
    text = str(error)
    if "KEY_VALUES_MISMATCH" in text:
        return f"keyfile in the broker's address: {named['keyfile']} is not the key of {named['certfile']}"
    if "certfile" in named and not re.search("NO_CERTIFICATE_OR_CRL|no start line", text):
        return (
            "certfile and keyfile in the broker's address must be a certificate and its key, in PEM and without a"
            f" passphrase ({text})"
        )
    return f"cafile in the broker's address holds no certificate in PEM ({text})"


def advice(error: BaseException) -> str:
    """What is wrong with TLS, and what to do; empty where the error is about something else."""
    for text in _texts(error):
        for pattern, sentence in _ADVICE:
            if re.search(pattern, text):
                return f"{sentence} ({_short(text)})"
    return ""


def _texts(error: BaseException | None) -> Iterator[str]:
    """What this error and its causes say. The library repeats some as text only, and may make a circle of causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield str(error)
        error = error.__cause__ or error.__context__


def _short(text: str) -> str:
    """`CERTIFICATE_VERIFY_FAILED: self-signed certificate` of OpenSSL's text."""
    found = re.search(r"\[SSL: (?P<code>\w+)\] (?P<words>[^(\\']*)", text)
    if found is None:
        return text
    words = found["words"].strip().removeprefix("certificate verify failed: ")
    return f"{found['code']}: {words.rstrip('.')}"
