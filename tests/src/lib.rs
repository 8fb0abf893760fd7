//! Tests against the real kernel.

pub mod cluster;
pub mod vm;
