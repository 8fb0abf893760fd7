//! Other service proxies on this node, what they leave behind, and what may be removed of it.

use std::path::Path;

use crate::takeover::{self, TakeoverError};

/// kube-proxy, as this node's kernel knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeProxy {
    /// Tables of its nftables mode, with the family: `ip kube-proxy`.
    pub tables: Vec<String>,
    /// Chains of its iptables mode, in either kind of iptables. Not those of a kubelet.
    pub chains: usize,
    /// What its IPVS mode left beside chains, in a phrase; `None`: nothing.
    pub ipvs: Option<String>,
    /// Flows to Services that the kernel still translates by what its rules said.
    pub carried: usize,
    /// Of these, those that would end with its rules.
    pub would_break: usize,
    /// New flows are lb-agent's: its DaemonSet may be deleted.
    pub may_stop: bool,
    /// Its rules may be removed, too.
    pub may_remove_rules: bool,
}

impl KubeProxy {
    /// Whether there are rules of it.
    pub fn has_rules(&self) -> bool {
        !self.tables.is_empty() || self.chains > 0 || self.ipvs.is_some()
    }
}

/// Looks at this network namespace.
pub fn kube_proxy(bpffs: &Path) -> Result<KubeProxy, TakeoverError> {
    let found = takeover::state(bpffs)?;
    Ok(KubeProxy {
        tables: found.leftovers.nftables.table_names().collect(),
        chains: found.leftovers.chains(),
        ipvs: found.leftovers.ipvs.any().then(|| found.leftovers.ipvs.to_string()),
        carried: found.carried,
        would_break: found.would_break,
        may_stop: found.may_stop_kube_proxy(),
        may_remove_rules: found.may_remove_rules(),
    })
}
