"""The tables, as numbered migrations that only go forward.

Law: a migration that has been released is never edited. Each runs in one transaction with its number, under a lock that
all nodes take, and only adds: a node of the version before goes on beside it.

All of it stands in a schema of its own, so that a database may be shared. Numbers of events, attempts and refusals are
made of the transaction that stored them and a place in it (see `numbering`): they rise in an order in which nothing
appears later before what was seen already. What every node would write at once, the counts, the tally and when a source
was heard, has a row for each node: no commit waits for another node's.

Times are integers of milliseconds since 1970, UTC. Deliveries are narrow rows with room beside them, and what waits is
found by partial indexes alone, whose size is that of the backlog; dead rows are swept early, because what was claimed
leaves them at the very place where the next claim looks. There are no foreign keys: each would be looked up for every
row, and nothing but `erasing` deletes what another row is of. `copy` tells how far another store was moved in here.
"""

SCHEMA = "relay"

_SWEPT = "autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_insert_scale_factor = 0.1"

MIGRATIONS: tuple[str, ...] = (
    f"""
    CREATE TABLE event (
        seq bigint PRIMARY KEY,
        id text COLLATE "C" NOT NULL UNIQUE,
        source text COLLATE "C" NOT NULL,
        type text COLLATE "C" NOT NULL,
        received_at bigint NOT NULL,
        verified boolean NOT NULL,
        hops integer NOT NULL,
        dedupe bytea,
        headers text NOT NULL,
        size integer NOT NULL,
        sha256 bytea NOT NULL CHECK (length(sha256) = 32),
        body bytea NOT NULL,
        routes text,
        failed_conditions text
    );
    CREATE UNIQUE INDEX event_dedupe ON event (dedupe) WHERE dedupe IS NOT NULL;

    CREATE TABLE delivery (
        event_seq bigint NOT NULL,
        target text COLLATE "C" NOT NULL,
        state text COLLATE "C" NOT NULL CHECK (state IN ('pending', 'in_flight', 'delivered', 'dead', 'skipped')),
        due_at bigint NOT NULL,
        step integer NOT NULL DEFAULT 0,
        attempts integer NOT NULL DEFAULT 0,
        replays integer NOT NULL DEFAULT 0,
        first_try_at bigint,
        claim bigint,
        lease_until bigint,
        settled_at bigint,
        status integer,
        outcome text,
        reason text,
        course text,
        PRIMARY KEY (event_seq, target),
        CHECK ((state = 'in_flight') = (claim IS NOT NULL)),
        CHECK ((claim IS NULL) = (lease_until IS NULL))
    ) WITH (fillfactor = 70, {_SWEPT});
    CREATE INDEX delivery_due ON delivery (target, due_at, event_seq) WHERE state = 'pending';
    CREATE INDEX delivery_open ON delivery (target, event_seq) WHERE state IN ('pending', 'in_flight');
    CREATE INDEX delivery_claimed ON delivery (lease_until) WHERE state = 'in_flight';
    CREATE INDEX delivery_dead ON delivery (target, event_seq) WHERE state = 'dead';

    CREATE TABLE attempt (
        seq bigint PRIMARY KEY,
        event_seq bigint NOT NULL,
        target text COLLATE "C" NOT NULL,
        number integer NOT NULL,
        began_at bigint NOT NULL,
        duration_ms bigint NOT NULL,
        outcome text NOT NULL,
        status integer,
        reason text NOT NULL,
        excerpt text NOT NULL
    );
    CREATE UNIQUE INDEX attempt_of ON attempt (event_seq, target, number);

    CREATE TABLE target (
        name text COLLATE "C" PRIMARY KEY,
        state text NOT NULL CHECK (state IN ('active', 'disabled')),
        disabled_by text,
        reason text NOT NULL,
        since bigint,
        failures integer NOT NULL,
        counted_events text NOT NULL,
        counted_at bigint,
        wait_until bigint,
        paced boolean NOT NULL,
        succeeded_at bigint,
        took_at bigint,
        throttled_until bigint,
        probe_at bigint,
        probe_wait bigint,
        arrival_try boolean NOT NULL,
        ramp integer,
        url_digest text NOT NULL,
        settings_digest text NOT NULL,
        version bigint NOT NULL DEFAULT 0,
        CHECK ((state = 'disabled') = (disabled_by IS NOT NULL))
    ) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

    CREATE TABLE refusal (
        seq bigint PRIMARY KEY,
        received_at bigint NOT NULL,
        source text COLLATE "C" NOT NULL,
        remote text,
        status integer NOT NULL,
        reason text NOT NULL,
        detail text NOT NULL,
        size bigint,
        headers text NOT NULL
    );

    CREATE TABLE rerouted (
        event_seq bigint PRIMARY KEY,
        routes text NOT NULL
    );

    CREATE TABLE brought (
        event_seq bigint NOT NULL,
        enricher text COLLATE "C" NOT NULL,
        fetched_at bigint NOT NULL,
        data bytea NOT NULL,
        PRIMARY KEY (event_seq, enricher)
    );

    CREATE TABLE replay (
        seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id text COLLATE "C" NOT NULL UNIQUE,
        state text NOT NULL CHECK (state IN ('collecting', 'running', 'paused', 'done', 'cancelled')),
        node integer NOT NULL,
        filter text NOT NULL,
        rate text NOT NULL,
        total bigint NOT NULL,
        done bigint NOT NULL DEFAULT 0,
        skipped bigint NOT NULL DEFAULT 0,
        created_at bigint NOT NULL,
        ended_at bigint,
        reason text NOT NULL DEFAULT ''
    );
    CREATE TABLE replay_item (
        replay_seq bigint NOT NULL,
        event_seq bigint NOT NULL,
        target text COLLATE "C" NOT NULL,
        PRIMARY KEY (replay_seq, event_seq, target)
    );

    CREATE SEQUENCE life;
    CREATE TABLE node (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        life bigint NOT NULL,
        name text NOT NULL,
        version text NOT NULL,
        started_at bigint NOT NULL,
        beat_at bigint NOT NULL
    );
    CREATE TABLE counted (
        target text COLLATE "C" NOT NULL,
        state text COLLATE "C" NOT NULL,
        node integer NOT NULL,
        number bigint NOT NULL,
        PRIMARY KEY (target, state, node)
    ) WITH (fillfactor = 50);
    CREATE TABLE tally (
        minute bigint NOT NULL,
        kind text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        what text COLLATE "C" NOT NULL,
        node integer NOT NULL,
        number bigint NOT NULL,
        PRIMARY KEY (minute, kind, name, what, node)
    ) WITH (fillfactor = 50);
    CREATE TABLE heard (
        source text COLLATE "C" NOT NULL,
        node integer NOT NULL,
        at bigint NOT NULL,
        silence_told_at bigint,
        PRIMARY KEY (source, node)
    ) WITH (fillfactor = 50);

    CREATE TABLE numbering (
        one boolean PRIMARY KEY DEFAULT TRUE CHECK (one),
        birth bigint NOT NULL,
        ahead bigint NOT NULL
    );
    INSERT INTO numbering (birth, ahead) VALUES (extract(epoch FROM now())::bigint / 60, 0);

    CREATE TABLE copy (
        one boolean PRIMARY KEY DEFAULT TRUE CHECK (one),
        source text NOT NULL,
        identity text NOT NULL,
        base bigint NOT NULL,
        part integer NOT NULL,
        after text,
        moved bigint NOT NULL,
        began_at bigint NOT NULL,
        ended_at bigint,
        result text
    );
    """,
)
