-- How long, and in how many bytes, what arrives at a topic is kept for dry runs as it was before its stages; NULL: not at all.
ALTER TABLE topics ADD COLUMN capture_ttl_ms INTEGER;
ALTER TABLE topics ADD COLUMN capture_bytes_max INTEGER;
