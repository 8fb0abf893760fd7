//! A node in plain collections: the oracle of the tests (feature `model`, never part of the agent).
//!
//! [`world`] holds the Service tables, [`node`] runs the packet decisions over them on frames in
//! vectors, [`sockets`] the socket decisions, [`scene`] is a node with Services of every kind.
//! [`frame`] writes frames and their expected images with etherparse, which shares no line with the
//! datapath. The tests of the loaded programs fill the kernel's maps from the same
//! [`world::World`], so that both can be asked the same question.

pub mod frame;
pub mod node;
pub mod scene;
pub mod sockets;
pub mod world;
