//! Where Kubernetes types end: watches or a manifest directory become plain values.
//!
//! Both sources end in the same stream of [`snapshot::Change`]s: `watch` follows an API server,
//! `manifests` a directory. What an object means is decided once, in `convert`.

pub mod address;
pub mod convert;
pub mod manifests;
pub mod name;
pub mod problems;
pub mod snapshot;
pub mod watch;
