"""How we prove ourselves to a target, and which way we take to it.

Law: values alone. Two are equal when everything in them is, secrets and the content of certificates included, so that a
change of any of it is seen as a change of the target; none shows a secret in its repr.
"""

from dataclasses import dataclass, field

from relay.model.proving import ApiKeyCheck, BasicCheck, BearerCheck, HmacCheck, Secret


@dataclass(frozen=True, slots=True)
class QueryKey:
    """A shared key in the query of the URL, under `name`."""

    name: str
    value: Secret


@dataclass(frozen=True, slots=True)
class OAuth2Client:
    """A client of OAuth 2.0 by the grant `client_credentials` (RFC 6749, section 4.4)."""

    token_url: str = field(repr=False)
    client_id: str
    client_secret: Secret
    scope: str = ""
    audience: str = ""
    in_body: bool = False
    """The client's credentials stand in the form; else in `Authorization: Basic` (RFC 6749, section 2.3.1)."""


StaticAuth = ApiKeyCheck | BearerCheck | BasicCheck
"""The same headers in each request; as a source that checks them would want them, each with a single secret."""

Auth = StaticAuth | QueryKey | HmacCheck | OAuth2Client


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Whom we trust at a target, and the certificate that we show. Paths of PEM files, checked when they were read."""

    ca: str | None = None
    """Its certificates alone are trusted; None trusts what the system trusts."""
    cert: str | None = None
    key: str | None = None
    insecure: bool = False
    """Whoever answers is believed."""
    content: bytes = field(default=b"", repr=False)
    """A digest of what the files held, so that another content is another value."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that requests go through."""

    url: str
    """`http://HOST:PORT`, without credentials."""
    username: str = ""
    password: Secret | None = None
