-- Plugins all of whose versions were deleted, and what the last one imported (a JSON list): a version that comes later is not
-- the first one of its name.
CREATE TABLE deleted_plugins (
    plugin TEXT PRIMARY KEY,
    imports TEXT NOT NULL,
    deleted_at INTEGER NOT NULL
) STRICT;
