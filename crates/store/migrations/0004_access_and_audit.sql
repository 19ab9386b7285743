-- Roles on a key ring, and what audit records say of an act. Times as in 0001.

-- A service role on a ring of the instance counts for the keys that are in it.
ALTER TABLE grants ADD COLUMN ring TEXT
    CHECK (ring IS NULL OR (instance IS NOT NULL AND key IS NULL));

-- How the initiator of an act proved who it is; null if the server did it by itself.
ALTER TABLE audit ADD COLUMN credential TEXT
    CHECK (credential IN ('token', 'apikey', 'certificate', 'host'));
-- The peer of the request's socket.
ALTER TABLE audit ADD COLUMN address TEXT;
-- domain::audit::Data as JSON.
ALTER TABLE audit ADD COLUMN data TEXT;
