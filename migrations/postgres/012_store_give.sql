-- The usual lease in three statements where 010 has eight: to start a statement costs as much as what it does. To be run as the files
-- before it.

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(8317987319222330741);
SET LOCAL lock_timeout = '10s';

DO $migration$
BEGIN
    IF EXISTS (SELECT FROM sluice_migrations WHERE version = 12) THEN
        RAISE NOTICE '012_store_give is applied already';
        RETURN;
    END IF;

    -- How many messages `store_give` has granted; those of other leases are in `group_totals.delivered`.
    ALTER TABLE cursors ADD COLUMN given bigint NOT NULL DEFAULT 0;

    -- The usual lease, as `store_lease`, and by the same rules. What is of all of them is told with the first row alone (`about`): partition,
    -- time, whether other partitions have something, whether this one has more, the first sequence, how many.
    CREATE FUNCTION store_give(of_topic integer, of_group integer, most bigint, bytes_most bigint, is_first boolean, turn bigint,
        of_epoch bigint, of_number bigint, duration bigint, by_whom text, given bigint, ahead bigint)
    RETURNS TABLE (about bigint[], odd boolean, id uuid, expires bigint, key bigint, target integer, meta_len integer, crc integer, body bytea)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off AS $$
    #variable_conflict use_column
    DECLARE
        -- A grant is not synced.
        is_lazy CONSTANT boolean := set_config('synchronous_commit', 'off', true) = 'off';
        moment CONSTANT bigint := store_now(given, ahead);
        of_part smallint;
        of_class smallint;
        kept bigint;
        is_busy boolean;
        head bigint;
        begins bigint;
        many bigint;
        since bigint;
        last_at bigint;
        held bigint;
        has_rest boolean;
        have_others boolean := true;
    BEGIN
        -- Whose turn it is, which mostly has something; else the next one that has.
        SELECT k.part, greatest(k.nexts[1], q.starts[1]), k.seen, q.heads[1], q.at, q.bytes, t.class,
                (t.spec->'retention'->>'secs')::bigint * 1000 + (t.spec->'retention'->>'nanos')::bigint / 1000000,
                EXISTS (SELECT 1 FROM retries r WHERE r.topic = of_topic AND r.grp = of_group AND r.at = 0)
                OR EXISTS (SELECT 1 FROM retries r WHERE r.topic = of_topic AND r.grp = of_group AND r.at > 0 AND r.at <= moment)
                OR EXISTS (SELECT 1 FROM grants g WHERE g.topic = of_topic AND g.grp = of_group AND g.ends <= moment)
            INTO of_part, begins, since, head, last_at, held, of_class, kept, is_busy
            FROM store_topics t JOIN cursors k ON k.topic = t.topic JOIN store_partitions q ON q.topic = k.topic AND q.part = k.part
            WHERE t.topic = of_topic AND k.grp = of_group AND k.part = (turn % (t.spec->>'partitions')::bigint)::smallint
                AND q.heads[1] > greatest(k.nexts[1], q.starts[1])
            FOR UPDATE OF k SKIP LOCKED;
        IF NOT FOUND THEN
            SELECT k.part, greatest(k.nexts[1], q.starts[1]), k.seen, q.heads[1], q.at, q.bytes, t.class,
                    (t.spec->'retention'->>'secs')::bigint * 1000 + (t.spec->'retention'->>'nanos')::bigint / 1000000,
                    EXISTS (SELECT 1 FROM retries r WHERE r.topic = of_topic AND r.grp = of_group AND r.at = 0)
                    OR EXISTS (SELECT 1 FROM retries r WHERE r.topic = of_topic AND r.grp = of_group AND r.at > 0 AND r.at <= moment)
                    OR EXISTS (SELECT 1 FROM grants g WHERE g.topic = of_topic AND g.grp = of_group AND g.ends <= moment)
                INTO of_part, begins, since, head, last_at, held, of_class, kept, is_busy
                FROM store_topics t JOIN cursors k ON k.topic = t.topic JOIN store_partitions q ON q.topic = k.topic AND q.part = k.part
                WHERE t.topic = of_topic AND k.grp = of_group AND q.heads[1] > greatest(k.nexts[1], q.starts[1])
                ORDER BY (k.part - turn % (t.spec->>'partitions')::bigint + (t.spec->>'partitions')::bigint)
                    % (t.spec->>'partitions')::bigint
                LIMIT 1 FOR UPDATE OF k SKIP LOCKED;
        END IF;
        IF NOT FOUND OR is_busy THEN
            RETURN;
        END IF;
        many := least(most, head - begins);
        IF held > bytes_most THEN
            -- As many as fit; of all that a call grants, the first one whatever its size.
            SELECT count(*) INTO many
                FROM (SELECT n.seq, sum(n.size) OVER (ORDER BY n.seq) AS so_far
                    FROM (SELECT n.seq, octet_length(n.body) - n.meta_len AS size FROM messages n
                        WHERE n.topic = of_topic AND n.part = of_part AND n.lane = 0 AND n.class = of_class
                            AND n.seq >= begins AND n.seq < begins + many AND n.at >= since) n) n
                WHERE n.so_far <= bytes_most OR (is_first AND n.seq = begins);
            IF many = 0 THEN
                RETURN;
            END IF;
        END IF;
        has_rest := begins + many < head;
        -- Where there is more here, that is all that is asked. What comes from now on is not older than the last; what is there
        -- already is looked up once in a while.
        IF has_rest THEN
            last_at := since;
            IF begins / 1024 <> (begins + many) / 1024 THEN
                SELECT n.at INTO last_at FROM messages n WHERE n.topic = of_topic AND n.part = of_part AND n.lane = 0
                    AND n.class = of_class AND n.seq = begins + many - 1 AND n.at >= since;
            END IF;
        ELSE
            have_others := EXISTS (SELECT 1 FROM cursors k JOIN store_partitions q ON q.topic = k.topic AND q.part = k.part
                WHERE k.topic = of_topic AND k.grp = of_group AND k.part <> of_part
                    AND q.heads[1] > greatest(k.nexts[1], q.starts[1]));
        END IF;
        -- Ranges and urgent messages are looked for once the cursor is locked: who moves it has left ranges with it.
        WITH moved AS (
            UPDATE cursors k SET nexts[1] = begins + many, granted = k.granted + many, given = k.given + many,
                    seen = coalesce(last_at, k.seen)
                WHERE k.topic = of_topic AND k.grp = of_group AND k.part = of_part
                    AND NOT EXISTS (SELECT 1 FROM settled_ranges s WHERE s.topic = of_topic AND s.grp = of_group)
                    AND NOT EXISTS (SELECT 1 FROM store_partitions q JOIN cursors o ON o.topic = q.topic AND o.part = q.part
                        WHERE q.topic = of_topic AND q.urgent AND o.grp = of_group AND o.nexts[2:10] <> q.heads[2:10])
                RETURNING 1
        )
        INSERT INTO grants (epoch, number, topic, part, grp, open, deadline, ends, holder, settled, entries, first, count, since)
            SELECT of_epoch, of_number, of_topic, of_part, of_group, many, moment + duration, moment + duration, by_whom,
                decode(repeat('00', ((many + 7) / 8)::integer), 'hex'), '', begins, many, since
            FROM moved;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        RETURN QUERY SELECT CASE WHEN m.seq = begins
                    THEN ARRAY[of_part, moment, have_others::integer, has_rest::integer, begins, many] END,
                m.target IS NOT NULL OR m.at <= moment - kept OR coalesce(m.expires <= moment, false),
                m.id, m.expires, m.key, m.target, m.meta_len, m.crc, m.body
            FROM messages m WHERE m.topic = of_topic AND m.part = of_part AND m.lane = 0 AND m.class = of_class
                AND m.seq >= begins AND m.seq < begins + many AND m.at >= since
            ORDER BY m.seq;
    END
    $$;

    INSERT INTO sluice_migrations (version, name, readable_from) VALUES (12, 'store_give', 8);
END
$migration$;

COMMIT;
