-- The cluster service. Moments are milliseconds since the Unix epoch (`_ms`).

CREATE TABLE clusters (
    id                TEXT    NOT NULL PRIMARY KEY,
    name              TEXT    NOT NULL UNIQUE,
    crn               TEXT    NOT NULL UNIQUE,
    server_url        TEXT    NOT NULL,
    ca                TEXT    NOT NULL,
    admin_kubeconfig  BLOB,               -- sealed by the custodian; place: clusters, admin_kubeconfig, id
    registered_by     TEXT    NOT NULL,   -- IAM id
    created_ms        INTEGER NOT NULL,
    revision          INTEGER NOT NULL,   -- that of doc, for cheap comparison
    doc               TEXT    NOT NULL,   -- domain::cluster::Cluster as JSON
    master_status     TEXT    NOT NULL,   -- the last text shown, to know when it changed
    master_status_ms  INTEGER NOT NULL
) STRICT;

-- One agent may join with each, once. Only a keyed hash is kept.
CREATE TABLE join_tokens (
    tag         BLOB    NOT NULL PRIMARY KEY,
    cluster     TEXT    NOT NULL REFERENCES clusters (id),
    made_by     TEXT    NOT NULL,
    expires_ms  INTEGER NOT NULL,
    used_ms     INTEGER,
    used_by     TEXT
) STRICT;
CREATE INDEX join_tokens_cluster ON join_tokens (cluster);

-- The certificate that counts for each agent: the last one issued at a join, and its renewals.
CREATE TABLE agents (
    cluster          TEXT    NOT NULL REFERENCES clusters (id),
    name             TEXT    NOT NULL,
    fingerprint      TEXT    NOT NULL,    -- SHA-256 of the certificate's DER, hexadecimal
    previous         TEXT,                -- the one before a renewal: it counts until it ends
    not_after_ms     INTEGER NOT NULL,
    joined_ms        INTEGER NOT NULL,
    last_contact_ms  INTEGER NOT NULL,
    PRIMARY KEY (cluster, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE observations (
    cluster  TEXT    NOT NULL REFERENCES clusters (id),
    agent    TEXT    NOT NULL,
    at_ms    INTEGER NOT NULL,
    doc      TEXT    NOT NULL,            -- domain::cluster::Observation as JSON
    PRIMARY KEY (cluster, agent)
) STRICT, WITHOUT ROWID;

-- The row stays when a lease ends, so that its fencing token never falls.
CREATE TABLE leases (
    cluster   TEXT    NOT NULL PRIMARY KEY REFERENCES clusters (id),
    agent     TEXT    NOT NULL,
    fencing   INTEGER NOT NULL,
    until_ms  INTEGER NOT NULL
) STRICT;

CREATE TABLE jobs (
    id            TEXT    NOT NULL PRIMARY KEY,
    cluster       TEXT    NOT NULL REFERENCES clusters (id),
    kind          TEXT    NOT NULL,
    requested_by  TEXT    NOT NULL,
    requested_ms  INTEGER NOT NULL,
    report        TEXT,                   -- wire::agent::JobReport as JSON
    ended_ms      INTEGER
) STRICT;
CREATE INDEX jobs_cluster ON jobs (cluster, requested_ms);

-- Who acted on which key event.
CREATE TABLE event_acks (
    instance  TEXT    NOT NULL,
    key       TEXT    NOT NULL,
    event     INTEGER NOT NULL,
    cluster   TEXT    NOT NULL REFERENCES clusters (id),
    agent     TEXT    NOT NULL,
    state     TEXT    NOT NULL,           -- the key's state that the agent acted on
    fenced    INTEGER NOT NULL,
    at_ms     INTEGER NOT NULL,
    PRIMARY KEY (instance, key, event, cluster, agent)
) STRICT, WITHOUT ROWID;
CREATE INDEX event_acks_agent ON event_acks (cluster, agent, instance, key, event);
