//! The calls by which a program reads and replaces the tables of the old iptables. One of the few modules
//! that may use `unsafe`.
//!
//! The structures are those of include/uapi/linux/netfilter_ipv4/ip_tables.h; IPv6 has the same ones in
//! front of the entries. Where they hold a pointer, it is one of 64 bits.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::table::{HOOKS, Table};
use crate::cluster::snapshot::IpFamily;

/// `IPT_SO_GET_INFO`, and the same of IPv6.
const GET_INFO: i32 = 64;
/// `IPT_SO_GET_ENTRIES`.
const GET_ENTRIES: i32 = 65;
/// `IPT_SO_SET_REPLACE`.
const SET_REPLACE: i32 = 64;
/// `IPT_SO_SET_ADD_COUNTERS`.
const SET_ADD_COUNTERS: i32 = 65;
/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// `struct ipt_getinfo`: a name, and this many numbers of 32 bits.
const INFO: usize = NAME + (3 + 2 * HOOKS) * 4;
/// `struct xt_counters`: packets and bytes.
const COUNTERS: usize = 16;

const _: () = assert!(size_of::<*mut u8>() == 8, "the structures are those of 64 bits");

/// A way to the tables of a family in the network namespace of the thread that opened it.
pub struct Tables {
    socket: OwnedFd,
    level: i32,
}

impl Tables {
    /// Any socket of the family will do, and this kind needs no CAP_NET_RAW.
    pub fn open(family: IpFamily) -> Result<Self, Errno> {
        let (family, level) = match family {
            IpFamily::V4 => (AddressFamily::Inet, libc::SOL_IP),
            IpFamily::V6 => (AddressFamily::Inet6, libc::SOL_IPV6),
        };
        Ok(Self {
            socket: socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?,
            level,
        })
    }

    /// Reads a table. `EAGAIN`: it was changed meanwhile.
    pub fn read(&self, name: &str) -> Result<Table, Errno> {
        let (table, size) = self.describe(name)?;
        // `struct ipt_get_entries`: a name, the size, and at the next multiple of eight the entries.
        let mut bytes = named(name)?;
        bytes.extend(size.to_ne_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let begin = bytes.len();
        bytes.resize(begin + size as usize, 0);
        self.get(GET_ENTRIES, &mut bytes)?;
        // The kernel compares sizes alone.
        if self.describe(name)? != (table.clone(), size) {
            return Err(Errno::EAGAIN);
        }
        Ok(Table { entries: bytes.split_off(begin), ..table })
    }

    /// A table without its entries, and their size.
    fn describe(&self, name: &str) -> Result<(Table, u32), Errno> {
        let mut info = named(name)?;
        info.resize(INFO, 0);
        self.get(GET_INFO, &mut info)?;
        let (_, numbers) = info.split_at_checked(NAME).ok_or(Errno::EPROTO)?;
        let mut numbers = numbers.chunks_exact(4).map(|bytes| {
            bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)).unwrap_or_default()
        });
        let mut next = || numbers.next().unwrap_or_default();
        let table = Table {
            valid_hooks: next(),
            hook_entries: std::array::from_fn(|_| next()),
            underflows: std::array::from_fn(|_| next()),
            number: next(),
            entries: Vec::new(),
        };
        Ok((table, next()))
    }

    /// Puts `new` in the place of `old`, at once; the counters of each old entry. `EAGAIN`: there is
    /// another table by now.
    pub fn replace(
        &self,
        name: &str,
        old: &Table,
        new: &Table,
    ) -> Result<Vec<[u8; COUNTERS]>, Errno> {
        let mut counters = vec![[0u8; COUNTERS]; old.number as usize];
        let mut bytes = named(name)?;
        let size = u32::try_from(new.entries.len()).map_err(|_| Errno::E2BIG)?;
        let numbers = [new.valid_hooks, new.number, size].into_iter();
        let numbers = numbers.chain(new.hook_entries).chain(new.underflows).chain([old.number]);
        bytes.extend(numbers.flat_map(u32::to_ne_bytes));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(counters.as_mut_ptr().expose_provenance().to_ne_bytes());
        bytes.extend(&new.entries);
        // The kernel writes `old.number` counters to where the message points, which is as many as there
        // are in this live array, and replaces nothing when the table has another number of entries.
        self.set(SET_REPLACE, &bytes)?;
        Ok(counters)
    }

    /// Adds to the counters of each entry.
    pub fn add_counters(&self, name: &str, counters: &[[u8; COUNTERS]]) -> Result<(), Errno> {
        let mut bytes = named(name)?;
        bytes.extend(u32::try_from(counters.len()).map_err(|_| Errno::E2BIG)?.to_ne_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(counters.iter().flatten());
        self.set(SET_ADD_COUNTERS, &bytes)
    }

    fn get(&self, option: i32, bytes: &mut [u8]) -> Result<(), Errno> {
        let mut length = libc::socklen_t::try_from(bytes.len()).map_err(|_| Errno::E2BIG)?;
        // SAFETY: the kernel reads and writes at most `length` bytes, which `bytes` has; both live until
        // it returns.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                self.level,
                option,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        Errno::result(result).map(drop)
    }

    fn set(&self, option: i32, bytes: &[u8]) -> Result<(), Errno> {
        let length = libc::socklen_t::try_from(bytes.len()).map_err(|_| Errno::E2BIG)?;
        // SAFETY: the kernel reads at most `length` bytes, which `bytes` has; where these hold a pointer,
        // who made them says what it points to.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                self.level,
                option,
                bytes.as_ptr().cast(),
                length,
            )
        };
        Errno::result(result).map(drop)
    }
}

/// A table's name as all these structures begin with it.
fn named(name: &str) -> Result<Vec<u8>, Errno> {
    if name.len() >= NAME {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME, 0);
    Ok(bytes)
}
