//! The server seen from outside: tokens, deadlines, retries.
