//! The load balancer with real sockets: nodes, pods and a client outside as namespaces, one agent per
//! node, every sentence about the datapath a test.
//!
//! `cargo test -p lb-tests --test netns`. Needs root. Each test has a network of its own ([`stage`]), so
//! that tests run side by side and no kernel remembers path MTUs or neighbours of another test.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what a test meets is a finding, and its text says where"
)]

mod affinity;
mod bad_input;
mod change;
mod coexistence;
mod foreign;
mod health_checks;
mod icmp;
mod large_packets;
mod limits;
mod manifest;
mod node_ports;
mod outside;
mod ping;
mod policy;
mod restart;
mod snat;
mod source_ranges;
mod stage;
mod stale;
mod xdp;
