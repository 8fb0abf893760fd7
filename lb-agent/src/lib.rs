//! The node agent: watches Services and EndpointSlices and fills the BPF maps.
//!
//! One straight line: `cluster` (Kubernetes or a directory → values) → `plan` (pure) → `tables`
//! (mirror of the maps, diff, order) → `bpf` (the only module that talks to the kernel's BPF).

pub mod args;
pub mod bpf;
pub mod cluster;
pub mod config;
pub mod config_file;
pub mod contract;
pub mod datapath;
pub mod doctor;
pub mod flows;
pub mod inspect;
pub mod logging;
pub mod memory;
pub mod monitor;
pub mod node;
pub mod plan;
pub mod run;
pub mod serve;
pub mod status;
pub mod tables;
pub mod takeover;
pub mod top;
pub mod trace;
pub mod wait;
