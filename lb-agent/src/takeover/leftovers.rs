//! Everything that kube-proxy leaves in a kernel, whichever of its modes was at work.

use std::fmt;

use nix::errno::Errno;

use super::conntrack::{self, Translated};
use super::ipvs::{Ipvs, IpvsError};
use super::legacy::{Legacy, LegacyError};
use super::nftables::Rules;
use crate::cluster::snapshot::IpFamily;

/// Why it can't be read or removed.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// Rules of nf_tables, or flows of conntrack.
    #[error("{what}: {source}; this needs CAP_NET_ADMIN in the node's network namespace")]
    Netfilter {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// Chains of the old iptables.
    #[error(transparent)]
    Legacy(#[from] LegacyError),
    /// What mode ipvs leaves.
    #[error(transparent)]
    Ipvs(#[from] IpvsError),
}

fn failed(what: &'static str) -> impl FnOnce(Errno) -> LeftoverError {
    move |source| LeftoverError::Netfilter { what, source }
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Its rules in nf_tables: modes nftables and iptables (by `iptables-nft`).
    pub nftables: Rules,
    /// Its chains in the old iptables (`iptables-legacy`).
    pub legacy: Legacy,
    /// What mode ipvs leaves beside chains.
    pub ipvs: Ipvs,
}

impl Leftovers {
    /// Looks at this network namespace.
    pub fn read() -> Result<Self, LeftoverError> {
        Ok(Self {
            nftables: Rules::read().map_err(failed("list the rules of nf_tables"))?,
            legacy: Legacy::read()?,
            ipvs: Ipvs::read()?,
        })
    }

    /// Whether there is anything.
    pub fn any(&self) -> bool {
        self.nftables.any() || self.legacy.any() || self.ipvs.any()
    }

    /// Chains in the tables of either iptables.
    pub fn chains(&self) -> usize {
        self.nftables.chains() + self.legacy.chains()
    }

    /// The flows that are translated now, by whichever rules and by kube-proxy's virtual servers.
    pub fn flows(&self) -> Result<Vec<Translated>, LeftoverError> {
        let flows = conntrack::translated().map_err(failed("list the flows of conntrack"))?;
        let mut flows: Vec<_> = flows.into_iter().filter(|flow| self.has_nat_of(flow)).collect();
        flows.extend(self.ipvs.flows()?);
        Ok(flows)
    }

    /// Whether the kernel does NAT of a flow's family now.
    fn has_nat_of(&self, flow: &Translated) -> bool {
        self.nftables.nat().and(self.legacy.nat()).is_on(IpFamily::of(flow.frontend.ip()))
    }

    /// Whether a flow would break without all this.
    pub fn carry(&self, flow: &Translated) -> bool {
        let other_nat = self.nftables.other_nat().and(self.legacy.other_nat());
        self.ipvs.serves(flow.protocol, flow.frontend)
            || !other_nat.is_on(IpFamily::of(flow.frontend.ip()))
    }

    /// Removes it, and nothing else.
    pub fn remove(&self) -> Result<(), LeftoverError> {
        // Device and sets tell whose the virtual servers are, and chains use the sets.
        self.ipvs.remove_servers()?;
        self.nftables.remove().map_err(failed("remove kube-proxy's rules"))?;
        self.legacy.remove()?;
        self.ipvs.remove_device_and_sets()?;
        Ok(())
    }
}

impl fmt::Display for Leftovers {
    /// What it is, in a phrase.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nftables, legacy, ipvs } = self;
        write!(
            f,
            "{} tables (nftables), {} chains and {} jumps to them (iptables)",
            nftables.tables(),
            self.chains(),
            nftables.jumps() + legacy.jumps()
        )?;
        if ipvs.any() { write!(f, ", {ipvs}") } else { Ok(()) }
    }
}
