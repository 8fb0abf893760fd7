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
mod choice;
mod coexistence;
mod config_file;
mod doctor;
mod documents;
mod foreign;
mod fragments;
mod health_checks;
mod host_ports;
mod icmp;
mod large_packets;
mod legacy_iptables;
mod limits;
mod listeners;
mod manifest;
mod monitor;
mod monitor_behind;
mod monitoring;
mod node_ports;
mod oracle;
mod outside;
mod ping;
mod pods;
mod policy;
mod ranges;
mod restart;
mod service_metrics;
mod silence;
mod snat;
mod source_ranges;
mod stage;
mod stale;
mod status;
mod takeover;
mod top;
mod trace;
mod traffic;
mod xdp;
