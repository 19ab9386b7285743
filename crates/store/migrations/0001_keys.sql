-- Times are milliseconds since the Unix epoch. Identifiers are UUIDs as text. BLOBs named
-- `material`, `payload` or `sealed` are sealed by the custodian and bound to their row.

-- Settings and sealed secrets of the server itself, by name.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE resource_groups (
    id      TEXT PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE instances (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL UNIQUE,
    region         TEXT NOT NULL,
    resource_group TEXT NOT NULL REFERENCES resource_groups (id),
    created        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE principals (
    iam_id  TEXT PRIMARY KEY,
    kind    TEXT NOT NULL CHECK (kind IN ('user', 'service')),
    name    TEXT NOT NULL,
    email   TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- `mac` is HMAC-SHA-256 of the API key; the key itself is nowhere.
CREATE TABLE api_keys (
    id      TEXT PRIMARY KEY,
    iam_id  TEXT NOT NULL REFERENCES principals (iam_id),
    name    TEXT NOT NULL,
    mac     BLOB NOT NULL UNIQUE,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What a principal may do. `scope` says which table of roles `role` is from; a service role
-- without an instance counts for all instances, without a key for all keys of the instance.
CREATE TABLE grants (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    iam_id   TEXT NOT NULL REFERENCES principals (iam_id),
    scope    TEXT NOT NULL CHECK (scope IN ('service', 'platform')),
    role     TEXT NOT NULL,
    instance TEXT REFERENCES instances (id),
    key      TEXT
) STRICT;
CREATE INDEX grants_by_principal ON grants (iam_id);

CREATE TABLE keys (
    instance     TEXT NOT NULL REFERENCES instances (id),
    id           TEXT NOT NULL,
    name         TEXT NOT NULL,
    description  TEXT,
    tags         TEXT NOT NULL,
    state        INTEGER NOT NULL CHECK (state IN (1, 2, 3, 5)),
    extractable  INTEGER NOT NULL,
    imported     INTEGER NOT NULL,
    ring         TEXT NOT NULL DEFAULT 'default',
    created      INTEGER NOT NULL,
    created_by   TEXT NOT NULL,
    updated      INTEGER,
    rotated      INTEGER,
    expires      INTEGER,
    deleted      INTEGER,
    deleted_by   TEXT,
    -- The last disable or delete: enable and restore wait from here.
    acted        INTEGER,
    -- The version that wraps; root keys only.
    current      TEXT,
    -- Standard keys only.
    payload      BLOB,
    PRIMARY KEY (instance, id),
    CHECK (extractable = (current IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_by_expiry ON keys (expires) WHERE state = 1 AND expires IS NOT NULL;

-- `material` is null once it is shredded.
CREATE TABLE key_versions (
    instance TEXT NOT NULL,
    key      TEXT NOT NULL,
    id       TEXT NOT NULL,
    number   INTEGER NOT NULL,
    created  INTEGER NOT NULL,
    material BLOB,
    PRIMARY KEY (instance, key, id),
    UNIQUE (instance, key, number),
    FOREIGN KEY (instance, key) REFERENCES keys (instance, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE aliases (
    instance TEXT NOT NULL,
    alias    TEXT NOT NULL,
    key      TEXT NOT NULL,
    PRIMARY KEY (instance, alias),
    FOREIGN KEY (instance, key) REFERENCES keys (instance, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX aliases_by_key ON aliases (instance, key);

CREATE TABLE registrations (
    instance    TEXT NOT NULL,
    key         TEXT NOT NULL,
    crn         TEXT NOT NULL,
    description TEXT,
    prevent     INTEGER NOT NULL,
    version     TEXT NOT NULL,
    created     INTEGER NOT NULL,
    created_by  TEXT NOT NULL,
    updated     INTEGER,
    updated_by  TEXT,
    PRIMARY KEY (instance, key, crn),
    FOREIGN KEY (instance, key) REFERENCES keys (instance, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX registrations_by_crn ON registrations (crn);

-- What happened to root keys, for the clusters that use them.
CREATE TABLE key_events (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    instance TEXT NOT NULL,
    key      TEXT NOT NULL,
    kind     TEXT NOT NULL
             CHECK (kind IN ('rotate', 'disable', 'enable', 'delete', 'restore', 'expire')),
    version  TEXT,
    at       INTEGER NOT NULL,
    FOREIGN KEY (instance, key) REFERENCES keys (instance, id)
) STRICT;
CREATE INDEX key_events_by_key ON key_events (instance, key, id);

-- One row for each act. Never payloads, plaintexts or tokens.
CREATE TABLE audit (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    at          INTEGER NOT NULL,
    who         TEXT NOT NULL,
    action      TEXT NOT NULL,
    target      TEXT NOT NULL,
    outcome     TEXT NOT NULL CHECK (outcome IN ('success', 'failure')),
    status      INTEGER NOT NULL,
    reason      TEXT NOT NULL,
    correlation TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_time ON audit (at);
