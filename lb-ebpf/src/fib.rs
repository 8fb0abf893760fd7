//! The kernel's routing table, through `bpf_fib_lookup`.

use core::ffi::{c_int, c_void};

use aya_ebpf::helpers::generated::bpf_fib_lookup;
use lb_common::abi::Address;
use lb_common::env::{Route, RouteQuery};
use lb_common::family::Family;

/// `struct bpf_fib_lookup` (include/uapi/linux/bpf.h), with the members of its unions that are
/// used here. 64 bytes in every kernel that has it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Fib {
    /// AF_INET or AF_INET6; on return that of the next hop.
    pub family: u8,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    /// In: IP length to compare with the path MTU, 0 for none. Out: the MTU.
    length_or_mtu: u16,
    /// In: the input device. Out: the output device.
    pub device: u32,
    flow_info: u32,
    source: [u32; 4],
    /// In: destination. Out: next hop.
    pub destination: [u32; 4],
    vlan: [u16; 2],
    /// Out: the output device's link address.
    pub source_mac: [u8; 6],
    /// Out: the next hop's link address.
    pub destination_mac: [u8; 6],
}

const _: () = assert!(size_of::<Fib>() == 64);

const SUCCESS: i64 = 0;
const BLACKHOLE: i64 = 1;
const UNREACHABLE: i64 = 2;
const PROHIBIT: i64 = 3;
const NOT_FORWARDED: i64 = 4;
const NO_NEIGHBOUR: i64 = 7;
const FRAGMENTATION_NEEDED: i64 = 8;

/// What the lookup said, before a hook judges whether it can send there.
pub enum Answer {
    /// The next hop's link address is known.
    Resolved { device: u32 },
    /// It isn't yet.
    Unresolved { device: u32 },
    /// As [`Route`] has it.
    Final(Route),
}

impl Fib {
    /// Word by word and volatile: otherwise the compiler calls `memset`, a loop over bytes in a
    /// function of its own, behind which the verifier of Linux 6.1 takes no two states for equal.
    #[inline(always)]
    fn clear(&mut self) {
        let words = (self as *mut Self).cast::<u64>();
        for index in 0..size_of::<Self>() / size_of::<u64>() {
            // SAFETY: within this value, whose alignment is 8; all zero is a valid value.
            unsafe { core::ptr::write_volatile(words.add(index), 0) };
        }
    }

    /// Asks for the route of a packet that came in through `input`.
    #[inline(always)]
    pub fn lookup<F: Family>(
        &mut self,
        context: *mut c_void,
        input: u32,
        query: &RouteQuery<F>,
    ) -> Answer {
        self.clear();
        self.family = F::AF;
        self.protocol = query.protocol;
        self.length_or_mtu = if query.length > 0xffff { 0xffff } else { query.length as u16 };
        self.device = input;
        put(&mut self.source, F::widen(query.source), F::HAS_HEADER_CHECKSUM);
        put(&mut self.destination, F::widen(query.destination), F::HAS_HEADER_CHECKSUM);
        // SAFETY: `self` is 64 initialised bytes, the layout that the helper expects.
        let result = unsafe {
            bpf_fib_lookup(context, (self as *mut Self).cast(), size_of::<Self>() as c_int, 0)
        };
        let device = self.device;
        match result {
            SUCCESS => Answer::Resolved { device },
            NO_NEIGHBOUR => Answer::Unresolved { device },
            FRAGMENTATION_NEEDED => {
                Answer::Final(Route::TooBig { device, mtu: self.length_or_mtu as u32 })
            }
            NOT_FORWARDED => Answer::Final(Route::Stack),
            BLACKHOLE | UNREACHABLE | PROHIBIT => Answer::Final(Route::None),
            // Forwarding is off, or the route encapsulates: not ours to send.
            _ => Answer::Final(Route::None),
        }
    }
}

/// An address as the helper's unions hold it: IPv4 in the first word.
#[inline(always)]
fn put(union: &mut [u32; 4], address: Address, is_v4: bool) {
    let [a, b, c, d] = address.words();
    let [first, second, third, fourth] = union;
    if is_v4 {
        *first = d;
    } else {
        *first = a;
        *second = b;
        *third = c;
        *fourth = d;
    }
}
