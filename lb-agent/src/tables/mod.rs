//! The typed mirror of the maps: what they hold, what must change, in which order.

pub mod store;
