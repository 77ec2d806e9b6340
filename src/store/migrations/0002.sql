-- Names of every kind, each once: rows and sums hold its number, and 0 for none.
CREATE TABLE usage_word (
    id INTEGER PRIMARY KEY,
    word TEXT NOT NULL UNIQUE
) STRICT;

-- One row per request that a backend began. Durations are microseconds.
CREATE TABLE usage (
    -- The milliseconds since 1970, then 20 bits of the request's id: in the order of time without an index.
    place INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    client TEXT,
    name INTEGER NOT NULL,
    key INTEGER NOT NULL,
    model INTEGER NOT NULL,
    operation INTEGER NOT NULL,
    backend INTEGER NOT NULL,
    inference INTEGER NOT NULL,
    status INTEGER NOT NULL,
    outcome INTEGER NOT NULL,
    options INTEGER NOT NULL,
    prompt INTEGER NOT NULL,
    completion INTEGER NOT NULL,
    cached INTEGER,
    reasoning INTEGER,
    estimated INTEGER NOT NULL,
    load INTEGER,
    generation INTEGER,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    queue INTEGER NOT NULL,
    first_byte INTEGER,
    first_token INTEGER,
    total INTEGER NOT NULL,
    backend_time INTEGER NOT NULL
) STRICT;
-- A second or more is a load; a model that was there already answers this in milliseconds.
CREATE INDEX usage_load ON usage (place) WHERE load >= 1000000;

-- The same in sums, by hours of the configured time zone.
CREATE TABLE usage_hour (
    -- The second since 1970 in which it begins.
    start INTEGER NOT NULL,
    name INTEGER NOT NULL,
    key INTEGER NOT NULL,
    model INTEGER NOT NULL,
    operation INTEGER NOT NULL,
    backend INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    prompt INTEGER NOT NULL,
    completion INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    backend_time INTEGER NOT NULL,
    PRIMARY KEY (start, name, key, model, operation, backend)
) STRICT, WITHOUT ROWID;

-- And by its days.
CREATE TABLE usage_day (
    start INTEGER NOT NULL,
    name INTEGER NOT NULL,
    key INTEGER NOT NULL,
    model INTEGER NOT NULL,
    operation INTEGER NOT NULL,
    backend INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    prompt INTEGER NOT NULL,
    completion INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    backend_time INTEGER NOT NULL,
    PRIMARY KEY (start, name, key, model, operation, backend)
) STRICT, WITHOUT ROWID;

-- How much of each segment of the journal is in the tables above: written with it, so that nothing
-- counts twice.
CREATE TABLE usage_journal (
    segment TEXT PRIMARY KEY,
    folded INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
