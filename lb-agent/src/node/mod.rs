//! What is true of the node we run on: devices, addresses, ports, cgroups, namespaces.
//!
//! `observe` asks the kernel, `classify` decides what it means; the result is [`facts`]. Nothing
//! here knows Services or BPF maps.

pub mod cgroup;
pub mod classify;
pub mod facts;
pub mod listeners;
pub mod namespace;
pub mod observe;
pub mod pods;
pub mod ports;
pub mod route;

#[cfg(test)]
mod observe_tests;
