//! Where Kubernetes types end: reflectors or a manifest directory become plain values.

pub mod snapshot;
