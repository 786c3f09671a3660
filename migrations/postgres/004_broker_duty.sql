-- What brokers do, and are asked to do. See 001 for how it is run.

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(8317987319222330741);
SET LOCAL lock_timeout = '10s';

DO $migration$
BEGIN
    IF EXISTS (SELECT FROM sluice_migrations WHERE version = 4) THEN
        RAISE NOTICE '004_broker_duty is applied already';
        RETURN;
    END IF;

    -- `serving`: others wait for it before a change is answered; one that starts is not waited for, and one that does not know
    -- the column serves. `drain`: it is asked to take no work any more. `load`: what it has to do, and how its plugins are: JSON.
    ALTER TABLE brokers
        ADD COLUMN serving BOOLEAN NOT NULL DEFAULT true,
        ADD COLUMN drain BOOLEAN NOT NULL DEFAULT false,
        ADD COLUMN load TEXT NOT NULL DEFAULT '{}';

    INSERT INTO sluice_migrations (version, name, readable_from) VALUES (4, 'broker_duty', 1);
END
$migration$;

COMMIT;
