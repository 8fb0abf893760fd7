//! kube-proxy's rules in nf_tables: its own tables, and, in the tables of iptables (`iptables-nft`),
//! its chains and the jumps to them (include/uapi/linux/netfilter/nf_tables.h).

use std::collections::HashSet;

use nix::errno::Errno;

use super::names;
use super::nat::{self, Nat};
use super::netlink::{Netlink, Order, all, attribute, find, is_absent, name, text};
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
/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    /// NAT is done where it is, for all flows of its family that conntrack has a translation for.
    is_nat_base: bool,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    family: u8,
    table: String,
    chain: String,
    handle: u64,
    /// The chain that it jumps to.
    to: Option<String>,
    /// It keeps conntrack at work.
    needs_conntrack: bool,
}

/// kube-proxy's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Families of tables in the mode nftables.
    tables: Vec<u8>,
    chains: Vec<Chain>,
    jumps: Vec<Rule>,
    /// What NAT lives on now.
    nat: Nat,
    /// What it would live on without them.
    other_nat: Nat,
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
        let mut netfilter = Netlink::netfilter()?;
        let mut rules = Self::default();
        let mut chains = Vec::new();
        netfilter
            .dump(GET_CHAIN, 0, &[], |family, chain| chains.extend(read_chain(family, chain)))?;
        for chain in chains {
            if chain.table == TABLE && chain.family != INET {
                if !rules.tables.contains(&chain.family) {
                    rules.tables.push(chain.family);
                }
                if chain.is_nat_base {
                    rules.nat.add_place(ip_families(chain.family));
                }
            } else if is_kube_proxys(&chain) {
                rules.chains.push(chain);
            } else if chain.is_nat_base {
                rules.nat.add_place(ip_families(chain.family));
                rules.other_nat.add_place(ip_families(chain.family));
            }
        }
        let mut found = Vec::new();
        netfilter.dump(GET_RULE, 0, &[], |family, rule| found.extend(read_rule(family, rule)))?;
        let named = |chain: &Chain| (chain.family, chain.table.clone(), chain.name.clone());
        let own: HashSet<_> = rules.chains.iter().map(named).collect();
        let is_in = |rule: &Rule, name: &str| {
            own.contains(&(rule.family, rule.table.clone(), name.to_owned()))
        };
        let mut jumps = Vec::new();
        for rule in found {
            let families = ip_families(rule.family);
            let is_jump = rule.to.as_ref().is_some_and(|to| is_in(&rule, to));
            // Those inside its chains go with these.
            let is_inside = rule.table == TABLE && rule.family != INET || is_in(&rule, &rule.chain);
            if rule.needs_conntrack {
                rules.nat.add_conntrack(families);
            }
            if rule.needs_conntrack && !is_inside && !is_jump {
                rules.other_nat.add_conntrack(families);
            }
            if is_jump && !is_inside {
                jumps.push(rule);
            }
        }
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

    /// What the kernel's NAT lives on.
    pub(super) fn nat(&self) -> Nat {
        self.nat
    }

    /// What it lives on without them. The tables of iptables stay.
    pub(super) fn other_nat(&self) -> Nat {
        self.other_nat
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
        Netlink::netfilter()?.batch(SUBSYSTEM, &orders)
    }
}

fn is_kube_proxys(chain: &Chain) -> bool {
    [IPV4, IPV6].contains(&chain.family) && names::is_kube_proxys(&chain.table, &chain.name)
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

fn read_rule(family: u8, attributes: &[u8]) -> Option<Rule> {
    let expressions = || find(attributes, 4).into_iter().flat_map(all);
    Some(Rule {
        family,
        table: text(find(attributes, 1)?)?.to_owned(),
        chain: text(find(attributes, 2)?)?.to_owned(),
        handle: u64::from_be_bytes(*find(attributes, 3)?.first_chunk()?),
        to: expressions().find_map(|(_, expression)| jump(expression)).map(str::to_owned),
        needs_conntrack: expressions().any(|(_, expression)| needs_conntrack(expression)),
    })
}

/// The chain that an expression jumps to.
fn jump(expression: &[u8]) -> Option<&str> {
    if find(expression, 1).and_then(text) != Some("immediate") {
        return None;
    }
    // Of the immediate value its data, of these the verdict, of this the chain.
    text(find(find(find(find(expression, 2)?, 2)?, 2)?, 2)?)
}

/// Whether a rule with this expression keeps conntrack at work.
fn needs_conntrack(expression: &[u8]) -> bool {
    match find(expression, 1).and_then(text) {
        Some("ct" | "nat" | "masq" | "redir") => true,
        // Extensions of iptables.
        Some("match" | "target") => find(expression, 2)
            .and_then(|data| text(find(data, 1)?))
            .is_some_and(nat::needs_conntrack),
        _ => false,
    }
}

fn ip_families(family: u8) -> &'static [IpFamily] {
    match family {
        IPV4 => &[IpFamily::V4],
        IPV6 => &[IpFamily::V6],
        INET => &[IpFamily::V4, IpFamily::V6],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iptables_has_no_tables_of_the_family_inet() {
        let chain = |family| Chain {
            family,
            table: "nat".into(),
            name: "KUBE-SERVICES".into(),
            is_nat_base: false,
        };
        assert!(is_kube_proxys(&chain(IPV4)) && is_kube_proxys(&chain(IPV6)));
        assert!(!is_kube_proxys(&chain(INET)));
    }
}
