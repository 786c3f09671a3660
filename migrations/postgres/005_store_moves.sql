-- A database that is one end of `sluice migrate-store` says so: no broker starts on it meanwhile, nor on what was moved away. To
-- be run as the files before it.

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(8317987319222330741);
SET LOCAL lock_timeout = '10s';

DO $migration$
BEGIN
    IF EXISTS (SELECT FROM sluice_migrations WHERE version = 5) THEN
        RAISE NOTICE '005_store_moves is applied already';
        RETURN;
    END IF;

    CREATE TABLE store_moves (
        single BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (single),
        mark TEXT NOT NULL
    );

    INSERT INTO sluice_migrations (version, name, readable_from) VALUES (5, 'store_moves', 1);
END
$migration$;

COMMIT;
