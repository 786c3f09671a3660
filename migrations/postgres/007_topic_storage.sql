-- Where topics' messages are. See 001 for how it is run.

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(8317987319222330741);
SET LOCAL lock_timeout = '10s';

DO $migration$
BEGIN
    IF EXISTS (SELECT FROM sluice_migrations WHERE version = 7) THEN
        RAISE NOTICE '007_topic_storage is applied already';
        RETURN;
    END IF;

    -- `default`: with the catalog, in this database; `redis`. A broker that does not know the column keeps all in this database: topics
    -- in Redis are made once no such broker runs any more.
    ALTER TABLE topics ADD COLUMN storage TEXT NOT NULL DEFAULT 'default' CHECK (storage IN ('default', 'redis'));

    INSERT INTO sluice_migrations (version, name, readable_from) VALUES (7, 'topic_storage', 1);
END
$migration$;

COMMIT;
