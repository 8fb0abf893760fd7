//! A network of namespaces on one machine: nodes, pods, a client outside and a site on the
//! Internet, dual stack and without any uplink. The demo, the tests and developers use it.
//!
//! ```text
//!              site 203.0.113.10
//!                │
//!   fabric: router 10.240.0.1 ── bridge ──┬──────────────┬───────────── client 10.240.0.100
//!                                         │              │              (or behind `edge`)
//!                          node-a 10.240.0.11    node-b 10.240.0.12
//!                             │        │             │        │
//!                     10.244.1.11  10.244.1.12   10.244.2.11  10.244.2.12
//!                        pod-a1       pod-a2        pod-b1       pod-b2
//! ```
//!
//! [`topology`] decides names and addresses, [`wiring`] what each namespace must be told, [`Lab`]
//! does it, [`Peer`] is a helper process inside a host that serves and asks, [`Agent`] runs the
//! agent under test on a node, [`Terminal`] whatever draws on a screen. [`registry`] finds and removes labs, also those of a crashed owner.
//!
//! Needs root, iproute2, nftables and ethtool (`cargo xtask setup`).

#![deny(unsafe_code)]

mod agent;
mod binary;
mod command;
mod lab;
mod losses;
pub mod peer;
mod registry;
mod sys;
mod terminal;
pub mod topology;
mod wiring;

pub use agent::{Agent, AgentOptions, HEALTHZ, METRICS, Xdp};
pub use binary::{agent_binary, use_peer_binary};
pub use command::run_with_input;
pub use lab::Lab;
pub use peer::Peer;
pub use peer::protocol::{
    Answer, Failure, Fragments, Load, LoadReport, Outcome, Page, Request, Serve, Transport,
    histogram,
};
pub use terminal::Terminal;
pub use topology::{
    Cni, Dual, EXTERNAL_IP, Family, LOAD_BALANCER, Options, PodNetwork, ReversePath, SITE, Topology,
};
