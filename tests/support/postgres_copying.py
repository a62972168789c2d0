"""A copy of a PostgreSQL database as it is committed, while others are connected to it.

`CREATE DATABASE ... TEMPLATE` would want everybody to leave first, and a whole dump takes longer than most tests.
"""

import io
import subprocess

import asyncpg

from tests.support.postgres import Server, binary
from tests.support.postgres_looking import with_connections

_shapes: dict[str, tuple[str, str]] = {}

OURS = "IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'relay'))"
"""The schemas that are copied."""
SHAPE = f"""
    SELECT coalesce(string_agg(one, E'\\n' ORDER BY one), '') FROM (
        SELECT concat_ws(' ', c.relname, c.relkind, c.reltoastrelid <> 0, c.reloptions, a.attname,
                format_type(a.atttypid, a.atttypmod), a.attnum, a.attnotnull, a.attidentity,
                pg_get_expr(d.adbin, d.adrelid)) AS one
            FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
            LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
            WHERE c.relnamespace {OURS} AND c.relkind <> 'i' AND a.attnum > 0
        UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class c ON c.oid = indexrelid
            WHERE c.relnamespace {OURS}
        UNION ALL SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint
            WHERE connamespace {OURS}
        UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace {OURS}
            AND prokind IN ('f', 'p')
    ) AS parts (one)"""
"""All that makes the schema what it is, as one text: what was dumped once is good for every database that has it."""

TABLES = f"""SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relnamespace {OURS} AND relkind = """


def copied(server: Server, url: str) -> str:
    """The url of a new database with the schema, rows and sequences that are committed in another at one moment."""
    copy = server.create_database()

    async def copying(source: asyncpg.Connection, target: asyncpg.Connection) -> None:
        async with source.transaction(isolation="repeatable_read", readonly=True):
            before, after = _shape(await source.fetchval(SHAPE), url)
            await target.execute("SET synchronous_commit = off")
            await target.execute(before)
            for schema, table in await source.fetch(f"{TABLES}'r'"):
                held = io.BytesIO()
                await source.copy_from_table(table, schema_name=schema, output=held, format="binary")
                held.seek(0)
                await target.copy_to_table(table, schema_name=schema, source=held, format="binary")
            for schema, sequence in await source.fetch(f"{TABLES}'S'"):
                name = f'{schema}."{sequence}"'
                ((last, is_called),) = await source.fetch(f"SELECT last_value, is_called FROM {name}")
                await target.execute("SELECT setval($1::text::regclass, $2, $3)", name, last, is_called)
        await target.execute(after)  # keys and triggers last: no row needs another before it, and nothing is triggered

    with_connections(copying, url, copy)
    return copy


def _shape(shape: str, url: str) -> tuple[str, str]:
    """The statements that make a schema before its rows are there, and those that come after them."""
    if shape not in _shapes:
        _shapes[shape] = (_dumped(url, "pre-data"), _dumped(url, "post-data"))
    return _shapes[shape]


def _dumped(url: str, section: str) -> str:
    command = (binary("pg_dump") or "pg_dump", "--no-owner", "--no-acl", f"--section={section}", f"--dbname={url}")
    dumped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # lines that begin so are for psql alone
    return "\n".join(line for line in dumped.splitlines() if not line.startswith("\\"))
