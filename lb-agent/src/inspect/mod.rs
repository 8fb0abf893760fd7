//! The command line's read side: what the kernel's tables hold, printed for people or as JSON.
//!
//! Rows come from `bpf`; this module filters and renders them and never opens a map itself.

pub mod backends;
pub mod flows;
pub mod monitor;
pub mod reasons;
pub mod rows;
pub mod services;
pub mod status;
pub mod trace;

pub(crate) mod table;
