//! Everything that kube-proxy leaves in a kernel, whichever of its modes was at work.

use std::fmt;

use nix::errno::Errno;

use super::legacy::{Legacy, LegacyError};
use super::nftables::Rules;
use crate::cluster::snapshot::IpFamily;

/// Why it can't be read or removed.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// Rules of nf_tables.
    #[error("{what}: {source}; this needs CAP_NET_ADMIN in the node's network namespace")]
    Nftables {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// Chains of the old iptables.
    #[error(transparent)]
    Legacy(#[from] LegacyError),
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Its rules in nf_tables: modes nftables and iptables (by `iptables-nft`).
    pub nftables: Rules,
    /// Its chains in the old iptables (`iptables-legacy`).
    pub legacy: Legacy,
}

impl Leftovers {
    /// Looks at this network namespace.
    pub fn read() -> Result<Self, LeftoverError> {
        let failed =
            |source| LeftoverError::Nftables { what: "list the rules of nf_tables", source };
        Ok(Self { nftables: Rules::read().map_err(failed)?, legacy: Legacy::read()? })
    }

    /// Whether there is anything.
    pub fn any(&self) -> bool {
        self.nftables.any() || self.legacy.any()
    }

    /// Chains in the tables of either iptables.
    pub fn chains(&self) -> usize {
        self.nftables.chains() + self.legacy.chains()
    }

    /// Whether the kernel goes on with the NAT of known flows of `family` without all this.
    pub fn nat_stays(&self, family: IpFamily) -> bool {
        self.nftables.other_nat().and(self.legacy.other_nat()).is_on(family)
    }

    /// Whether the kernel does NAT of this family at all now.
    pub fn nat_is_on(&self, family: IpFamily) -> bool {
        self.nftables.nat().and(self.legacy.nat()).is_on(family)
    }

    /// Removes it, and nothing else.
    pub fn remove(&self) -> Result<(), LeftoverError> {
        let failed = |source| LeftoverError::Nftables { what: "remove kube-proxy's rules", source };
        self.nftables.remove().map_err(failed)?;
        self.legacy.remove()?;
        Ok(())
    }
}

impl fmt::Display for Leftovers {
    /// What it is, in a phrase.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nftables, legacy } = self;
        write!(
            f,
            "{} tables (nftables), {} chains and {} jumps to them (iptables)",
            nftables.tables(),
            self.chains(),
            nftables.jumps() + legacy.jumps()
        )
    }
}
