-- What a server that came back from a backup waits for, and a join whose answer was lost.

-- The last restore of the server (a UUID), until every agent of the cluster has said that it holds
-- no KEK which this database lacks; null otherwise.
ALTER TABLE clusters ADD COLUMN restored TEXT;

-- SHA-256 of the public key (an uncompressed point of P-256, or of Ed25519) that joined with the token: the same key
-- gets its certificate again while the token's hour lasts.
ALTER TABLE join_tokens ADD COLUMN used_key BLOB;
