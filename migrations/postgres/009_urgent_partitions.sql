-- Where any message with a priority ever was, which few topics have. To be run as the files before it.

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(8317987319222330741);
SET LOCAL lock_timeout = '10s';

DO $migration$
BEGIN
    IF EXISTS (SELECT FROM sluice_migrations WHERE version = 9) THEN
        RAISE NOTICE '009_urgent_partitions is applied already';
        RETURN;
    END IF;

    ALTER TABLE store_partitions ADD COLUMN urgent boolean GENERATED ALWAYS AS (heads[2:10] <> '{0,0,0,0,0,0,0,0,0}') STORED;
    CREATE INDEX store_partitions_urgent ON store_partitions (topic) WHERE urgent;

    INSERT INTO sluice_migrations (version, name, readable_from) VALUES (9, 'urgent_partitions', 8);
END
$migration$;

COMMIT;
