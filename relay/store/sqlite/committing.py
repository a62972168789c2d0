"""What one transaction is made of on SQLite: the verbs of a batch, one kind after the other, then the commit."""

import sqlite3
from typing import Any

from relay.store.grouping.changes import Changes
from relay.store.grouping.operations import Batch, Operation
from relay.store.sqlite import batch as verbs
from relay.store.sqlite.claiming import claim
from relay.store.sqlite.ledger import Ledger
from relay.store.sqlite.transaction import Transaction


def commit(
    db: sqlite3.Connection, *, batch: Batch, ledger: Ledger
) -> tuple[list[tuple[Operation[Any], object]], Changes]:
    """Do it all in one transaction; return who gets which result, and what the ledger is to take over."""
    tx = Transaction(db, ledger)
    db.execute("BEGIN IMMEDIATE")
    results = _run(tx, batch)
    db.execute("COMMIT")
    return results, tx.changes


def _run(tx: Transaction, batch: Batch) -> list[tuple[Operation[Any], object]]:
    results: list[tuple[Operation[Any], object]] = []
    if batch.settlements:
        settled = verbs.settle(tx, [op.wish for op in batch.settlements])
        results += zip(batch.settlements, settled, strict=True)
    for op in batch.works:
        results.append((op, op.wish(tx)))
    if batch.accepts:
        accepted = verbs.accept(tx, [op.wish for op in batch.accepts], batch.handing)
        results += zip(batch.accepts, accepted, strict=True)
    if batch.claims:
        claimed = claim(tx, [op.wish for op in batch.claims])
        results += zip(batch.claims, claimed, strict=True)
    verbs.write_health(tx)
    verbs.write_heard(tx)
    verbs.write_tally(tx)
    return results
