-- Calls that changed something, so that one that is made again because its answer was lost is
-- answered and not done again. Nothing of a body is in here, only a MAC over all of a request, under a key that is
-- sealed: a body may hold what can be guessed. Times as in 0001.
CREATE TABLE repeats (
    number  INTEGER NOT NULL PRIMARY KEY,   -- rises
    request BLOB NOT NULL UNIQUE CHECK (length(request) = 32),
    subject TEXT NOT NULL,                  -- what was changed: whoever changes it next ends this
    key     TEXT,                           -- the key that the answer shows
    at      INTEGER NOT NULL
) STRICT;
CREATE INDEX repeats_by_subject ON repeats (subject);
CREATE INDEX repeats_by_time ON repeats (at);
