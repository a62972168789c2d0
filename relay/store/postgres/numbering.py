"""Numbers that rise in the order in which they are seen, whoever gives them.

Law: who has read all up to a number, below the one that `below` gives, has missed nothing, and nothing will appear
there later. A sequence does not keep that: of two transactions the one with the greater number may commit first.

A number is that of its transaction, and the place of the row in it. No transaction that still runs has a lower one than
the oldest that a snapshot knows to run. A database that was restored into another cluster counts its transactions anew:
then its numbers go on from where they were, by `numbering.ahead`, and it is born anew:
whoever followed the one before may have read what was undone.
"""

from relay.store.postgres.types import Connection

PLACES = 1 << 16
"""Rows of a kind that one transaction can store."""

FIRST = f"SELECT ((pg_current_xact_id()::text::bigint + ahead) * {PLACES})::bigint FROM numbering"
"""The number of the first row of a kind that this transaction stores."""
BELOW = f"SELECT ((pg_snapshot_xmin(pg_current_snapshot())::text::bigint + ahead) * {PLACES})::bigint FROM numbering"
"""What stands below this number stands fast: all of it is to be seen in this snapshot, or never."""

_MINUTE = "extract(epoch FROM now())::bigint / 60"
_KEEP_AHEAD = f"""UPDATE numbering SET ahead = n.ahead, birth = greatest(birth + 1, {_MINUTE}) FROM (
    SELECT coalesce(max(seq), 0) / {PLACES} + 1 - pg_current_xact_id()::text::bigint AS ahead FROM (
        (SELECT seq FROM event ORDER BY seq DESC LIMIT 1) UNION ALL (SELECT seq FROM attempt ORDER BY seq DESC LIMIT 1)
        UNION ALL (SELECT seq FROM refusal ORDER BY seq DESC LIMIT 1)) given
    ) n WHERE n.ahead > numbering.ahead"""


async def keep_ahead(db: Connection) -> None:
    """See that no number is given twice; in a transaction that no other node runs beside."""
    await db.execute(_KEEP_AHEAD)
