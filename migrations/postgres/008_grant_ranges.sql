-- What a grant says of messages that follow each other. To be run as the files before it.

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(8317987319222330741);
SET LOCAL lock_timeout = '10s';

DO $migration$
BEGIN
    IF EXISTS (SELECT FROM sluice_migrations WHERE version = 8) THEN
        RAISE NOTICE '008_grant_ranges is applied already';
        RETURN;
    END IF;

    -- Of a usual lease, whose messages follow each other in the first lane: the first one's sequence, how many there are, and since when
    -- they came. `entries` is empty then, until some are settled and not all: they are read where the messages are.
    ALTER TABLE grants ADD COLUMN first bigint, ADD COLUMN count integer, ADD COLUMN since bigint;

    INSERT INTO sluice_migrations (version, name, readable_from) VALUES (8, 'grant_ranges', 8);
END
$migration$;

COMMIT;
