-- Each audit row is bound to the one before it: SHA-256, see docs/formats.md. Rows of before this
-- have none.
ALTER TABLE audit ADD COLUMN link BLOB CHECK (link IS NULL OR length(link) = 32);
