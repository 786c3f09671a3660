-- Who signed a version (the public key in base64), and the JSON Schema that it has for its configs.
ALTER TABLE plugin_versions ADD COLUMN signed_by TEXT;
ALTER TABLE plugin_versions ADD COLUMN config_schema TEXT;

-- Powers that an Admin allows to a plugin beyond those of the version in use, as a JSON list of names.
CREATE TABLE plugin_powers (
    plugin TEXT PRIMARY KEY,
    allowed TEXT NOT NULL,
    version INTEGER NOT NULL,
    updated_by TEXT NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
