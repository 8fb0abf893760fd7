//! Facts of this node from rtnetlink.

pub mod facts;
