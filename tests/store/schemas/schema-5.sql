-- A store as it was written under schema 5, in the midst of its work.
PRAGMA application_id=1380273241;
PRAGMA user_version=5;
BEGIN TRANSACTION;
CREATE TABLE "attempt" (
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
INSERT INTO "attempt" VALUES(1,1,'crm',1,1789898400000,1000,'delivered',200,'','');
INSERT INTO "attempt" VALUES(2,1,'books',1,1789898400000,1000,'delivered',200,'','');
INSERT INTO "attempt" VALUES(3,2,'crm',1,1789898402000,1000,'failed',500,'it said failed','');
INSERT INTO "attempt" VALUES(4,2,'crm',2,1789898402000,1000,'failed',500,'it said failed','');
INSERT INTO "attempt" VALUES(5,2,'books',1,1789898400000,1000,'delivered',200,'','');
INSERT INTO "attempt" VALUES(6,3,'crm',1,1789898403000,1000,'failed',500,'it said failed','');
INSERT INTO "attempt" VALUES(7,3,'books',1,1789898400000,1000,'delivered',200,'','');
INSERT INTO "attempt" VALUES(8,4,'crm',1,1789898400000,1000,'delivered',200,'','');
CREATE TABLE brought (
        event_seq INTEGER NOT NULL REFERENCES event (seq),
        enricher TEXT NOT NULL,
        fetched_at INTEGER NOT NULL,
        data BLOB NOT NULL
    );
CREATE TABLE delivery (
        event_seq INTEGER NOT NULL REFERENCES event (seq),
        target TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state = 'delivered' OR state = 'in_flight' OR state = 'pending' OR state = 'dead' OR state = 'skipped'),
        due_at INTEGER NOT NULL,
        step INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        first_try_at INTEGER,
        claim INTEGER,
        lease_until INTEGER,
        settled_at INTEGER,
        outcome TEXT,
        status INTEGER,
        reason TEXT, replays INTEGER NOT NULL DEFAULT 0, course TEXT,
        PRIMARY KEY (event_seq, target),
        CHECK ((state = 'in_flight') = (claim IS NOT NULL)),
        CHECK ((claim IS NULL) = (lease_until IS NULL))
    ) WITHOUT ROWID;
INSERT INTO "delivery" VALUES(1,'books','delivered',1789898401000,0,1,1789898400000,NULL,NULL,1789898401000,'delivered',200,NULL,0,NULL);
INSERT INTO "delivery" VALUES(1,'crm','delivered',1789898401000,0,1,1789898400000,NULL,NULL,1789898401000,'delivered',200,NULL,0,NULL);
INSERT INTO "delivery" VALUES(2,'books','delivered',1789898401000,0,1,1789898400000,NULL,NULL,1789898401000,'delivered',200,NULL,0,NULL);
INSERT INTO "delivery" VALUES(2,'crm','dead',1789898402000,1,2,1789898402000,NULL,NULL,1789898403000,'failed',500,'no more',0,NULL);
INSERT INTO "delivery" VALUES(3,'books','delivered',1789898401000,0,1,1789898400000,NULL,NULL,1789898401000,'delivered',200,NULL,0,NULL);
INSERT INTO "delivery" VALUES(3,'crm','pending',1789902000000,4,1,1789898403000,NULL,NULL,NULL,'failed',500,'it said failed',0,NULL);
INSERT INTO "delivery" VALUES(4,'books','pending',1789898404000,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL);
INSERT INTO "delivery" VALUES(4,'crm','delivered',1789898401000,0,1,1789898400000,NULL,NULL,1789898401000,'delivered',200,NULL,0,NULL);
INSERT INTO "delivery" VALUES(6,'books','pending',1789898405000,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL);
INSERT INTO "delivery" VALUES(6,'crm','in_flight',1789898405000,0,1,NULL,1795983515711229628,1789898465000,NULL,NULL,NULL,NULL,0,NULL);
INSERT INTO "delivery" VALUES(7,'books','pending',1789898406000,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL);
INSERT INTO "delivery" VALUES(7,'crm','pending',1789898406000,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL);
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
    , routes TEXT, failed_conditions TEXT);
INSERT INTO "event" VALUES(1,'evt_delivered','shop','order.paid',1789898401000,1,0,X'16FE6393A1BA8A16EC6FE58D6279C170','[["Content-Type","application/json"],["X-Shop","\u00dcn\u00ef"]]',34,X'CECAC751EA26B01976F249CC937FE18937ECFC6B1E987F1B911DE2463B18C048',X'7B226964223A202264656C697665726564222C20226279746573223A202200FF227D','[]',NULL);
INSERT INTO "event" VALUES(2,'evt_dead','shop','order.paid',1789898402000,1,0,X'10271B31082FFD8DC45BF8AF3EA476A8','[["Content-Type","application/json"],["X-Shop","\u00dcn\u00ef"]]',29,X'AF377A1FEB4BEFEAF279FFFF790D0E76DAC4B1CF010A71289E228A05206789BC',X'7B226964223A202264656164222C20226279746573223A202200FF227D','[]',NULL);
INSERT INTO "event" VALUES(3,'evt_retrying','shop','order.paid',1789898403000,1,0,X'F5EA8C56D72CFAEDD4302782E6F00284','[["Content-Type","application/json"],["X-Shop","\u00dcn\u00ef"]]',33,X'71F52B8575AEF6CA58E8962CA458002826C0683D6B7B8115C62BA61B170A97BE',X'7B226964223A20227265747279696E67222C20226279746573223A202200FF227D','[]',NULL);
INSERT INTO "event" VALUES(4,'evt_held','shop','order.paid',1789898404000,1,0,X'B6D9761905C99C88FB210BB26FDAAB36','[["Content-Type","application/json"],["X-Shop","\u00dcn\u00ef"]]',29,X'9172886C1C3EF8B8DC25A0FA2CFB120BD355D3C045CB4B684DBAA81875C1D25D',X'7B226964223A202268656C64222C20226279746573223A202200FF227D','[]',NULL);
INSERT INTO "event" VALUES(5,'evt_unrouted','shop','order.paid',1789898404000,1,0,X'1B01CE4A25E5EC591AC76CBD89E0D717','[["Content-Type","application/json"]]',8,X'0C6DD59BC6F40B75D2BAD8B879FFE7D37925C92845F51C9D6B241B29756BF5C9',X'756E726F75746564','[]',NULL);
INSERT INTO "event" VALUES(6,'evt_under_way','shop','order.paid',1789898405000,1,0,X'14CCC043B1A54909B8D3C12639A33D19','[["Content-Type","application/json"],["X-Shop","\u00dcn\u00ef"]]',34,X'5DE7638D26C1A19875CCD5771E88E65FCC479051DB321D0586403B0A9BD7EB32',X'7B226964223A2022756E6465725F776179222C20226279746573223A202200FF227D','[]',NULL);
INSERT INTO "event" VALUES(7,'evt_fresh','shop','order.paid',1789898406000,1,0,X'CA6229768109DF78AA7710FA210FD3ED','[["Content-Type","application/json"],["X-Shop","\u00dcn\u00ef"]]',30,X'4AFB1F35DD8088593E9450D7CB171661A45C8A6EA3A4F84BB2539539069249DE',X'7B226964223A20226672657368222C20226279746573223A202200FF227D','[]',NULL);
CREATE TABLE heard (
        source TEXT PRIMARY KEY,
        at INTEGER NOT NULL,
        silence_told_at INTEGER
    ) WITHOUT ROWID;
INSERT INTO "heard" VALUES('shop',1789898406000,NULL);
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
INSERT INTO "tally" VALUES(0,'','','began',29933058);
INSERT INTO "tally" VALUES(0,'source','shop','accepted',6);
INSERT INTO "tally" VALUES(0,'source','shop','unrouted',1);
INSERT INTO "tally" VALUES(0,'target','books','delivered',3);
INSERT INTO "tally" VALUES(0,'target','crm','dead',1);
INSERT INTO "tally" VALUES(0,'target','crm','delivered',2);
INSERT INTO "tally" VALUES(0,'target','crm','failed',3);
INSERT INTO "tally" VALUES(29831640,'source','shop','accepted',6);
INSERT INTO "tally" VALUES(29831640,'source','shop','unrouted',1);
INSERT INTO "tally" VALUES(29831640,'target','books','delivered',3);
INSERT INTO "tally" VALUES(29831640,'target','crm','dead',1);
INSERT INTO "tally" VALUES(29831640,'target','crm','delivered',2);
INSERT INTO "tally" VALUES(29831640,'target','crm','failed',3);
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
INSERT INTO "target" VALUES('books','disabled','failures','it failed',1789898404000,3,'[]',NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,0,NULL,'','');
CREATE UNIQUE INDEX event_dedupe ON event (dedupe) WHERE dedupe IS NOT NULL;
CREATE INDEX delivery_due ON delivery (target, due_at, event_seq, state) WHERE state = 'pending';
CREATE INDEX delivery_open ON delivery (target, event_seq) WHERE state IN ('pending', 'in_flight');
CREATE INDEX delivery_claimed ON delivery (lease_until) WHERE state = 'in_flight';
CREATE INDEX delivery_dead ON delivery (target, event_seq, state) WHERE state = 'dead';
CREATE UNIQUE INDEX attempt_of ON attempt (event_seq, target, number);
CREATE UNIQUE INDEX brought_of ON brought (event_seq, enricher);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('attempt',8);
INSERT INTO "sqlite_sequence" VALUES('event',7);
COMMIT;
