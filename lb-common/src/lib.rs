//! What the kernel programs and the agent share: the map layouts and every datapath decision.
//!
//! No I/O, no BPF helper, no Kubernetes: this crate compiles for the BPF target and for the host,
//! where its decisions are tested as plain functions. What a decision needs from outside it asks
//! through [`env::Env`].
#![cfg_attr(not(any(test, feature = "model")), no_std)]

pub mod abi;
pub mod bytes;
pub mod env;
pub mod family;
pub mod lb;
pub mod maglev;
#[cfg(feature = "model")]
pub mod model;
pub mod packet;
pub mod wire;
