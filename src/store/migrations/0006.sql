-- Up to which second rows and sums were last looked at for their age: a clock that is ahead for a while
-- must not take away more than a day each time.
CREATE TABLE usage_age (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    looked INTEGER NOT NULL
) STRICT;
