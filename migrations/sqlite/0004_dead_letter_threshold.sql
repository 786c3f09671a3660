-- How many dead letters make somebody be told; NULL: nobody.
ALTER TABLE topics ADD COLUMN dead_letter_threshold INTEGER DEFAULT 100;
