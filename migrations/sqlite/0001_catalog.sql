-- The catalog of one broker. Durations and times are milliseconds, times since 1970-01-01T00:00:00Z. Numbers that name
-- things come from AUTOINCREMENT sequences, which SQLite never hands out twice, also after a deletion.

CREATE TABLE topic_ids (
    id INTEGER PRIMARY KEY AUTOINCREMENT
) STRICT;

CREATE TABLE group_ids (
    id INTEGER PRIMARY KEY AUTOINCREMENT
) STRICT;

-- A dead-letter topic has no row of its own that points on: its dead_letter_topic_id is null.
CREATE TABLE topics (
    topic_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    dead_letter_topic_id INTEGER UNIQUE REFERENCES topics (topic_id) DEFERRABLE INITIALLY DEFERRED,
    description TEXT NOT NULL,
    type TEXT NOT NULL,
    schema_id TEXT,
    delivery_guarantee TEXT NOT NULL,
    retention_ms INTEGER NOT NULL,
    retention_bytes INTEGER,
    partition_count INTEGER NOT NULL,
    max_message_size INTEGER NOT NULL,
    dedup_window_ms INTEGER NOT NULL,
    dedup_keys_max INTEGER NOT NULL,
    dead_letter_payload TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    version INTEGER NOT NULL
) STRICT;

-- A Queue's one subscription has group 0, so the second unique key also says "at most one on a Queue".
CREATE TABLE subscriptions (
    subscription_id TEXT PRIMARY KEY,
    topic_id INTEGER NOT NULL REFERENCES topics (topic_id),
    group_id INTEGER NOT NULL,
    consumer_group TEXT NOT NULL,
    type TEXT NOT NULL,
    consumer_endpoint TEXT,
    filter TEXT,
    max_retries INTEGER NOT NULL,
    ack_timeout_ms INTEGER NOT NULL,
    backoff_initial_ms INTEGER NOT NULL,
    backoff_multiplier REAL NOT NULL,
    backoff_max_ms INTEGER NOT NULL,
    backoff_jitter REAL NOT NULL,
    ordered INTEGER NOT NULL,
    max_in_flight INTEGER,
    rate_limit INTEGER,
    format TEXT NOT NULL,
    headers TEXT NOT NULL,
    secret TEXT,
    previous_secret TEXT,
    previous_secret_until INTEGER,
    pause_reason TEXT,
    paused_since INTEGER,
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    version INTEGER NOT NULL,
    UNIQUE (topic_id, consumer_group),
    UNIQUE (topic_id, group_id)
) STRICT;

-- scope: 'topic/<topic_id>' or 'subscription/<subscription_id>'. Apart from the revisions, so that a number is not used
-- again when they are gone.
CREATE TABLE pipeline_counters (
    scope TEXT PRIMARY KEY,
    last_revision INTEGER NOT NULL
) STRICT;

CREATE TABLE pipeline_revisions (
    scope TEXT NOT NULL,
    revision INTEGER NOT NULL,
    topic_id INTEGER NOT NULL REFERENCES topics (topic_id),
    subscription_id TEXT REFERENCES subscriptions (subscription_id),
    stages TEXT NOT NULL,
    resolved TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (scope, revision)
) STRICT;

CREATE INDEX idx_pipeline_revisions_topic ON pipeline_revisions (topic_id);
CREATE INDEX idx_pipeline_revisions_subscription ON pipeline_revisions (subscription_id);

CREATE TABLE plugin_blobs (
    digest TEXT PRIMARY KEY,
    bytes BLOB NOT NULL
) STRICT;

CREATE TABLE plugin_acceptances (
    id INTEGER PRIMARY KEY AUTOINCREMENT
) STRICT;

CREATE TABLE plugin_versions (
    plugin TEXT NOT NULL,
    version TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES plugin_blobs (digest),
    size INTEGER NOT NULL,
    source TEXT NOT NULL,
    imports TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    accepted INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (plugin, version)
) STRICT;

CREATE INDEX idx_plugin_versions_digest ON plugin_versions (digest);

-- The columns of the deployment guide. The row is the version that validates now; schema_versions is the history.
CREATE TABLE schemas (
    schema_id TEXT PRIMARY KEY,
    schema_definition TEXT NOT NULL,
    version TEXT NOT NULL,
    compatibility TEXT NOT NULL DEFAULT 'None',
    status TEXT NOT NULL DEFAULT 'Draft',
    approved_by TEXT,
    approved_at INTEGER,
    created_at INTEGER NOT NULL,
    deprecated_at INTEGER
) STRICT;

CREATE TABLE schema_versions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    schema_id TEXT NOT NULL,
    schema_definition TEXT NOT NULL,
    version TEXT NOT NULL,
    compatibility TEXT NOT NULL DEFAULT 'None',
    status TEXT NOT NULL DEFAULT 'Draft',
    approved_by TEXT,
    approved_at INTEGER,
    created_at INTEGER NOT NULL,
    deprecated_at INTEGER,
    UNIQUE (schema_id, version)
) STRICT;

CREATE TABLE audit_logs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event_type TEXT NOT NULL,
    entity_type TEXT,
    entity_id TEXT,
    user_id TEXT,
    details TEXT,
    trace_id TEXT,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX idx_audit_logs_created_at ON audit_logs (created_at DESC);
CREATE INDEX idx_audit_logs_entity ON audit_logs (entity_type, entity_id);
CREATE INDEX idx_audit_logs_user ON audit_logs (user_id);
