-- The rest of the key service. Times as in 0001.

-- What a key's policies say. A policy that was written stays, switched off or not.
CREATE TABLE key_policies (
    instance       TEXT NOT NULL,
    key            TEXT NOT NULL,
    kind           TEXT NOT NULL CHECK (kind IN ('rotation', 'dualAuthDelete')),
    id             TEXT NOT NULL,
    enabled        INTEGER NOT NULL,
    interval_month INTEGER CHECK (interval_month BETWEEN 1 AND 12),  -- rotation only
    created        INTEGER NOT NULL,
    created_by     TEXT NOT NULL,
    updated        INTEGER NOT NULL,
    updated_by     TEXT NOT NULL,
    PRIMARY KEY (instance, key, kind),
    CHECK ((kind = 'rotation') = (interval_month IS NOT NULL)),
    FOREIGN KEY (instance, key) REFERENCES keys (instance, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX key_policies_rotation ON key_policies (instance, key)
    WHERE kind = 'rotation' AND enabled = 1;

CREATE TABLE instance_policies (
    instance   TEXT NOT NULL REFERENCES instances (id),
    kind       TEXT NOT NULL CHECK (kind IN ('allowedIP', 'allowedNetwork', 'dualAuthDelete',
                                             'keyCreateImportAccess', 'metrics', 'rotation')),
    enabled    INTEGER NOT NULL,
    attributes TEXT NOT NULL,               -- JSON object, checked before it is written
    created    INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    updated    INTEGER NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (instance, kind)
) STRICT, WITHOUT ROWID;

-- Dual authorisation: who wants the key deleted, since when. The account that counts is a
-- person's: a service stands for its owner.
ALTER TABLE keys ADD COLUMN set_by TEXT;
ALTER TABLE keys ADD COLUMN set_at INTEGER;
-- The last time that the users of the key were told its state on demand.
ALTER TABLE keys ADD COLUMN synced INTEGER;
CREATE INDEX keys_by_deletion ON keys (deleted) WHERE state = 5;
CREATE INDEX keys_by_ring ON keys (instance, ring);

-- `default` is in every instance and in no row.
CREATE TABLE key_rings (
    instance   TEXT NOT NULL REFERENCES instances (id),
    id         TEXT NOT NULL CHECK (id <> 'default'),
    created    INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (instance, id)
) STRICT, WITHOUT ROWID;

ALTER TABLE aliases ADD COLUMN created INTEGER NOT NULL DEFAULT 0;
ALTER TABLE aliases ADD COLUMN created_by TEXT NOT NULL DEFAULT '';

-- One for each instance; a new one takes its place. `private` and `nonce` are sealed.
CREATE TABLE import_tokens (
    instance   TEXT NOT NULL PRIMARY KEY REFERENCES instances (id),
    id         TEXT NOT NULL,
    created    INTEGER NOT NULL,
    expires    INTEGER NOT NULL,
    allowed    INTEGER NOT NULL,            -- retrievals in all
    remaining  INTEGER NOT NULL,            -- retrievals left
    private    BLOB NOT NULL,               -- PKCS#8
    public     TEXT NOT NULL,               -- PEM, SubjectPublicKeyInfo
    nonce      BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE kmip_adapters (
    instance    TEXT NOT NULL REFERENCES instances (id),
    id          TEXT NOT NULL,
    name        TEXT NOT NULL,
    description TEXT NOT NULL,
    key         TEXT NOT NULL,              -- the root key that wraps its objects
    created     INTEGER NOT NULL,
    created_by  TEXT NOT NULL,
    updated     INTEGER NOT NULL,
    updated_by  TEXT NOT NULL,
    PRIMARY KEY (instance, id),
    UNIQUE (instance, name),
    FOREIGN KEY (instance, key) REFERENCES keys (instance, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX kmip_adapters_by_key ON kmip_adapters (instance, key);

-- A certificate belongs to one adapter of the whole server.
CREATE TABLE kmip_certificates (
    instance    TEXT NOT NULL,
    adapter     TEXT NOT NULL,
    id          TEXT NOT NULL,
    name        TEXT NOT NULL,
    certificate TEXT NOT NULL,              -- PEM
    fingerprint TEXT NOT NULL UNIQUE,       -- SHA-256 of the DER, hexadecimal
    created     INTEGER NOT NULL,
    created_by  TEXT NOT NULL,
    PRIMARY KEY (instance, adapter, id),
    UNIQUE (instance, adapter, name),
    FOREIGN KEY (instance, adapter) REFERENCES kmip_adapters (instance, id)
) STRICT, WITHOUT ROWID;

-- The person that a service stands for.
ALTER TABLE principals ADD COLUMN owner TEXT REFERENCES principals (iam_id);

-- What a service notes for itself about its use of a key; shown to services only.
ALTER TABLE registrations ADD COLUMN metadata TEXT;

-- What a user of a key did after an event, when it says so by `event_ack`.
CREATE TABLE event_answers (
    instance   TEXT NOT NULL,
    key        TEXT NOT NULL,
    event      INTEGER NOT NULL,
    crn        TEXT NOT NULL,
    state      TEXT NOT NULL,               -- adopterKeyState
    rewrapped  TEXT,                        -- the version it rewrapped to
    at         INTEGER NOT NULL,
    PRIMARY KEY (instance, key, event, crn)
) STRICT, WITHOUT ROWID;
