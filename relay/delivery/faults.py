"""What kept a request from being answered, in words.

Law: total, and without host, path or credentials: the words go into the store, the log and the API.
"""

import errno
import os
import re
import socket
import ssl
from datetime import timedelta

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from relay.delivery.egress import refused_by_egress

FAULTS = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)
"""What a request may raise for what the other side did."""

_OUR_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""Not EADDRNOTAVAIL: a target's address of a family that this machine has not gives it for ever."""
_INNER_ERRNO = re.compile(r"\[Errno ([0-9]{1,5})\]")


def is_our_shortage(error: BaseException) -> bool:
    """Whether this process or machine has run out of something."""
    return getattr(error, "errno", None) in _OUR_SHORTAGE


def fault_behind_proxy(error: Exception, timeout: timedelta) -> str:
    """The same where a proxy was to be gone through: what could not be resolved, dialled or opened is the proxy."""
    match error:
        case aiohttp.ClientHttpProxyError(status=407):
            return "proxy: status 407, it wants other credentials"
        case aiohttp.ClientHttpProxyError():
            return f"proxy: status {error.status}, it opens no way to the target"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError() | ssl.SSLError():
            return fault(error, timeout)
        case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            return f"proxy: {fault(error, timeout)}"
    return fault(error, timeout)


def fault(error: Exception, timeout: timedelta) -> str:
    """A transport fault in words, without host, path or credentials."""
    forbidden = refused_by_egress(error)
    if forbidden:
        return f"egress policy forbids it: {forbidden}"
    match error:
        case aiohttp.ConnectionTimeoutError():
            return "timeout: no connection"
        case TimeoutError():
            return f"timeout: no answer within {timeout.total_seconds():g} s"
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            return f"DNS: {words(error)}"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError() | ssl.SSLError():
            return f"TLS: {words(error)}"
        case aiohttp.ClientConnectorError():
            return f"connect: {words(error)}"
        case aiohttp.ServerDisconnectedError():
            return "connection closed without an answer"
        case aiohttp.ClientResponseError() | HttpProcessingError():
            return "malformed answer"
        case aiohttp.ClientOSError() | OSError():
            return f"connection broke: {words(error)}"
    return f"request failed: {type(error).__name__}"


def words(error: Exception) -> str:
    """The operating system's or TLS library's own words for a fault, without the address it was about."""
    inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return inner.verify_message
    if isinstance(inner, ssl.SSLError):
        return (inner.reason or "handshake failed").replace("_", " ").lower()
    code = getattr(inner, "errno", None)
    if code is None and (first := _INNER_ERRNO.search(str(inner))):
        code = int(first[1])  # several addresses failed, each in its own way: told as one text, which names them
    if isinstance(code, int) and code in errno.errorcode:
        return os.strerror(code)
    fallback = "unknown fault" if type(inner) is OSError else type(inner).__name__
    return getattr(inner, "strerror", None) or fallback
