//! Pure planning: cluster values and node facts to the desired datapath.

pub mod desired;
