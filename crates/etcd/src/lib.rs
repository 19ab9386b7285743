//! etcd over gRPC, what its records say, and its files.
