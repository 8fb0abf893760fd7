//! What kube-proxy's chains are called, in either kind of iptables.

/// The tables of iptables that kube-proxy uses.
pub(super) const TABLES: [&str; 3] = ["nat", "filter", "mangle"];
/// Its chains in the modes iptables and ipvs (pkg/proxy/iptables/proxier.go, ipvs/proxier.go) …
const CHAINS: [&str; 17] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-FIRE-WALL",
    "KUBE-FIREWALL-DROP",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-LOAD-BALANCER-SOURCE-IP",
];
/// … and the beginnings of those of single Services and endpoints. KUBE-FIREWALL, KUBE-KUBELET-CANARY,
/// KUBE-IPTABLES-HINT and KUBE-MARK-DROP are the kubelet's.
const PREFIXES: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-"];

/// Whether a chain of iptables is one of kube-proxy's.
pub(super) fn is_kube_proxys(table: &str, chain: &str) -> bool {
    TABLES.contains(&table)
        && (CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_the_kubelet_and_of_others_are_not_kube_proxys() {
        for (table, name, expected) in [
            ("nat", "KUBE-SERVICES", true),
            ("nat", "KUBE-SVC-ABCDEFGHIJKLMNOP", true),
            ("nat", "KUBE-SEP-ABCDEFGHIJKLMNOP", true),
            ("filter", "KUBE-FORWARD", true),
            ("mangle", "KUBE-PROXY-CANARY", true),
            ("filter", "KUBE-FIREWALL", false),
            ("nat", "KUBE-MARK-DROP", false),
            ("mangle", "KUBE-KUBELET-CANARY", false),
            ("mangle", "KUBE-IPTABLES-HINT", false),
            ("nat", "PREROUTING", false),
            ("nat", "CNI-HOSTPORT-DNAT", false),
            ("others", "KUBE-SERVICES", false),
        ] {
            assert_eq!(is_kube_proxys(table, name), expected, "{table} {name}");
        }
    }
}
