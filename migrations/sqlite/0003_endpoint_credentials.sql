-- How a webhook's sender shows who it is, and whom it trusts; what is remembered of answers.
ALTER TABLE subscriptions ADD COLUMN endpoint_authorization TEXT;
ALTER TABLE subscriptions ADD COLUMN client_certificate TEXT;
ALTER TABLE subscriptions ADD COLUMN ca_certificate TEXT;
ALTER TABLE subscriptions ADD COLUMN attempt_bodies TEXT NOT NULL DEFAULT 'keep';
