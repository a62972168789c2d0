"""Certificates and keys: loaded once while the config is read, so that a start cannot fail for them.

Law: what is wrong is named by file. The expiry is read by serving the certificate to ourselves in memory, the one
public way the standard library has to look into a certificate that is not a CA.
"""

import os
import ssl
import stat
import time
from collections.abc import Callable

from relay.config.expansion import Expanded
from relay.config.problems import Refused

_LONGEST_PATH = 200
"""Characters of a path that a message shows; a key in base64 has more."""

_NOT_YET_VALID = 9
_LARGEST = 4 * 1024 * 1024
"""Bytes; more than any file of certificates."""

_EXPIRED = 10
"""OpenSSL's verify codes X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


class _Encrypted(Exception):
    """The key asks for a password."""


def checked(cert: str, key: str, *, warn: Callable[[str], None]) -> None:
    """Raises `Refused` when the pair cannot be shown; `warn` is told when the other side will not accept its dates."""
    certificate = _pem(cert, "certificate", "CERTIFICATE-----")
    _pem(key, "key", "PRIVATE KEY-----")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except _Encrypted:
        raise Refused(f"key {_named(key)} is encrypted; store it without a password") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise Refused(f"key {_named(key)} does not belong to certificate {_named(cert)}") from None
        raise Refused(f"certificate {_named(cert)} and key {_named(key)} cannot be used: {error.reason}") from None
    except OSError as error:
        raise Refused(f"cannot read certificate or key: {error.strerror}") from None
    if doubt := _date_doubt(context, certificate):
        warn(f"certificate {_named(cert)} {doubt}")


def checked_authority(path: str, *, warn: Callable[[str], None]) -> None:
    """Raises `Refused` when nobody can be trusted by this file; `warn` is told when all of it has expired."""
    text = _pem(path, "CA certificate", "CERTIFICATE-----")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "not a certificate"
        raise Refused(f"CA certificate {_named(path)} cannot be used: {reason}") from None
    ends = [ssl.cert_time_to_seconds(str(found["notAfter"])) for found in context.get_ca_certs()]
    if ends and max(ends) < time.time():
        warn(f"CA certificate {_named(path)} has expired")


def _named(path: str) -> str:
    """A path as a message may show it; what is no path may be the key itself, which was meant to be in a file."""
    if isinstance(path, Expanded):
        return "(the expanded value)"
    return str(path) if len(path) <= _LONGEST_PATH and "-----" not in path else "(which is no path of a file)"


def _no_password() -> str:
    raise _Encrypted


def _pem(path: str, what: str, mark: str) -> str:
    try:
        # without O_NONBLOCK a named pipe would be waited for, and a device may have no end
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            text = (
                file.read(_LARGEST).decode("utf-8", "replace") if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else ""
            )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a usable path"
        raise Refused(f"cannot read {what} {_named(path)}: {reason}") from None
    if mark not in text:
        raise Refused(f"{what} {_named(path)} is not PEM: it has no line that ends in {mark}")
    return text


def _date_doubt(server: ssl.SSLContext, certificate: str) -> str | None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        client.load_verify_locations(cadata=certificate)
        _shake_hands(server, client)
    except ssl.SSLCertVerificationError as error:
        return {_EXPIRED: "has expired", _NOT_YET_VALID: "is not valid yet"}.get(error.verify_code)
    except ssl.SSLError:
        return None
    return None


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """A handshake between two ends in memory; raises what the client finds wrong."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True))
    waiting = set(ends)
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
                waiting.discard(end)
            except ssl.SSLWantReadError:
                continue
        if not waiting:
            return
