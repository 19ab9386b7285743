//! KMS v2 for kube-apiserver on a Unix socket.
