-- People who come in by an OpenID Connect issuer.

-- Issuers that the settings name, each with the audience of its tokens; replaced at each start.
CREATE TABLE login_issuers (
    issuer   TEXT NOT NULL PRIMARY KEY,
    audience TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Whom a subject of an issuer comes in as. Issuers that are named no longer keep their subjects, who
-- do not come in.
CREATE TABLE login_subjects (
    issuer     TEXT NOT NULL,
    subject    TEXT NOT NULL,
    iam_id     TEXT NOT NULL REFERENCES principals (iam_id),
    created    INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (issuer, subject)
) STRICT, WITHOUT ROWID;
CREATE INDEX login_subjects_by_principal ON login_subjects (iam_id);
