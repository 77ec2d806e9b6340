-- How much a key may have: `tokens_per_day=100000 concurrent=2`, or nothing for what is not limited.
ALTER TABLE key ADD COLUMN limits TEXT NOT NULL DEFAULT '';
