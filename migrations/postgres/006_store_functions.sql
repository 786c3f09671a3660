-- What the message store asks of the database most often, as functions: one question each, whose plans a session keeps. To be
-- run as the files before it. Brokers of the version before go on without them; one that is changed later gets another name.

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(8317987319222330741);
SET LOCAL lock_timeout = '10s';

DO $migration$
BEGIN
    IF EXISTS (SELECT FROM sluice_migrations WHERE version = 6) THEN
        RAISE NOTICE '006_store_functions is applied already';
        RETURN;
    END IF;

    -- Locks partitions, and the first one of each dead-letter topic of `mortal`; then what they and their topics are. The stamp is
    -- drawn once all are locked: what another transaction adds to them comes wholly before or after.
    CREATE FUNCTION store_lock(topics integer[], parts smallint[], mortal integer[], given bigint, ahead bigint)
    RETURNS TABLE (topic integer, part smallint, revision bigint, heads bigint[], at bigint, moment bigint, stamp bigint,
        class smallint, spec text, bytes bigint, keys bigint)
    LANGUAGE plpgsql AS $$
    #variable_conflict use_column
    DECLARE
        dead_topics integer[];
        locked_topics integer[];
        locked_parts smallint[];
    BEGIN
        SELECT coalesce(array_agg((t.spec->>'dead_letter')::integer), '{}') INTO dead_topics FROM store_topics t
            WHERE t.topic = ANY(mortal) AND t.spec->>'dead_letter' IS NOT NULL;
        SELECT coalesce(array_agg(l.topic), '{}'), coalesce(array_agg(l.part), '{}') INTO locked_topics, locked_parts
            FROM (SELECT p.topic, p.part FROM store_partitions p
                JOIN (SELECT * FROM unnest(topics, parts) AS u(topic, part) UNION SELECT dead, 0::smallint FROM unnest(dead_topics) AS u(dead)) w
                    ON p.topic = w.topic AND p.part = w.part
                ORDER BY p.topic, p.part FOR UPDATE OF p) l;
        moment := store_now(given, ahead);
        stamp := nextval('store_stamps');
        -- A topic that came meanwhile has partitions that are not locked: they are not told.
        RETURN QUERY SELECT t.topic, p.part, p.revision, p.heads, p.at, store_lock.moment, store_lock.stamp, t.class, t.spec::text,
                s.bytes::bigint, s.keys::bigint
            FROM store_topics t
            LEFT JOIN LATERAL (SELECT sum(q.bytes) AS bytes, sum(q.keys) AS keys FROM store_partitions q WHERE q.topic = t.topic) s
                ON true
            LEFT JOIN unnest(locked_topics, locked_parts) AS w(topic, part) ON w.topic = t.topic
            LEFT JOIN store_partitions p ON p.topic = w.topic AND p.part = w.part
            WHERE t.topic = ANY(topics || dead_topics || mortal);
    END
    $$;

    -- Adds messages, and what they change of their partitions.
    CREATE FUNCTION store_write(topics integer[], parts smallint[], lanes smallint[], classes smallint[], seqs bigint[],
        ats bigint[], stamps bigint[], ids uuid[], originals uuid[], expire bigint[], hashes bigint[], targets integer[],
        meta_lens integer[], crcs integer[], bodies bytea[],
        of_topics integer[], of_parts smallint[], revisions bigint[], heads text[], lasts bigint[], appended bigint[],
        bytes bigint[], keys bigint[])
    RETURNS void LANGUAGE plpgsql AS $$
    #variable_conflict use_column
    BEGIN
        INSERT INTO messages (topic, part, lane, class, seq, at, stamp, id, original, expires, key, target, meta_len, crc, body)
            SELECT * FROM unnest(topics, parts, lanes, classes, seqs, ats, stamps, ids, originals, expire, hashes, targets,
                meta_lens, crcs, bodies);
        UPDATE store_partitions p SET revision = w.revision, heads = w.heads::bigint[], at = w.at,
                appended = p.appended + w.appended, bytes = p.bytes + w.bytes, keys = p.keys + w.keys
            FROM unnest(of_topics, of_parts, revisions, store_write.heads, lasts, store_write.appended, store_write.bytes, store_write.keys)
                AS w(topic, part, revision, heads, at, appended, bytes, keys)
            WHERE p.topic = w.topic AND p.part = w.part;
    END
    $$;

    -- The usual lease: new messages of one partition, none of which has a priority. Locks its cursor, and passes over those that
    -- others have locked. Nothing where anything is not as usual: a retry or the end of a lease that is due, a message that has
    -- expired or is another group's, a cursor that was moved. A grant is not synced.
    CREATE FUNCTION store_take(of_topic integer, of_group integer, most bigint, bytes_most bigint, turn bigint, given bigint, ahead bigint)
    RETURNS TABLE (part smallint, moment bigint, others boolean, head bigint, topic integer, lane smallint, seq bigint, id uuid,
        expires bigint, key bigint, target integer, meta_len integer, crc integer, body bytea, stamp bigint, at bigint)
    LANGUAGE plpgsql AS $$
    #variable_conflict use_column
    DECLARE
        of_class smallint;
        kept bigint;
        next bigint;
        since bigint;
        partitions bigint;
    BEGIN
        PERFORM set_config('synchronous_commit', 'off', true);
        moment := store_now(given, ahead);
        SELECT t.class, (t.spec->'retention'->>'secs')::bigint * 1000 + (t.spec->'retention'->>'nanos')::bigint / 1000000
            INTO of_class, kept FROM store_topics t WHERE t.topic = of_topic;
        IF NOT FOUND
            OR EXISTS (SELECT 1 FROM retries r WHERE r.topic = of_topic AND r.grp = of_group AND r.at = 0)
            OR EXISTS (SELECT 1 FROM retries r WHERE r.topic = of_topic AND r.grp = of_group AND r.at > 0 AND r.at <= moment)
            OR EXISTS (SELECT 1 FROM grants g WHERE g.topic = of_topic AND g.grp = of_group AND g.ends <= moment)
        THEN
            RETURN;
        END IF;
        SELECT count(*) INTO partitions FROM store_partitions q WHERE q.topic = of_topic;
        SELECT k.part, greatest(k.nexts[1], q.starts[1]), k.seen, q.heads[1] INTO part, next, since, head
            FROM cursors k JOIN store_partitions q ON q.topic = k.topic AND q.part = k.part
            WHERE k.topic = of_topic AND k.grp = of_group AND q.heads[1] > greatest(k.nexts[1], q.starts[1])
            ORDER BY (k.part + turn) % partitions LIMIT 1 FOR UPDATE OF k SKIP LOCKED;
        -- Looked at once the cursor is locked: who moves it has left ranges with it.
        IF NOT FOUND OR EXISTS (SELECT 1 FROM settled_ranges s WHERE s.topic = of_topic AND s.grp = of_group) OR EXISTS (SELECT 1 FROM cursors k JOIN store_partitions q ON q.topic = k.topic AND q.part = k.part
            WHERE k.topic = of_topic AND k.grp = of_group AND k.nexts[2:10] <> q.heads[2:10])
        THEN
            RETURN;
        END IF;
        others := EXISTS (SELECT 1 FROM cursors k JOIN store_partitions q ON q.topic = k.topic AND q.part = k.part
            WHERE k.topic = of_topic AND k.grp = of_group AND k.part <> store_take.part
                AND q.heads[1] > greatest(k.nexts[1], q.starts[1]));
        RETURN QUERY SELECT store_take.part, store_take.moment, store_take.others, store_take.head, m.topic, m.lane, m.seq, m.id,
                -- What is unusual is told by its expiry.
                CASE WHEN m.at <= store_take.moment - kept OR m.target IS NOT NULL THEN 0 ELSE m.expires END,
                m.key, m.target, m.meta_len, m.crc, m.body, m.stamp, m.at
            FROM (SELECT n.*, sum(octet_length(n.body) - n.meta_len) OVER (ORDER BY n.seq) AS so_far, row_number() OVER (ORDER BY n.seq) AS nth
                FROM (SELECT * FROM messages n WHERE n.topic = of_topic AND n.part = store_take.part AND n.lane = 0 AND n.class = of_class
                    AND n.seq >= next AND n.seq < store_take.head AND n.at >= since ORDER BY n.seq LIMIT most) n) m
            WHERE m.so_far <= bytes_most OR m.nth = 1
            ORDER BY m.seq;
    END
    $$;

    -- Writes what was taken so.
    CREATE FUNCTION store_given(of_epoch bigint, of_number bigint, of_topic integer, of_group integer, of_part smallint, count integer,
        until bigint, by_whom text, marks bytea, given bytea, next bigint, since bigint, of_slot smallint)
    RETURNS void LANGUAGE plpgsql AS $$
    #variable_conflict use_column
    BEGIN
        INSERT INTO grants (epoch, number, topic, part, grp, open, deadline, ends, holder, settled, entries)
            VALUES (of_epoch, of_number, of_topic, of_part, of_group, count, until, until, by_whom, marks, given);
        UPDATE cursors k SET nexts[1] = next, seen = since, granted = k.granted + count
            WHERE k.topic = of_topic AND k.grp = of_group AND k.part = of_part;
        INSERT INTO group_totals AS t (topic, grp, slot, delivered) VALUES (of_topic, of_group, of_slot, count)
            ON CONFLICT (topic, grp, slot) DO UPDATE SET delivered = t.delivered + excluded.delivered;
    END
    $$;

    -- Locks leases; the time is read once they are locked.
    CREATE FUNCTION store_held(epochs bigint[], numbers bigint[], given bigint, ahead bigint)
    RETURNS TABLE (epoch bigint, number bigint, topic integer, part smallint, grp integer, deadline bigint, holder text, entries bytea,
        settled bytea, extended bytea, spec text, moment bigint)
    LANGUAGE plpgsql AS $$
    #variable_conflict use_column
    BEGIN
        PERFORM 1 FROM grants g JOIN unnest(epochs, numbers) AS w(epoch, number) ON g.epoch = w.epoch AND g.number = w.number
            ORDER BY g.epoch, g.number FOR UPDATE OF g;
        moment := store_now(given, ahead);
        RETURN QUERY SELECT g.epoch, g.number, g.topic, g.part, g.grp, g.deadline, g.holder, g.entries, g.settled, g.extended,
                s.spec::text, store_held.moment
            FROM unnest(epochs, numbers) AS w(epoch, number)
            JOIN grants g ON g.epoch = w.epoch AND g.number = w.number
            JOIN store_groups s ON s.topic = g.topic AND s.grp = g.grp;
    END
    $$;

    -- Ends leases of which nothing is open any more, all acknowledged.
    CREATE FUNCTION store_acked(epochs bigint[], numbers bigint[], topics integer[], groups integer[], counts bigint[], of_slot smallint)
    RETURNS void LANGUAGE plpgsql AS $$
    #variable_conflict use_column
    BEGIN
        DELETE FROM grants g USING unnest(epochs, numbers) AS w(epoch, number) WHERE g.epoch = w.epoch AND g.number = w.number;
        INSERT INTO group_totals AS t (topic, grp, slot, acked)
            SELECT w.topic, w.grp, of_slot, w.count FROM unnest(topics, groups, counts) AS w(topic, grp, count)
            WHERE EXISTS (SELECT 1 FROM store_groups s WHERE s.topic = w.topic AND s.grp = w.grp) ORDER BY w.topic, w.grp
            ON CONFLICT (topic, grp, slot) DO UPDATE SET acked = t.acked + excluded.acked;
    END
    $$;

    INSERT INTO sluice_migrations (version, name, readable_from) VALUES (6, 'store_functions', 1);
END
$migration$;

COMMIT;
