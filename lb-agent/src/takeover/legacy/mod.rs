//! kube-proxy's chains in the tables of the old iptables (`iptables-legacy`), and the jumps to them.

mod kernel;
mod lock;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use super::names;
use super::nat::{self, Nat};
use crate::cluster::snapshot::IpFamily;
use kernel::Tables;
use lock::LockError;
use table::{Layout, OddTable, Table, Without};

/// The table that does NAT.
const NAT: &str = "nat";
/// Somebody else's change comes between reading and replacing at most so often.
const TRIES: usize = 20;
/// Programs of iptables hold their lock for moments.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the tables are as they were.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    /// The kernel refuses.
    #[error(
        "{what} the table {table} of {} (legacy): {source}; this needs CAP_NET_ADMIN in the node's \
         network namespace", program(*.family)
    )]
    Call {
        /// What was tried.
        what: &'static str,
        /// The family.
        family: IpFamily,
        /// The table.
        table: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// The kernel's list can't be read.
    #[error("read {path}: {source}; this needs root in the node's network namespace")]
    List {
        /// The list.
        path: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// We don't understand what is there.
    #[error(
        "the table {table} of {} (legacy) has {source}; remove the chains KUBE-* with {0}-save and \
         {0}-restore", program(*.family)
    )]
    Odd {
        /// The family.
        family: IpFamily,
        /// The table.
        table: String,
        /// What there is.
        source: OddTable,
    },
    /// Another program works on the tables.
    #[error(transparent)]
    Lock(#[from] LockError),
}

fn program(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "iptables-legacy",
        IpFamily::V6 => "ip6tables-legacy",
    }
}

/// What of kube-proxy is in one table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    family: IpFamily,
    table: &'static str,
    chains: usize,
    jumps: usize,
}

/// kube-proxy's chains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Legacy {
    found: Vec<Found>,
    nat: Nat,
    other_nat: Nat,
}

impl Legacy {
    /// Those that are there now. Looks into tables that are there alone: asking for another one would
    /// make it.
    pub fn read() -> Result<Self, LegacyError> {
        let mut legacy = Self::default();
        for family in [IpFamily::V4, IpFamily::V6] {
            for table in tables(family)? {
                if table == NAT {
                    legacy.nat.add_place(&[family]);
                    legacy.other_nat.add_place(&[family]);
                }
                let (old, Without { table: other, chains, jumps, .. }) = read(family, table)?;
                for (nat, table_now) in [(&mut legacy.nat, old), (&mut legacy.other_nat, other)] {
                    let needs = table_now.has_extension(layout(family), nat::needs_conntrack);
                    if needs.map_err(odd(family, table))? {
                        nat.add_conntrack(&[family]);
                    }
                }
                if chains > 0 {
                    legacy.found.push(Found { family, table, chains, jumps });
                }
            }
        }
        Ok(legacy)
    }

    /// How many.
    pub fn chains(&self) -> usize {
        self.found.iter().map(|found| found.chains).sum()
    }

    /// Jumps to these from chains of others.
    pub fn jumps(&self) -> usize {
        self.found.iter().map(|found| found.jumps).sum()
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        !self.found.is_empty()
    }

    /// What the kernel's NAT lives on.
    pub(super) fn nat(&self) -> Nat {
        self.nat
    }

    /// What it lives on without them: the table nat stays.
    pub(super) fn other_nat(&self) -> Nat {
        self.other_nat
    }

    /// Removes them, table by table, and nothing else.
    pub fn remove(&self) -> Result<(), LegacyError> {
        if !self.any() {
            return Ok(());
        }
        let _lock = lock::take(Path::new(lock::LOCK), PATIENCE)?;
        self.found.iter().try_for_each(|found| replace(found.family, found.table))
    }
}

/// Those of the tables that kube-proxy uses that are there.
fn tables(family: IpFamily) -> Result<Vec<&'static str>, LegacyError> {
    let path = match family {
        IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
        IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let list = match std::fs::read_to_string(path) {
        Ok(list) => list,
        // The kernel has no old iptables, or not loaded.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LegacyError::List { path, source }),
    };
    let is_there = |table: &&str| list.lines().any(|line| line == *table);
    Ok(names::TABLES.into_iter().filter(is_there).collect())
}

/// Reads a table; it, and it without kube-proxy's chains.
fn read(family: IpFamily, table: &'static str) -> Result<(Table, Without), LegacyError> {
    let read = again(|| Tables::open(family)?.read(table));
    let old = read.map_err(failed("read", family, table))?;
    let is_kube_proxys = |chain: &str| names::is_kube_proxys(table, chain);
    let without = old.without(layout(family), is_kube_proxys).map_err(odd(family, table))?;
    Ok((old, without))
}

fn layout(family: IpFamily) -> Layout {
    match family {
        IpFamily::V4 => table::IPV4,
        IpFamily::V6 => table::IPV6,
    }
}

/// Puts a table without kube-proxy's chains in its place. What stays keeps its counters.
fn replace(family: IpFamily, table: &'static str) -> Result<(), LegacyError> {
    let tables = Tables::open(family).map_err(failed("open", family, table))?;
    for _ in 0..TRIES {
        let (old, without) = read(family, table)?;
        if without.chains == 0 {
            return Ok(());
        }
        let counters = match tables.replace(table, &old, &without.table) {
            Err(Errno::EAGAIN) => continue,
            other => other.map_err(failed("replace", family, table))?,
        };
        let kept: Vec<_> =
            without.kept.iter().filter_map(|index| counters.get(*index).copied()).collect();
        // The table is as it should be; what its rules have counted isn't worth an error.
        if let Err(error) = tables.add_counters(table, &kept) {
            let program = program(family);
            tracing::warn!(%error, program, table, "counters of rules began anew");
        }
        return Ok(());
    }
    Err(failed("replace", family, table)(Errno::EAGAIN))
}

/// Asks again while somebody else changes the table.
fn again<T>(mut ask: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..TRIES {
        match ask() {
            Err(Errno::EAGAIN) => {}
            other => return other,
        }
    }
    ask()
}

fn odd(family: IpFamily, table: &str) -> impl FnOnce(OddTable) -> LegacyError + use<> {
    let table = table.to_owned();
    move |source| LegacyError::Odd { family, table, source }
}

fn failed(
    what: &'static str,
    family: IpFamily,
    table: &str,
) -> impl FnOnce(Errno) -> LegacyError + use<> {
    let table = table.to_owned();
    move |source| LegacyError::Call { what, family, table, source }
}
