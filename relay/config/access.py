"""The sections of how a target is told who we are, and of the way to it."""

from typing import Annotated, Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from relay.config.fields import Flag, Marked, OneOrMore, SecretValue, Section, Text, one_of, setting
from relay.config.hmacs import HmacKeys

AUTH_SCHEMES = ("bearer", "basic", "api_key", "hmac", "oauth2")
CLIENT_AUTH = ("header", "body")


class AuthSection(HmacKeys):
    """How a request proves that it is ours."""

    scheme: Annotated[str, one_of(AUTH_SCHEMES, what="scheme")] = setting(description="Kind of proof")
    token: SecretValue | None = setting(default=None, description="bearer: the token")
    username: Text | None = setting(default=None, description="basic: the user name")
    password: SecretValue | None = setting(default=None, description="basic: the password")
    query: Text | None = setting(default=None, description="api_key: the query parameter with the key, or header")
    value: SecretValue | None = setting(default=None, description="api_key: the key")
    secret: SecretValue | None = setting(default=None, description="hmac: the key of the digest")
    token_url: Text | None = setting(default=None, description="oauth2: where tokens are fetched")
    client_id: Text | None = setting(default=None, description="oauth2: the client")
    client_secret: SecretValue | None = setting(default=None, description="oauth2: its secret")
    scope: Text | None = setting(default=None, description="oauth2: what is asked for, words apart by spaces")
    audience: Text | None = setting(default=None, description="oauth2: whom the token is for, where it is asked")
    client_auth: Annotated[Literal["header", "body"], one_of(CLIENT_AUTH, what="way")] = setting(
        default="header", description="oauth2: where client_id and client_secret stand in the request for a token"
    )


class SignSection(Section):
    """Standard Webhooks over what is sent."""

    secrets: Annotated[list[SecretValue | None], OneOrMore()] = setting(
        description="Keys, whsec_…; the newest first, several while rotating"
    )


class ClientTlsSection(Section):
    """Whom we trust at the target, and the certificate that we show."""

    ca: Marked | None = setting(default=None, description="PEM file; its certificates alone are trusted")
    cert: Marked | None = setting(default=None, description="PEM file with our certificate and its chain")
    key: Marked | None = setting(default=None, description="PEM file with its private key, unencrypted")
    insecure: Flag = setting(default=False, description="true: believe whoever answers; warned about at each start")


class _UrlAlone:
    """A mapping in whose place its `url` may stand."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: {"url": value} if isinstance(value, str) else value, handler(source)
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(schema)]}


class ProxyKeys(Section):
    """The HTTP proxy that requests go through."""

    url: Text = setting(description="http://HOST:PORT")
    username: Text | None = setting(default=None, description="User name for the proxy")
    password: SecretValue | None = setting(default=None, description="Its password")


ProxySection = Annotated[ProxyKeys, _UrlAlone()]
