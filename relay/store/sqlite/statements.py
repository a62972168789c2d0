"""The statements that several modules share, `{rows}` standing for what `Transaction.write` puts there."""

from relay.model import HEALTH_FIELDS

EVENT_COLUMNS = """seq, id, source, type, received_at, verified, hops, dedupe, headers, size, sha256, body, routes,
    failed_conditions"""
EVENT_INSERT = f"INSERT INTO event ({EVENT_COLUMNS}) VALUES {{rows}}"

ATTEMPT_COLUMNS = "event_seq, target, number, began_at, duration_ms, outcome, status, reason, excerpt"
ATTEMPT_INSERT = f"INSERT INTO attempt ({ATTEMPT_COLUMNS}) VALUES {{rows}}"
HEARD_SELECT = "SELECT CAST(source AS BLOB), at, silence_told_at > at FROM heard"
HEARD_UPSERT = """INSERT INTO heard (source, at) SELECT key, value FROM json_each(?) WHERE TRUE
    ON CONFLICT DO UPDATE SET at = max(at, excluded.at)"""
TALLY_UPSERT = """INSERT INTO tally (minute, kind, name, what, number) VALUES {rows}
    ON CONFLICT DO UPDATE SET number = number + excluded.number"""

HEALTH_SELECT = f"SELECT {', '.join(HEALTH_FIELDS)} FROM target"

HEALTH_UPSERT = f"INSERT OR REPLACE INTO target ({', '.join(HEALTH_FIELDS)}) VALUES {{rows}}"
