"""Where the admin API of a running relay is: the option, the environment, the config, or the default.

Law: nothing is asked of anybody here, and no HTTP client is imported: `relay health` is started every few seconds.
"""

import os
from pathlib import Path

from relay.cli.configs import admin_value
from relay.cli.endpoints import endpoint
from relay.config import Address, ConfigRefused, find, values

DEFAULT_URL = "http://127.0.0.1:8081"


def admin_url(admin: str | None, config: Path | None) -> tuple[str, str]:
    """Where the admin API is, and who said so: the option, the environment, the config, or nobody.

    Raises:
        click.UsageError: not a URL.
        Unfit: the config does not tell.
    """
    variable = os.environ.get("RELAY_ADMIN_URL") if config is None else None
    for given, said_by in ((admin, "--admin"), (variable, "$RELAY_ADMIN_URL")):
        if given:
            to = endpoint(given, said_by=said_by)
            return f"{to.base}{to.path}".rstrip("/"), said_by
    path = config_path(config)
    listen = admin_value(path, "listen", values.address) if path is not None else None
    if path is None or listen is None:
        return DEFAULT_URL, "the default"
    return f"http://{reachable(listen)}", f"admin.listen in {path}"


def config_path(explicit: Path | None) -> Path | None:
    """The config that tells where the relay is, None where there is none."""
    try:
        return find(explicit, os.environ)
    except ConfigRefused:
        return None


def reachable(listen: Address) -> Address:
    """The address at which this machine reaches one that is listened on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104 - compared with, not bound
    return Address(host, listen.port)
