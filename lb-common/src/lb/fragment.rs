//! Fragments of one datagram in any order.
//!
//! Only the first fragment has ports. They are remembered for the later ones; a later one that comes
//! before it is parked: its bytes are kept, and it is let go. The first fragment sends what is parked
//! through the hook again, where by now its ports are known.

use bytemuck::{Pod, Zeroable};

use crate::abi::{Address, AddressFlags};
use crate::env::{Env, Waiting};
use crate::family::Family;
use crate::packet::{FragmentKey, Kind};
use crate::wire::transport::Ports;

/// Fragments of one datagram that are parked at most: 64 KiB in Ethernet frames are 45, the first among them.
pub const MAX_PARKED: u32 = 44;
/// Longest frame that is parked, bytes: the largest usual MTU, and a link header.
pub const MAX_FRAME: u32 = 9_216;
/// Ticks that a fragment waits for its first one: about a second. Networks reorder within milliseconds;
/// identifications of IPv4 are used again after 65,536 datagrams.
pub const PATIENCE_TICKS: u32 = 64;

/// Which later fragments wait at a hook for their first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parking {
    /// None: this hook passes them on.
    Never,
    /// Those that come in for addresses of the node, of Services and of pods that are served by packet.
    /// Others are somebody else's traffic, which the kernel routes without ports.
    OwnAddresses,
    /// Those that are about to leave, from endpoints on this node.
    LocalEndpoints,
}

/// Key of PARKED.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct ParkedKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Identification, as in [`FragmentKey`].
    pub id: u32,
    /// IP protocol number, widened.
    pub protocol: u32,
    /// 1 where the hook sees what is about to leave, 0 where it sees what comes in: one datagram passes
    /// both, and each waits for its own first fragment.
    pub leaves: u32,
    /// Counts the parked fragments of one datagram, from zero in the order of their arrival.
    pub number: u32,
}

const _: () = assert!(size_of::<ParkedKey>() == 48 && align_of::<ParkedKey>() == 4);

impl ParkedKey {
    /// The first that is parked of a datagram at these hooks.
    #[inline(always)]
    fn first_of<F: Family>(datagram: &FragmentKey<F>, parking: Parking) -> Self {
        Self {
            source: F::widen(datagram.source),
            destination: F::widen(datagram.destination),
            id: datagram.id,
            protocol: datagram.protocol,
            leaves: matches!(parking, Parking::LocalEndpoints) as u32,
            number: 0,
        }
    }
}

/// Value of PARKED.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ParkedFrame {
    /// Since when it waits, ticks.
    pub since: u32,
    /// Index of the interface that it was parked at.
    pub device: u32,
    /// Bytes of `bytes` that are the frame.
    pub length: u32,
    /// Random: tells this value from a later one in the same memory.
    pub stamp: u32,
    /// The frame.
    pub bytes: [u8; MAX_FRAME as usize],
}

const _: () = assert!(size_of::<ParkedFrame>() == 16 + MAX_FRAME as usize);

/// What became of a frame that was to be parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parked {
    /// It is kept.
    Kept,
    /// Another one is kept under this key.
    Taken,
    /// It is too long, or the table refuses.
    Refused,
}

/// The ports of a later fragment; without them, what the packet counts as.
#[inline(always)]
pub fn ports<F: Family, E: Env<F>>(env: &mut E, datagram: &FragmentKey<F>) -> Result<Ports, Kind> {
    if let Some(ports) = env.fragment(datagram) {
        return Ok(ports);
    }
    if !park(env, datagram) {
        return Err(Kind::Unknown);
    }
    // The first fragment may have come on another CPU meanwhile and found nothing parked. If it found
    // this one, the receiver sees it twice, which reassembly allows.
    env.fragment(datagram).ok_or(Kind::Parked)
}

#[inline(always)]
fn park<F: Family, E: Env<F>>(env: &mut E, datagram: &FragmentKey<F>) -> bool {
    let (address, wanted) = match E::PARKING {
        Parking::Never => return false,
        Parking::OwnAddresses => (datagram.destination, AddressFlags::OURS),
        Parking::LocalEndpoints => (datagram.source, AddressFlags::ENDPOINT),
    };
    let waits = env.address_flags(&F::widen(address)) & wanted != 0;
    if !waits || !env.serves(datagram.protocol as u8) {
        return false;
    }
    env.park_somewhere(&ParkedKey::first_of(datagram, E::PARKING))
}

/// A first fragment has come, and its ports are remembered: those that wait for it pass the hook again
/// behind it. `false` when the first fragment was lost over that.
#[inline(always)]
pub fn release<F: Family, E: Env<F>>(env: &mut E, datagram: &FragmentKey<F>) -> bool {
    if matches!(E::PARKING, Parking::Never) {
        return true;
    }
    let key = ParkedKey::first_of(datagram, E::PARKING);
    env.parked(&key).is_none() || env.resend_all(&key)
}

/// Keeps a copy of this frame in the first free place of the datagram of `key`; `false` when there is none.
#[inline(always)]
pub fn park_somewhere<W: Waiting>(waiting: &mut W, key: &mut ParkedKey) -> bool {
    let now = waiting.now();
    let mut number = 0;
    while number < MAX_PARKED {
        key.number = number;
        number = waiting.next(number);
        let since = waiting.parked(key);
        if since.is_some_and(|since| !is_stale(since, now)) {
            continue;
        }
        if since.is_some() {
            waiting.forget_parked(key);
        }
        match waiting.park(key) {
            Parked::Kept => return true,
            // Another CPU was faster.
            Parked::Taken => {}
            Parked::Refused => return false,
        }
    }
    false
}

/// Sends every frame of the datagram of `key` that waits through its hook; `false` when this one was lost
/// over it.
#[inline(always)]
pub fn resend_all<W: Waiting>(waiting: &mut W, key: &mut ParkedKey) -> bool {
    // A packet can't be made here: the first fragment lends its own.
    if !waiting.set_aside() {
        return true;
    }
    let now = waiting.now();
    let mut number = 0;
    while number < MAX_PARKED {
        key.number = number;
        number = waiting.next(number);
        // A gap is an evicted fragment: then the datagram isn't whole, and the rest is of no use.
        let Some(since) = waiting.parked(key) else {
            break;
        };
        if is_stale(since, now) {
            waiting.forget_parked(key);
        } else {
            waiting.resend_parked(key);
        }
    }
    waiting.take_back()
}

/// Whether a fragment that waits since then is of an earlier datagram with the same identification.
#[inline(always)]
fn is_stale(since: u32, now: u32) -> bool {
    now.wrapping_sub(since) >= PATIENCE_TICKS
}
