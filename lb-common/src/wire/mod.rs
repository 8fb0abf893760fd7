//! Headers as they lie on the wire, one file per protocol, and checksums.

pub mod checksum;
pub mod crc32c;
pub mod ethernet;
pub mod icmp;
pub mod ip;
pub mod transport;
