-- How long the backend read the prompt, and how long it took in all by its own clock: microseconds.
ALTER TABLE usage ADD COLUMN prefill INTEGER;
ALTER TABLE usage ADD COLUMN total_told INTEGER;
