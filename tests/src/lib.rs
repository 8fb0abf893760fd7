//! Tests against the real kernel.

pub mod vm;
