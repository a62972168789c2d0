"""The database made ready: its schema brought up to this version, its promises looked at.

Law: forward only, each step with its number in one transaction, under a lock that all nodes take. A newer schema than
ours is not touched.
"""

from relay.store import StoreUnusable
from relay.store.locations import shown
from relay.store.postgres.connection import BEGIN, begun
from relay.store.postgres.numbering import keep_ahead
from relay.store.postgres.schema import MIGRATIONS, SCHEMA
from relay.store.postgres.types import Connection

_LOCK = 0x52454C5900
"""What all nodes of a database lock while they look at its schema."""
OLDEST = 130000
"""Transactions have had numbers of 64 bits since that version."""


async def prepare(db: Connection, url: str, *, for_copy: bool = False) -> None:
    """Bring the schema up to this version, and see that numbers go on from where they are.

    Args:
        for_copy: it is opened by whoever copies a store into it.

    Raises:
        StoreUnusable: the server is too old, or the schema is newer than this program, or what was to be copied into it
            is not all there.
    """
    server = int((await db.fetchval("SHOW server_version_num")) or 0)
    if server < OLDEST:
        raise StoreUnusable(f"{shown(url)}: PostgreSQL {OLDEST // 10000} or newer is needed, this is {server // 10000}")
    async with begun(db, BEGIN):
        await db.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        if await db.fetchval("SELECT to_regnamespace($1) IS NULL", SCHEMA):
            await db.execute(f"CREATE SCHEMA {SCHEMA}")
        if await db.fetchval("SELECT to_regclass($1) IS NULL", f"{SCHEMA}.migration"):
            await db.execute("CREATE TABLE migration (number int PRIMARY KEY, made_at timestamptz DEFAULT now())")
        made = int(await db.fetchval("SELECT coalesce(max(number), 0) FROM migration") or 0)
        if made > len(MIGRATIONS):
            raise StoreUnusable(
                f"{shown(url)}: its schema has version {made}, this program knows up to {len(MIGRATIONS)}; "
                "run the version of relay that has written it, or a newer one"
            )
        for number, migration in enumerate(MIGRATIONS[made:], made + 1):
            await db.execute(migration)
            await db.execute("INSERT INTO migration (number) VALUES ($1)", number)
        if not for_copy:
            await _refuse_half_copied(db, url)
        await keep_ahead(db)


async def _refuse_half_copied(db: Connection, url: str) -> None:
    """What is half there would be delivered as if it were all, and what comes after it would arrive before it."""
    source = await db.fetchval("SELECT source FROM copy WHERE ended_at IS NULL")
    if source is not None:
        raise StoreUnusable(
            f"{shown(url)}: the copy of {source} into it is not finished; finish it with: relay copy "
            f"sqlite:///{source} {shown(url)}, or give it up by dropping the schema {SCHEMA} of this database"
        )


async def durability_warning(db: Connection, url: str) -> str | None:
    """Why the server may lose what it has said to be committed, None where nothing speaks against it."""
    lax = [name for name in ("fsync", "full_page_writes") if await db.fetchval(f"SHOW {name}") == "off"]
    if not lax:
        return None
    return f"{shown(url)}: the server runs with {' = off and '.join(lax)} = off: a power cut loses events"
