-- What brokers ask of the message store most often, each as one question: the usual append, lease and acknowledgement. To be run
-- as the files before it. Where anything is not as usual they do nothing, and the broker decides by the functions of 006.
--
-- Each goes by plans for any arguments: by itself the server would plan most of them anew with each call, which costs as much as
-- the work. And each finds rows by their keys: the tables are small and full of rows that were, which a scan goes through.

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(8317987319222330741);
SET LOCAL lock_timeout = '10s';

DO $migration$
BEGIN
    IF EXISTS (SELECT FROM sluice_migrations WHERE version = 10) THEN
        RAISE NOTICE '010_store_usual is applied already';
        RETURN;
    END IF;

    ALTER FUNCTION store_lock SET plan_cache_mode = force_generic_plan;
    ALTER FUNCTION store_write SET plan_cache_mode = force_generic_plan;
    ALTER FUNCTION store_acked SET plan_cache_mode = force_generic_plan;

    -- The usual append: messages for one partition, without keys, priorities, schedule or anything beside them. Gives the sequence
    -- of the first; nothing where the topic has no room for them, has passed to a later pipeline, or their time to a table that the
    -- broker does not know of (`known`: by class, from when till when it does). `published`: when the last of them says it came; a
    -- broker's clock may be a little ahead of this one, and a message is not to be found before its own time.
    CREATE FUNCTION store_append(of_topic integer, of_part smallint, of_revision bigint, published bigint, ahead_most bigint,
        known_from bigint[], known_until bigint[], cost bigint, ids uuid[], expire bigint[], hashes bigint[], targets integer[],
        meta_lens integer[], crcs integer[], bodies bytea[], given bigint, ahead bigint)
    RETURNS bigint LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off AS $$
    #variable_conflict use_column
    DECLARE
        of_class smallint;
        most numeric;
        moment bigint := store_now(given, ahead);
        count CONSTANT integer := cardinality(ids);
        begins bigint;
        came bigint;
    BEGIN
        SELECT t.class, (t.spec->>'retention_bytes')::numeric INTO of_class, most FROM store_topics t WHERE t.topic = of_topic;
        IF most IS NOT NULL THEN
            -- What it has room for is looked at once the partition is locked, as by `store_lock`.
            PERFORM 1 FROM store_partitions p WHERE p.topic = of_topic AND p.part = of_part FOR UPDATE;
            SELECT (t.spec->>'retention_bytes')::numeric INTO most FROM store_topics t WHERE t.topic = of_topic;
            IF (SELECT sum(p.bytes) FROM store_partitions p WHERE p.topic = of_topic) + cost > most THEN
                RETURN NULL;
            END IF;
        END IF;
        moment := greatest(moment, least(published, moment + ahead_most));
        UPDATE store_partitions p SET heads[1] = p.heads[1] + count, at = greatest(p.at, moment), revision = of_revision,
                appended = p.appended + count, bytes = p.bytes + cost
            WHERE p.topic = of_topic AND p.part = of_part AND p.revision <= of_revision
                AND greatest(p.at, moment) >= known_from[of_class + 1] AND greatest(p.at, moment) < known_until[of_class + 1]
            RETURNING p.heads[1] - count, p.at INTO begins, came;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        -- The stamp is drawn once the partition is locked, as by `store_lock`.
        INSERT INTO messages (topic, part, lane, class, seq, at, stamp, id, expires, key, target, meta_len, crc, body)
            SELECT of_topic, of_part, 0, of_class, begins + w.nth - 1, came, drawn.stamp + w.nth - 1,
                w.id, w.expires, w.key, w.target, w.meta_len, w.crc, w.body
            FROM (SELECT nextval('store_stamps') << 20 AS stamp OFFSET 0) drawn,
                unnest(ids, expire, hashes, targets, meta_lens, crcs, bodies) WITH ORDINALITY
                    AS w(id, expires, key, target, meta_len, crc, body, nth);
        RETURN begins;
    END
    $$;

    -- The usual lease: new messages of one partition, none of which has a priority. Locks its cursor, and passes over those that
    -- others have locked. Nothing where anything is not as usual: a retry or the end of a lease that is due, a cursor that was moved.
    -- Where one of the messages is not (it has expired, or is another group's), it is told as `odd`, and where one was erased there are
    -- fewer than `count`: then the broker takes all back. What is of all of them is told with the first row alone. A grant is not synced.
    CREATE FUNCTION store_lease(of_topic integer, of_group integer, most bigint, bytes_most bigint, is_first boolean, turn bigint,
        of_epoch bigint, of_number bigint, duration bigint, by_whom text, of_slot smallint, given bigint, ahead bigint)
    RETURNS TABLE (part smallint, moment bigint, others boolean, rest boolean, first bigint, count integer, odd boolean,
        id uuid, expires bigint, key bigint, target integer, meta_len integer, crc integer, body bytea)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off AS $$
    #variable_conflict use_column
    DECLARE
        of_class smallint;
        kept bigint;
        partitions bigint;
        head bigint;
        since bigint;
        last_at bigint;
        held bigint;
    BEGIN
        PERFORM set_config('synchronous_commit', 'off', true);
        moment := store_now(given, ahead);
        SELECT t.class, (t.spec->'retention'->>'secs')::bigint * 1000 + (t.spec->'retention'->>'nanos')::bigint / 1000000,
                (t.spec->>'partitions')::bigint,
                EXISTS (SELECT 1 FROM retries r WHERE r.topic = of_topic AND r.grp = of_group AND r.at = 0)
                OR EXISTS (SELECT 1 FROM retries r WHERE r.topic = of_topic AND r.grp = of_group AND r.at > 0 AND r.at <= store_lease.moment)
                OR EXISTS (SELECT 1 FROM grants g WHERE g.topic = of_topic AND g.grp = of_group AND g.ends <= store_lease.moment)
            INTO of_class, kept, partitions, odd FROM store_topics t WHERE t.topic = of_topic;
        IF NOT FOUND OR odd THEN
            RETURN;
        END IF;
        -- Whose turn it is, which mostly has something; else the next one that has.
        SELECT k.part, greatest(k.nexts[1], q.starts[1]), k.seen, q.heads[1], q.at, q.bytes
                INTO part, first, since, head, last_at, held
            FROM cursors k JOIN store_partitions q ON q.topic = k.topic AND q.part = k.part
            WHERE k.topic = of_topic AND k.grp = of_group AND k.part = (turn % partitions)::smallint
                AND q.heads[1] > greatest(k.nexts[1], q.starts[1])
            FOR UPDATE OF k SKIP LOCKED;
        IF NOT FOUND THEN
            SELECT k.part, greatest(k.nexts[1], q.starts[1]), k.seen, q.heads[1], q.at, q.bytes
                INTO part, first, since, head, last_at, held
                FROM cursors k JOIN store_partitions q ON q.topic = k.topic AND q.part = k.part
                WHERE k.topic = of_topic AND k.grp = of_group AND q.heads[1] > greatest(k.nexts[1], q.starts[1])
                ORDER BY (k.part - turn % partitions + partitions) % partitions LIMIT 1 FOR UPDATE OF k SKIP LOCKED;
        END IF;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        -- Looked at once the cursor is locked: who moves it has left ranges with it.
        IF EXISTS (SELECT 1 FROM settled_ranges s WHERE s.topic = of_topic AND s.grp = of_group)
            OR EXISTS (SELECT 1 FROM store_partitions q JOIN cursors k ON k.topic = q.topic AND k.part = q.part
                WHERE q.topic = of_topic AND q.urgent AND k.grp = of_group AND k.nexts[2:10] <> q.heads[2:10])
        THEN
            RETURN;
        END IF;
        count := least(most, head - first);
        IF held > bytes_most THEN
            -- As many as fit; of all that a call grants, the first one whatever its size.
            SELECT count(*) INTO count
                FROM (SELECT n.seq, sum(n.size) OVER (ORDER BY n.seq) AS so_far
                    FROM (SELECT n.seq, octet_length(n.body) - n.meta_len AS size FROM messages n
                        WHERE n.topic = of_topic AND n.part = store_lease.part AND n.lane = 0 AND n.class = of_class
                            AND n.seq >= store_lease.first AND n.seq < store_lease.first + store_lease.count AND n.at >= since) n) n
                WHERE n.so_far <= bytes_most OR (is_first AND n.seq = store_lease.first);
            IF count = 0 THEN
                RETURN;
            END IF;
        END IF;
        rest := first + count < head;
        -- Where there is more here, that is all that is asked.
        others := rest OR EXISTS (SELECT 1 FROM cursors k JOIN store_partitions q ON q.topic = k.topic AND q.part = k.part
            WHERE k.topic = of_topic AND k.grp = of_group AND k.part <> store_lease.part
                AND q.heads[1] > greatest(k.nexts[1], q.starts[1]));
        -- What comes from now on is not older than the last; what is there already is looked up once in a while.
        IF rest THEN
            last_at := since;
            IF first / 1024 <> (first + count) / 1024 THEN
                SELECT n.at INTO last_at FROM messages n WHERE n.topic = of_topic AND n.part = store_lease.part AND n.lane = 0
                    AND n.class = of_class AND n.seq = store_lease.first + store_lease.count - 1 AND n.at >= since;
            END IF;
        END IF;
        INSERT INTO grants (epoch, number, topic, part, grp, open, deadline, ends, holder, settled, entries, first, count, since)
            VALUES (of_epoch, of_number, of_topic, store_lease.part, of_group, store_lease.count, store_lease.moment + duration,
                store_lease.moment + duration, by_whom, decode(repeat('00', (store_lease.count + 7) / 8), 'hex'), '', store_lease.first,
                store_lease.count, since);
        UPDATE cursors k SET nexts[1] = store_lease.first + store_lease.count, granted = k.granted + store_lease.count,
                seen = coalesce(last_at, k.seen)
            WHERE k.topic = of_topic AND k.grp = of_group AND k.part = store_lease.part;
        INSERT INTO group_totals AS t (topic, grp, slot, delivered) VALUES (of_topic, of_group, of_slot, store_lease.count)
            ON CONFLICT (topic, grp, slot) DO UPDATE SET delivered = t.delivered + excluded.delivered;
        RETURN QUERY SELECT CASE WHEN m.seq = store_lease.first THEN store_lease.part END,
                CASE WHEN m.seq = store_lease.first THEN store_lease.moment END, CASE WHEN m.seq = store_lease.first THEN store_lease.others END,
                CASE WHEN m.seq = store_lease.first THEN store_lease.rest END, CASE WHEN m.seq = store_lease.first THEN m.seq END,
                CASE WHEN m.seq = store_lease.first THEN store_lease.count END,
                m.target IS NOT NULL OR m.at <= store_lease.moment - kept OR coalesce(m.expires <= store_lease.moment, false),
                m.id, m.expires, m.key, m.target, m.meta_len, m.crc, m.body
            FROM messages m WHERE m.topic = of_topic AND m.part = store_lease.part AND m.lane = 0 AND m.class = of_class
                AND m.seq >= store_lease.first AND m.seq < store_lease.first + store_lease.count AND m.at >= since
            ORDER BY m.seq;
    END
    $$;

    -- Locks leases, as `store_held` does, and tells all that there is of them.
    CREATE FUNCTION store_hold(epochs bigint[], numbers bigint[], given bigint, ahead bigint)
    RETURNS TABLE (epoch bigint, number bigint, topic integer, part smallint, grp integer, deadline bigint, holder text, entries bytea,
        settled bytea, extended bytea, first bigint, count integer, since bigint, spec text, moment bigint)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off AS $$
    #variable_conflict use_column
    BEGIN
        PERFORM 1 FROM grants g JOIN unnest(epochs, numbers) AS w(epoch, number) ON g.epoch = w.epoch AND g.number = w.number
            ORDER BY g.epoch, g.number FOR UPDATE OF g;
        moment := store_now(given, ahead);
        RETURN QUERY SELECT g.epoch, g.number, g.topic, g.part, g.grp, g.deadline, g.holder, g.entries, g.settled, g.extended, g.first,
                g.count, g.since, s.spec::text, store_hold.moment
            FROM unnest(epochs, numbers) AS w(epoch, number)
            JOIN grants g ON g.epoch = w.epoch AND g.number = w.number
            JOIN store_groups s ON s.topic = g.topic AND s.grp = g.grp;
    END
    $$;

    -- What grants of messages that follow each other do not list: those that are still there.
    CREATE FUNCTION store_following(topics integer[], parts smallint[], firsts bigint[], counts integer[], sinces bigint[])
    RETURNS TABLE (nth bigint, seq bigint, id uuid, stamp bigint, key bigint)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off AS $$
    #variable_conflict use_column
    BEGIN
        RETURN QUERY SELECT w.nth, m.seq, m.id, m.stamp, m.key
            FROM unnest(topics, parts, firsts, counts, sinces) WITH ORDINALITY AS w(topic, part, first, count, since, nth)
            JOIN store_topics t ON t.topic = w.topic
            JOIN messages m ON m.topic = w.topic AND m.part = w.part AND m.lane = 0 AND m.class = t.class
                AND m.seq >= w.first AND m.seq < w.first + w.count AND m.at >= w.since;
    END
    $$;

    -- The ids of messages that follow each other, those that are still there.
    CREATE FUNCTION store_ids(of_topic integer, of_part smallint, first bigint, count integer, since bigint)
    RETURNS bytea LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
    BEGIN
        RETURN (SELECT string_agg(uuid_send(m.id), '' ORDER BY m.seq) FROM messages m
            WHERE m.topic = of_topic AND m.part = of_part AND m.lane = 0
                AND m.class = (SELECT t.class FROM store_topics t WHERE t.topic = of_topic)
                AND m.seq >= first AND m.seq < first + count AND m.at >= since);
    END
    $$;

    -- The usual acknowledgement: all of an answer to a usual lease at once. Ends those leases of which this is so, and says which.
    CREATE FUNCTION store_done(epochs bigint[], numbers bigint[], topics integer[], parts smallint[], groups integer[], firsts bigint[],
        counts integer[], known_ids bytea[], of_slot smallint, given bigint, ahead bigint)
    RETURNS TABLE (epoch bigint, number bigint)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off AS $$
    #variable_conflict use_column
    DECLARE
        until bigint;
    BEGIN
        FOR nth IN 1 .. cardinality(epochs) LOOP
            DELETE FROM grants g WHERE g.epoch = epochs[nth] AND g.number = numbers[nth] AND g.topic = topics[nth]
                AND g.part = parts[nth] AND g.grp = groups[nth] AND g.first = firsts[nth] AND g.count = counts[nth]
                AND g.open = g.count AND g.extended IS NULL AND g.deadline > store_now(given, ahead)
                AND (known_ids[nth] IS NULL OR known_ids[nth] = store_ids(g.topic, g.part, g.first, g.count, g.since))
                RETURNING g.epoch, g.number, g.deadline INTO epoch, number, until;
            IF FOUND THEN
                IF until <= store_now(given, ahead) THEN
                    -- It was locked by another, and has ended meanwhile: to be asked again.
                    RAISE EXCEPTION 'a lease ended while it was waited for' USING ERRCODE = 'serialization_failure';
                END IF;
                INSERT INTO group_totals AS t (topic, grp, slot, acked) VALUES (topics[nth], groups[nth], of_slot, counts[nth])
                    ON CONFLICT (topic, grp, slot) DO UPDATE SET acked = t.acked + excluded.acked;
                RETURN NEXT;
            END IF;
        END LOOP;
    END
    $$;

    INSERT INTO sluice_migrations (version, name, readable_from) VALUES (10, 'store_usual', 8);
END
$migration$;

COMMIT;
