//! Tests against the real kernel.

pub mod bench;
pub mod cluster;
pub mod packet;
pub mod report;
pub mod socket;
pub mod vm;
