//! The command line's read side: what the kernel's tables hold, printed for people or as JSON.
//!
//! Rows come from `bpf`; this module filters and renders them and never opens a map itself.

pub mod flows;
pub mod rows;
pub mod services;

mod table;
