//! kube-proxy's rules in nf_tables: its own tables, and, in the tables of iptables (`iptables-nft`),
//! its chains and the jumps to them (include/uapi/linux/netfilter/nf_tables.h).

use nix::errno::Errno;

use super::netlink::{Netfilter, Order, all, attribute, find, is_absent, name, text};
use crate::cluster::snapshot::IpFamily;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
/// `NFPROTO_*`.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// kube-proxy's table in the mode nftables (pkg/proxy/nftables/proxier.go).
const TABLE: &str = "kube-proxy";
/// The tables of iptables that kube-proxy uses.
const IPTABLES: [&str; 3] = ["nat", "filter", "mangle"];
/// Its chains in the modes iptables and ipvs (pkg/proxy/iptables/proxier.go, ipvs/proxier.go) …
const CHAINS: [&str; 16] = [
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
    "KUBE-FIREWALL-DROP",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-LOAD-BALANCER-SOURCE-IP",
];
/// … and the beginnings of those of single Services and endpoints. KUBE-FIREWALL, KUBE-KUBELET-CANARY,
/// KUBE-IPTABLES-HINT and KUBE-MARK-DROP are the kubelet's.
const PREFIXES: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-"];

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    /// NAT is done where it is, for all flows of its family that conntrack has a translation for.
    is_nat_base: bool,
}

/// A rule that jumps to another chain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Jump {
    family: u8,
    table: String,
    chain: String,
    handle: u64,
    to: String,
}

/// kube-proxy's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Families of tables in the mode nftables.
    tables: Vec<u8>,
    chains: Vec<Chain>,
    jumps: Vec<Jump>,
    /// Other chains keep NAT going: of IPv4, of IPv6.
    other_nat: [bool; 2],
}

impl Rules {
    /// Those that are there now.
    pub fn read() -> Result<Self, Errno> {
        loop {
            match Self::read_once() {
                Err(Errno::EAGAIN) => {}
                Err(errno) if is_absent(errno) => return Ok(Self::default()),
                other => return other,
            }
        }
    }

    fn read_once() -> Result<Self, Errno> {
        let mut netfilter = Netfilter::open()?;
        let mut rules = Self::default();
        let mut chains = Vec::new();
        netfilter
            .dump(GET_CHAIN, 0, &[], |family, chain| chains.extend(read_chain(family, chain)))?;
        for chain in chains {
            if chain.table == TABLE && chain.family != INET {
                if !rules.tables.contains(&chain.family) {
                    rules.tables.push(chain.family);
                }
            } else if is_kube_proxys(&chain) {
                rules.chains.push(chain);
            } else if chain.is_nat_base {
                let [v4, v6] = &mut rules.other_nat;
                *v4 |= chain.family != IPV6;
                *v6 |= chain.family != IPV4;
            }
        }
        let mut jumps = Vec::new();
        netfilter.dump(GET_RULE, 0, &[], |family, rule| jumps.extend(read_jump(family, rule)))?;
        // Those inside its chains go with these.
        let is_in = |jump: &Jump, name: &str| {
            let of = |chain: &&Chain| (chain.family, &chain.table) == (jump.family, &jump.table);
            rules.chains.iter().filter(of).any(|chain| chain.name == name)
        };
        jumps.retain(|jump| is_in(jump, &jump.to) && !is_in(jump, &jump.chain));
        rules.jumps = jumps;
        Ok(rules)
    }

    /// Tables of the mode nftables, by their families.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// These as nft writes them: `ip kube-proxy`.
    pub fn table_names(&self) -> impl Iterator<Item = String> {
        let family = |family| if family == IPV6 { "ip6" } else { "ip" };
        self.tables.iter().map(move |table| format!("{} {TABLE}", family(*table)))
    }

    /// Chains in the tables of iptables.
    pub fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Jumps to these from chains of others.
    pub fn jumps(&self) -> usize {
        self.jumps.len()
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        !self.tables.is_empty() || !self.chains.is_empty()
    }

    /// Whether the kernel goes on with the NAT of known flows of `family` without them: it does as
    /// long as there is a base chain of type nat, whatever is in it. The tables of iptables stay.
    pub fn nat_stays(&self, family: IpFamily) -> bool {
        let [v4, v6] = self.other_nat;
        match family {
            IpFamily::V4 => v4,
            IpFamily::V6 => v6,
        }
    }

    /// Whether the kernel does NAT of this family at all now.
    pub fn nat_is_on(&self, family: IpFamily) -> bool {
        let own = match family {
            IpFamily::V4 => IPV4,
            IpFamily::V6 => IPV6,
        };
        self.nat_stays(family) || self.tables.contains(&own)
    }

    /// Removes them, all at once, and nothing else.
    pub fn remove(&self) -> Result<(), Errno> {
        let mut orders: Vec<Order> = Vec::new();
        for jump in &self.jumps {
            let mut attributes = name(1, &jump.table);
            attributes.extend(name(2, &jump.chain));
            attributes.extend(attribute(3, &jump.handle.to_be_bytes()));
            orders.push(Order { kind: DELETE_RULE, family: jump.family, attributes });
        }
        // All rules first: they refer to chains.
        for chain in &self.chains {
            let mut attributes = name(1, &chain.table);
            attributes.extend(name(2, &chain.name));
            orders.push(Order { kind: DELETE_RULE, family: chain.family, attributes });
        }
        for chain in &self.chains {
            let mut attributes = name(1, &chain.table);
            attributes.extend(name(3, &chain.name));
            orders.push(Order { kind: DELETE_CHAIN, family: chain.family, attributes });
        }
        for family in &self.tables {
            let attributes = name(1, TABLE);
            orders.push(Order { kind: DELETE_TABLE, family: *family, attributes });
        }
        Netfilter::open()?.batch(SUBSYSTEM, &orders)
    }
}

fn is_kube_proxys(chain: &Chain) -> bool {
    [IPV4, IPV6].contains(&chain.family)
        && IPTABLES.contains(&chain.table.as_str())
        && (CHAINS.contains(&chain.name.as_str())
            || PREFIXES.iter().any(|prefix| chain.name.starts_with(prefix)))
}

fn read_chain(family: u8, attributes: &[u8]) -> Option<Chain> {
    let is_base = find(attributes, 4).is_some();
    let is_nat = find(attributes, 7).and_then(text) == Some("nat");
    Some(Chain {
        family,
        table: text(find(attributes, 1)?)?.to_owned(),
        name: text(find(attributes, 3)?)?.to_owned(),
        is_nat_base: is_base && is_nat,
    })
}

fn read_jump(family: u8, attributes: &[u8]) -> Option<Jump> {
    let to = all(find(attributes, 4)?).find_map(|(_, expression)| {
        if find(expression, 1).and_then(text) != Some("immediate") {
            return None;
        }
        // Of the immediate value its data, of these the verdict, of this the chain.
        text(find(find(find(find(expression, 2)?, 2)?, 2)?, 2)?)
    })?;
    Some(Jump {
        family,
        table: text(find(attributes, 1)?)?.to_owned(),
        chain: text(find(attributes, 2)?)?.to_owned(),
        handle: u64::from_be_bytes(*find(attributes, 3)?.first_chunk()?),
        to: to.to_owned(),
    })
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
            ("mangle", "KUBE-KUBELET-CANARY", false),
            ("mangle", "KUBE-IPTABLES-HINT", false),
            ("nat", "PREROUTING", false),
            ("nat", "CNI-HOSTPORT-DNAT", false),
            ("others", "KUBE-SERVICES", false),
        ] {
            let chain = |family| Chain {
                family,
                table: table.into(),
                name: name.into(),
                is_nat_base: false,
            };
            assert_eq!(is_kube_proxys(&chain(IPV4)), expected, "{table} {name}");
            assert_eq!(is_kube_proxys(&chain(IPV6)), expected, "{table} {name}");
            assert!(!is_kube_proxys(&chain(INET)), "{table} {name}");
        }
    }
}
