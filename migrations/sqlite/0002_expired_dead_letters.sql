-- Whether a message that passes its expiry undelivered becomes a dead letter.
ALTER TABLE topics ADD COLUMN dead_letter_expired INTEGER NOT NULL DEFAULT 0;
