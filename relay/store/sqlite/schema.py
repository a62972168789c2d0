"""The tables, as numbered migrations that only go forward.

Law: a migration that has been released is never edited. Each runs in one transaction with its number, so a kill in
the middle leaves the schema as it was.

Attempts are numbered in the order in which they were recorded, as events are, so that whoever follows them can go on
after any one. `tally` counts what became of events and attempts, by minute and, as minute 0, over all time.
`heard` says when each source was last heard, whatever has been deleted since, and when its silence was told last.

Routes stand behind an event's body, where they are written once and read one by one; what a replay routes anew has a
table of its own, because a change behind the body would write the body again.

A delivery's `course` is what is still to be decided, or to be fetched, before it is sent; NULL where it goes as it
came. An event's `failed_conditions` are those that could not be evaluated when it was received; NULL where all could.
`brought` is what was fetched for an event, once for all its targets.

Times are integers of milliseconds since 1970, UTC. Bodies stand last in their row and apart from the narrow rows of
deliveries, so that claiming never reads past them. What waits is found by partial indexes alone: their size is that
of the backlog, not of the history.
"""

APPLICATION_ID = 0x52454C59
"""`RELY` in the file's header: tells our files from a stranger's."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE event (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        source TEXT NOT NULL,
        type TEXT NOT NULL,
        received_at INTEGER NOT NULL,
        verified INTEGER NOT NULL CHECK (verified IN (0, 1)),
        hops INTEGER NOT NULL,
        dedupe BLOB,
        headers TEXT NOT NULL,
        size INTEGER NOT NULL,
        sha256 BLOB NOT NULL CHECK (length(sha256) = 32),
        body BLOB NOT NULL
    );
    CREATE UNIQUE INDEX event_dedupe ON event (dedupe) WHERE dedupe IS NOT NULL;

    CREATE TABLE delivery (
        event_seq INTEGER NOT NULL REFERENCES event (seq),
        target TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('pending', 'in_flight', 'delivered', 'dead', 'skipped')),
        due_at INTEGER NOT NULL,
        step INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        first_try_at INTEGER,
        claim INTEGER,
        lease_until INTEGER,
        settled_at INTEGER,
        outcome TEXT,
        status INTEGER,
        reason TEXT,
        PRIMARY KEY (event_seq, target),
        CHECK ((state = 'in_flight') = (claim IS NOT NULL)),
        CHECK ((claim IS NULL) = (lease_until IS NULL))
    ) WITHOUT ROWID;
    CREATE INDEX delivery_due ON delivery (target, due_at, event_seq) WHERE state = 'pending';
    CREATE INDEX delivery_open ON delivery (target, event_seq) WHERE state IN ('pending', 'in_flight');
    CREATE INDEX delivery_claimed ON delivery (lease_until) WHERE state = 'in_flight';
    CREATE INDEX delivery_dead ON delivery (target, event_seq) WHERE state = 'dead';

    CREATE TABLE attempt (
        event_seq INTEGER NOT NULL REFERENCES event (seq),
        target TEXT NOT NULL,
        number INTEGER NOT NULL,
        began_at INTEGER NOT NULL,
        duration_ms INTEGER NOT NULL,
        outcome TEXT NOT NULL,
        status INTEGER,
        reason TEXT NOT NULL,
        excerpt TEXT NOT NULL,
        PRIMARY KEY (event_seq, target, number)
    ) WITHOUT ROWID;

    CREATE TABLE target (
        name TEXT PRIMARY KEY,
        state TEXT NOT NULL CHECK (state IN ('active', 'disabled')),
        disabled_by TEXT,
        reason TEXT NOT NULL,
        since INTEGER,
        failures INTEGER NOT NULL,
        counted_events TEXT NOT NULL,
        counted_at INTEGER,
        wait_until INTEGER,
        paced INTEGER NOT NULL,
        succeeded_at INTEGER,
        took_at INTEGER,
        throttled_until INTEGER,
        probe_at INTEGER,
        probe_wait INTEGER,
        arrival_try INTEGER NOT NULL,
        ramp INTEGER,
        url_digest TEXT NOT NULL,
        settings_digest TEXT NOT NULL,
        CHECK ((state = 'disabled') = (disabled_by IS NOT NULL))
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE event ADD COLUMN routes TEXT;
    ALTER TABLE delivery ADD COLUMN replays INTEGER NOT NULL DEFAULT 0;

    CREATE TABLE recorded (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        event_seq INTEGER NOT NULL REFERENCES event (seq),
        target TEXT NOT NULL,
        number INTEGER NOT NULL,
        began_at INTEGER NOT NULL,
        duration_ms INTEGER NOT NULL,
        outcome TEXT NOT NULL,
        status INTEGER,
        reason TEXT NOT NULL,
        excerpt TEXT NOT NULL
    );
    INSERT INTO recorded (event_seq, target, number, began_at, duration_ms, outcome, status, reason, excerpt)
        SELECT event_seq, target, number, began_at, duration_ms, outcome, status, reason, excerpt
        FROM attempt ORDER BY began_at + duration_ms;
    DROP TABLE attempt;
    ALTER TABLE recorded RENAME TO attempt;
    CREATE UNIQUE INDEX attempt_of ON attempt (event_seq, target, number);

    CREATE TABLE refusal (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        received_at INTEGER NOT NULL,
        source TEXT NOT NULL,
        remote TEXT,
        status INTEGER NOT NULL,
        reason TEXT NOT NULL,
        detail TEXT NOT NULL,
        size INTEGER,
        headers TEXT NOT NULL
    );

    CREATE TABLE rerouted (
        event_seq INTEGER PRIMARY KEY REFERENCES event (seq),
        routes TEXT NOT NULL
    );

    CREATE TABLE tally (
        minute INTEGER NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        what TEXT NOT NULL,
        number INTEGER NOT NULL,
        PRIMARY KEY (minute, kind, name, what)
    ) WITHOUT ROWID;

    CREATE TABLE heard (
        source TEXT PRIMARY KEY,
        at INTEGER NOT NULL,
        silence_told_at INTEGER
    ) WITHOUT ROWID;
    INSERT INTO heard (source, at)
        SELECT source, max(received_at) FROM (SELECT source, received_at FROM event ORDER BY seq DESC LIMIT 10000)
        WHERE typeof(source) = 'text' AND typeof(received_at) = 'integer' GROUP BY source;

    CREATE TABLE replay (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL CHECK (state IN ('collecting', 'running', 'paused', 'done', 'cancelled')),
        filter TEXT NOT NULL,
        rate TEXT NOT NULL,
        total INTEGER NOT NULL,
        done INTEGER NOT NULL DEFAULT 0,
        skipped INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL,
        ended_at INTEGER,
        reason TEXT NOT NULL DEFAULT ''
    );
    CREATE TABLE replay_item (
        replay_seq INTEGER NOT NULL REFERENCES replay (seq),
        event_seq INTEGER NOT NULL,
        target TEXT NOT NULL,
        PRIMARY KEY (replay_seq, event_seq, target)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE delivery ADD COLUMN course TEXT;
    ALTER TABLE event ADD COLUMN failed_conditions TEXT;
    CREATE TABLE brought (
        event_seq INTEGER NOT NULL REFERENCES event (seq),
        enricher TEXT NOT NULL,
        fetched_at INTEGER NOT NULL,
        data BLOB NOT NULL
    );
    CREATE UNIQUE INDEX brought_of ON brought (event_seq, enricher);
    """,
    # The same check, spelled out: of what stands behind IN, SQLite makes a table anew for each row that it checks, at
    # half the cost of writing that. No row is touched: see sqlite.org/lang_altertable.html, section 7.
    """
    PRAGMA writable_schema=ON;
    UPDATE sqlite_schema SET sql = replace(sql,
        'state IN (''pending'', ''in_flight'', ''delivered'', ''dead'', ''skipped'')',
        'state = ''delivered'' OR state = ''in_flight'' OR state = ''pending'' OR state = ''dead'''
        || ' OR state = ''skipped''')
    WHERE type = 'table' AND name = 'delivery';
    PRAGMA writable_schema=RESET;
    """,
    # The state is the same in every entry of such an index. But where it does not stand in them, SQLite looks for the
    # row of each entry that it counts or chooses by, to read nothing of it: nine tenths of a count of what waits.
    """
    DROP INDEX delivery_due;
    DROP INDEX delivery_dead;
    CREATE INDEX delivery_due ON delivery (target, due_at, event_seq, state) WHERE state = 'pending';
    CREATE INDEX delivery_dead ON delivery (target, event_seq, state) WHERE state = 'dead';
    """,
)
