-- How often keys have changed; a gate that has seen a number asks only for what came after it.
CREATE TABLE generation (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    number INTEGER NOT NULL
) STRICT;
INSERT INTO generation VALUES (1, 1);

-- Keys are never deleted: a revoked one tells whose it was.
CREATE TABLE key (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    form TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    name TEXT NOT NULL,
    owner TEXT,
    role TEXT,
    models TEXT,
    cloud INTEGER,
    expires INTEGER,
    networks TEXT,
    note TEXT NOT NULL,
    state TEXT NOT NULL,
    created INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    rotated_to TEXT,
    overlap_until INTEGER,
    used INTEGER,
    used_from TEXT,
    changed INTEGER NOT NULL
) STRICT;
CREATE INDEX key_changed ON key (changed);
CREATE INDEX key_name ON key (name);
CREATE INDEX key_owner ON key (owner) WHERE owner IS NOT NULL;

CREATE TABLE audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    who TEXT NOT NULL,
    client TEXT,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    before TEXT,
    after TEXT
) STRICT;
CREATE INDEX audit_subject ON audit (subject, seq);
CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit trail is only added to');
END;
CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit trail is only added to');
END;
