"""The providers' checks with a secret in them, read as the config reads it."""

import dataclasses

from relay.config import keys
from relay.config.values import SecretText
from relay.model import ApiKeyCheck, Check, HmacCheck, NoCheck, Provider, StandardWebhooksCheck

SCHEMES = {ApiKeyCheck: "api_key", HmacCheck: "hmac", StandardWebhooksCheck: "standard_webhooks"}


def check_of(provider: Provider, *secrets: str) -> Check:
    """The provider's check with these secrets; that of an unsigned one has no place for any."""
    if isinstance(provider.check, NoCheck):
        return provider.check
    scheme = SCHEMES[type(provider.check)]
    texts = [SecretText(text, inline=True) for text in secrets]
    found = [keys.source_secret(text, scheme=scheme, provider=provider, warn=lambda _: None) for text in texts]
    return dataclasses.replace(provider.check, secrets=tuple(found))
