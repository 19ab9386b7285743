//! The key service, IAM and the cluster service over HTTPS.
