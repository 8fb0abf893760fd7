//! `lb-agent run`: puts the parts together and works until it is told to stop.

pub mod control;
pub mod datapath;
pub mod pace;
pub mod reports;

#[cfg(test)]
mod control_tests;
