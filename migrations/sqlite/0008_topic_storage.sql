-- Where a topic's messages are: `default`, in the broker's store, or `redis`.
ALTER TABLE topics ADD COLUMN storage TEXT NOT NULL DEFAULT 'default' CHECK (storage IN ('default', 'redis'));

-- What tells this broker's topics in a Redis from those of others.
CREATE TABLE identity (
    identity TEXT PRIMARY KEY
) STRICT;

INSERT INTO identity (identity) VALUES (lower(hex(randomblob(8))));
