//! Tests against the real kernel.

pub mod bench;
pub mod cluster;
pub mod contract;
pub mod documents;
pub mod mentions;
pub mod packet;
pub mod promtool;
pub mod report;
pub mod socket;
pub mod vm;
