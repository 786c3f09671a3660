-- What tells this catalog from all others, as a row: a restore and an upgrade of the server keep it. To be run as the files before it.

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(8317987319222330741);
SET LOCAL lock_timeout = '10s';

DO $migration$
BEGIN
    IF EXISTS (SELECT FROM sluice_migrations WHERE version = 11) THEN
        RAISE NOTICE '011_identity is applied already';
        RETURN;
    END IF;

    -- What brokers went by until now: the server's own number, and the database's in it.
    CREATE TABLE identity (identity TEXT PRIMARY KEY);
    INSERT INTO identity (identity) SELECT system_identifier::text || '.' ||
        (SELECT oid::text FROM pg_database WHERE datname = current_database()) FROM pg_control_system();

    INSERT INTO sluice_migrations (version, name, readable_from) VALUES (11, 'identity', 8);
END
$migration$;

COMMIT;
