-- Identity and access. Times as in 0001.

-- Who has which roles where. `subject` is an IAM id, an access group's id, or for an
-- authorization the id of a cluster, empty for all of them. Without `service` a policy counts for
-- the whole account, with 'services' for all of it but access; without `instance`, `ring`, `key` or `cluster` for all of those.
CREATE TABLE access_policies (
    id           TEXT NOT NULL PRIMARY KEY,
    subject_kind TEXT NOT NULL CHECK (subject_kind IN ('principal', 'group', 'clusters')),
    subject      TEXT NOT NULL,
    roles        TEXT NOT NULL,             -- names, parted by blanks
    service      TEXT CHECK (service IN ('kms', 'containers-kubernetes', 'services')),
    instance     TEXT REFERENCES instances (id),
    ring         TEXT,
    key          TEXT,
    cluster      TEXT,
    version      INTEGER NOT NULL,          -- rises with each change
    created      INTEGER NOT NULL,
    created_by   TEXT NOT NULL,
    updated      INTEGER NOT NULL,
    updated_by   TEXT NOT NULL,
    CHECK (ring IS NULL OR key IS NULL),
    CHECK (instance IS NOT NULL OR (ring IS NULL AND key IS NULL)),
    CHECK (instance IS NULL OR service IS 'kms'),
    CHECK (cluster IS NULL OR service IS 'containers-kubernetes')
) STRICT, WITHOUT ROWID;
CREATE INDEX access_policies_by_subject ON access_policies (subject_kind, subject);

CREATE TABLE access_groups (
    id          TEXT NOT NULL PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    version     INTEGER NOT NULL,
    created     INTEGER NOT NULL,
    created_by  TEXT NOT NULL,
    updated     INTEGER NOT NULL,
    updated_by  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE access_group_members (
    access_group TEXT NOT NULL REFERENCES access_groups (id),
    iam_id       TEXT NOT NULL REFERENCES principals (iam_id),
    created      INTEGER NOT NULL,
    created_by   TEXT NOT NULL,
    PRIMARY KEY (access_group, iam_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX access_group_members_by_principal ON access_group_members (iam_id);

ALTER TABLE principals ADD COLUMN description TEXT NOT NULL DEFAULT '';
ALTER TABLE principals ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE principals ADD COLUMN updated INTEGER;

ALTER TABLE api_keys ADD COLUMN description TEXT NOT NULL DEFAULT '';
ALTER TABLE api_keys ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE api_keys ADD COLUMN updated INTEGER;
ALTER TABLE api_keys ADD COLUMN created_by TEXT NOT NULL DEFAULT '';
-- The API key by whose token it was made, there or gone.
ALTER TABLE api_keys ADD COLUMN created_with TEXT;
CREATE INDEX api_keys_by_principal ON api_keys (iam_id);
CREATE INDEX api_keys_by_maker ON api_keys (created_with);

-- Clusters whose service-account tokens are believed, by the keys in `jwks` alone: nothing is
-- ever fetched.
CREATE TABLE trusted_issuers (
    issuer     TEXT NOT NULL PRIMARY KEY,
    audience   TEXT NOT NULL,
    jwks       TEXT NOT NULL,               -- a JWK set (RFC 7517), public keys only
    created    INTEGER NOT NULL,
    created_by TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Which service ID a token of an issuer may become: identity is issuer and subject.
CREATE TABLE trusted_subjects (
    issuer     TEXT NOT NULL REFERENCES trusted_issuers (issuer),
    subject    TEXT NOT NULL,
    iam_id     TEXT NOT NULL REFERENCES principals (iam_id),
    created    INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (issuer, subject, iam_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX trusted_subjects_by_principal ON trusted_subjects (iam_id);

-- Roles given so far, each as a policy. A UUID of version 4 out of random bytes.
INSERT INTO access_policies (id, subject_kind, subject, roles, service, instance, ring, key,
                             version, created, created_by, updated, updated_by)
SELECT lower(hex(randomblob(4))) || '-' || lower(hex(randomblob(2))) || '-4' ||
       substr(lower(hex(randomblob(2))), 2) || '-a' || substr(lower(hex(randomblob(2))), 2) ||
       '-' || lower(hex(randomblob(6))),
       'principal', g.iam_id, g.role, CASE g.scope WHEN 'service' THEN 'kms' END, g.instance,
       g.ring, g.key, 1, p.created, '', p.created, ''
FROM grants g JOIN principals p ON p.iam_id = g.iam_id;
DROP TABLE grants;
