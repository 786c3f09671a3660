-- The message store of a fleet: logs, cursors and their exceptions. To be run as the file before it. Numbers are as in the
-- broker: times are milliseconds since 1970-01-01T00:00:00Z, an offset carries its lane above 48 bits of sequence, and
-- arrays over lanes have ten elements.
--
-- A broker makes and drops the partitions of `messages` as time goes on: its role has to own that table and may create
-- tables beside it.

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(8317987319222330741);
SET LOCAL lock_timeout = '10s';

DO $migration$
BEGIN
    IF EXISTS (SELECT FROM sluice_migrations WHERE version = 2) THEN
        RAISE NOTICE '002_message_store is applied already';
        RETURN;
    END IF;

    -- The order of all appends: each transaction takes one number once it holds the rows of its partitions.
    CREATE SEQUENCE store_stamps;
    -- Differs each time that it is asked.
    CREATE SEQUENCE store_looks;
    -- Openings of the store by a broker.
    CREATE SEQUENCE store_epochs;

    -- The store's time: the database's, moved by what a test asks for.
    CREATE FUNCTION store_now(given bigint, ahead bigint) RETURNS bigint LANGUAGE sql VOLATILE AS
        'SELECT coalesce(given, (extract(epoch FROM clock_timestamp()) * 1000)::bigint + ahead)';

    -- By whom the store was opened. What a broker had leased ends when it opens the store again.
    CREATE TABLE store_openings (
        epoch bigint PRIMARY KEY DEFAULT nextval('store_epochs'),
        node text NOT NULL
    );
    CREATE INDEX store_openings_node ON store_openings (node);

    CREATE TABLE store_topics (
        topic integer PRIMARY KEY,
        -- Which partitions of `messages` it writes to; chosen by its first retention, fixed.
        class smallint NOT NULL,
        spec jsonb NOT NULL
    );

    -- One row a partition, locked by each append until its commit: so that offsets become visible in their order.
    CREATE TABLE store_partitions (
        topic integer NOT NULL,
        part smallint NOT NULL,
        revision bigint NOT NULL DEFAULT 0,
        heads bigint[] NOT NULL DEFAULT array_fill(0::bigint, ARRAY[10]),
        starts bigint[] NOT NULL DEFAULT array_fill(0::bigint, ARRAY[10]),
        -- When the last message came; never falls.
        at bigint NOT NULL DEFAULT 0,
        appended bigint NOT NULL DEFAULT 0,
        removed bigint NOT NULL DEFAULT 0,
        bytes bigint NOT NULL DEFAULT 0,
        keys integer NOT NULL DEFAULT 0,
        PRIMARY KEY (topic, part)
    ) WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

    CREATE TABLE messages (
        topic integer NOT NULL,
        stamp bigint NOT NULL,
        seq bigint NOT NULL,
        at bigint NOT NULL,
        expires bigint,
        key bigint,
        target integer,
        meta_len integer NOT NULL,
        crc integer NOT NULL,
        part smallint NOT NULL,
        lane smallint NOT NULL,
        class smallint NOT NULL,
        id uuid NOT NULL,
        -- Of which message this is a dead letter.
        original uuid,
        body bytea NOT NULL
    ) PARTITION BY RANGE (class, at);
    ALTER TABLE messages ALTER COLUMN body SET STORAGE EXTERNAL;
    CREATE INDEX messages_place ON messages (topic, part, lane, seq);
    CREATE INDEX messages_id ON messages (id);
    CREATE INDEX messages_original ON messages (original) WHERE original IS NOT NULL;
    CREATE INDEX messages_target ON messages (topic, part, lane, seq) WHERE target IS NOT NULL;

    -- Messages that were erased from the log and are still counted as part of it.
    CREATE TABLE erased (
        topic integer NOT NULL,
        part smallint NOT NULL,
        lane smallint NOT NULL,
        seq bigint NOT NULL,
        PRIMARY KEY (topic, part, lane, seq)
    );

    CREATE TABLE scheduled (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        topic integer NOT NULL,
        part smallint NOT NULL,
        lane smallint NOT NULL,
        due bigint NOT NULL,
        id uuid NOT NULL,
        expires bigint,
        key bigint,
        target integer,
        meta_len integer NOT NULL,
        crc integer NOT NULL,
        body bytea NOT NULL
    );
    ALTER TABLE scheduled ALTER COLUMN body SET STORAGE EXTERNAL;
    CREATE INDEX scheduled_due ON scheduled (due, number);
    CREATE INDEX scheduled_id ON scheduled (id);
    CREATE INDEX scheduled_topic ON scheduled (topic);

    CREATE TABLE dedup_outcomes (
        topic integer NOT NULL,
        key bytea NOT NULL,
        part smallint NOT NULL,
        at bigint NOT NULL,
        outcome bytea NOT NULL,
        PRIMARY KEY (topic, key)
    );
    CREATE INDEX dedup_outcomes_at ON dedup_outcomes (topic, at);

    -- One row a plugin and topic, locked by each write to its values.
    CREATE TABLE value_spaces (
        namespace text COLLATE "C" PRIMARY KEY,
        bytes bigint NOT NULL DEFAULT 0,
        keys bigint NOT NULL DEFAULT 0
    );
    CREATE SEQUENCE value_versions;
    CREATE TABLE plugin_values (
        namespace text COLLATE "C" NOT NULL,
        key text COLLATE "C" NOT NULL,
        version bigint NOT NULL,
        value bytea NOT NULL,
        PRIMARY KEY (namespace, key)
    );

    CREATE TABLE store_groups (
        topic integer NOT NULL,
        grp integer NOT NULL,
        spec jsonb NOT NULL,
        PRIMARY KEY (topic, grp)
    );

    -- What is settled for a group follows from four things: all from `nexts` on waits, but for `settled_ranges`; all below is
    -- settled, but for what is open in `grants` and what `retries` has.
    CREATE TABLE cursors (
        topic integer NOT NULL,
        grp integer NOT NULL,
        part smallint NOT NULL,
        nexts bigint[] NOT NULL,
        -- No message from `nexts` on is older: where to look for them.
        seen bigint NOT NULL DEFAULT 0,
        -- Messages ever granted: says whose lane's turn it is.
        granted bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (topic, grp, part)
    ) WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

    CREATE TABLE settled_ranges (
        topic integer NOT NULL,
        grp integer NOT NULL,
        part smallint NOT NULL,
        lane smallint NOT NULL,
        first bigint NOT NULL,
        -- The first that is not settled.
        until bigint NOT NULL,
        PRIMARY KEY (topic, grp, part, lane, first)
    );

    -- One row an answer to a lease: the messages granted with it, and which of them are settled.
    CREATE TABLE grants (
        epoch bigint NOT NULL,
        number bigint NOT NULL,
        topic integer NOT NULL,
        grp integer NOT NULL,
        part smallint NOT NULL,
        open integer NOT NULL,
        deadline bigint NOT NULL,
        -- When the first of them ends.
        ends bigint NOT NULL,
        holder text NOT NULL,
        settled bytea NOT NULL,
        -- Deadlines of those that were extended.
        extended bytea,
        entries bytea NOT NULL,
        PRIMARY KEY (epoch, number)
    ) WITH (fillfactor = 70, toast_tuple_target = 128, autovacuum_vacuum_scale_factor = 0.02);
    ALTER TABLE grants ALTER COLUMN entries SET STORAGE EXTERNAL;
    CREATE INDEX grants_group ON grants (topic, grp, part);
    CREATE INDEX grants_ends ON grants (ends);

    -- Messages that wait for another attempt, or for their key's turn. At 0: may go now; at the end of time: held by a grant.
    CREATE TABLE retries (
        topic integer NOT NULL,
        grp integer NOT NULL,
        part smallint NOT NULL,
        place bigint NOT NULL,
        at bigint NOT NULL,
        attempts integer NOT NULL,
        stamp bigint NOT NULL,
        key bigint,
        failures bytea,
        PRIMARY KEY (topic, grp, part, place)
    ) WITH (fillfactor = 70);
    CREATE INDEX retries_ready ON retries (topic, grp, part, place) WHERE at = 0;
    CREATE INDEX retries_at ON retries (at) WHERE at > 0 AND at < 9223372036854775807;

    CREATE TABLE snapshots (
        topic integer NOT NULL,
        grp integer NOT NULL,
        name text NOT NULL,
        at bigint NOT NULL,
        lanes bytea NOT NULL,
        PRIMARY KEY (topic, grp, name)
    );

    -- Totals of a group. Each broker counts in a row of its own slot, so that brokers do not wait for each other.
    CREATE TABLE group_totals (
        topic integer NOT NULL,
        grp integer NOT NULL,
        slot smallint NOT NULL,
        acked bigint NOT NULL DEFAULT 0,
        dead_lettered bigint NOT NULL DEFAULT 0,
        expired bigint NOT NULL DEFAULT 0,
        delivered bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (topic, grp, slot)
    ) WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

    INSERT INTO sluice_migrations (version, name, readable_from) VALUES (2, 'message_store', 1);
END
$migration$;

COMMIT;
