//! Root keys sealed under one master key that is kept in a file or given at start.
