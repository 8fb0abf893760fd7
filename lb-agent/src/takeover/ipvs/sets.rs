//! kube-proxy's sets (pkg/proxy/ipvs/ipset.go), by the netlink of ip_set
//! (include/uapi/linux/netfilter/ipset/ip_set.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{Evidence, IpvsError, failed};
use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::tables::encode::protocol;
use crate::takeover::netlink::{Netlink, Order, all, attribute, find, is_absent, name, text};

/// `NFNL_SUBSYS_IPSET << 8 | IPSET_CMD_DESTROY`.
const DESTROY: u16 = 6 << 8 | 3;
/// `IPSET_CMD_LIST`.
const LIST: u16 = 6 << 8 | 7;
const PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
const FLAGS: u16 = 6;
/// `IPSET_ATTR_ADT`: all entries of a set, or as many as a message has room for.
const ENTRIES: u16 = 8;
/// Spoken by every kernel since 3.x.
const VERSION: u8 = 6;
/// `IPSET_FLAG_LIST_SETNAME`: nothing but names.
const NAMES: u32 = 1 << 1;
/// There when the module is loaded; asking it would load it.
const PRESENT: &str = "/sys/module/ip_set";
/// `IPSET_MAXNAMELEN` without the zero.
const LONGEST: usize = 31;
/// The rules of nf_tables that used a set let it go a moment after they are gone.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// What a set's entries say about virtual servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// Their addresses.
    Addresses,
    /// Their addresses and ports.
    Frontends,
    /// Their ports on the node's addresses.
    NodePorts(Protocol),
    /// Nothing: these are endpoints, clients, or ports of no Service.
    Others,
}

/// As they are called for IPv4. Those for IPv6 begin with `KUBE-6-` instead.
const SETS: [(&str, Holds); 17] = [
    ("KUBE-LOOP-BACK", Holds::Others),
    ("KUBE-CLUSTER-IP", Holds::Frontends),
    ("KUBE-EXTERNAL-IP", Holds::Frontends),
    ("KUBE-EXTERNAL-IP-LOCAL", Holds::Frontends),
    ("KUBE-LOAD-BALANCER", Holds::Frontends),
    ("KUBE-LOAD-BALANCER-LOCAL", Holds::Frontends),
    ("KUBE-LOAD-BALANCER-FW", Holds::Frontends),
    ("KUBE-LOAD-BALANCER-SOURCE-IP", Holds::Others),
    ("KUBE-LOAD-BALANCER-SOURCE-CIDR", Holds::Others),
    ("KUBE-NODE-PORT-TCP", Holds::NodePorts(Protocol::Tcp)),
    ("KUBE-NODE-PORT-LOCAL-TCP", Holds::NodePorts(Protocol::Tcp)),
    ("KUBE-NODE-PORT-UDP", Holds::NodePorts(Protocol::Udp)),
    ("KUBE-NODE-PORT-LOCAL-UDP", Holds::NodePorts(Protocol::Udp)),
    ("KUBE-NODE-PORT-SCTP-HASH", Holds::Frontends),
    ("KUBE-NODE-PORT-LOCAL-SCTP-HASH", Holds::Frontends),
    ("KUBE-HEALTH-CHECK-NODE-PORT", Holds::Others),
    ("KUBE-IPVS-IPS", Holds::Addresses),
];

/// What a set of kube-proxy is about.
fn meaning(set: &str) -> Option<(IpFamily, Holds)> {
    SETS.iter().find_map(|(v4, holds)| {
        let v6 = v4.replacen("KUBE-", "KUBE-6-", 1);
        if set == *v4 {
            Some((IpFamily::V4, *holds))
        } else {
            (v6.get(..LONGEST).unwrap_or(&v6) == set).then_some((IpFamily::V6, *holds))
        }
    })
}

/// The names of kube-proxy's sets that are there.
pub fn names() -> Result<Vec<String>, Errno> {
    if !Path::new(PRESENT).exists() {
        return Ok(Vec::new());
    }
    let mut wanted = attribute(PROTOCOL, &[VERSION]);
    wanted.extend(attribute(FLAGS, &NAMES.to_be_bytes()));
    let mut names = Vec::new();
    let listed = Netlink::netfilter()?.dump(LIST, 0, &wanted, |_, attributes| {
        let name = find(attributes, SET_NAME).and_then(text);
        names.extend(name.filter(|name| meaning(name).is_some()).map(str::to_owned));
    });
    match listed {
        Err(errno) if !is_absent(errno) => Err(errno),
        Ok(()) | Err(_) => Ok(names),
    }
}

/// Adds what a set says about virtual servers.
pub(super) fn read(set: &str, evidence: &mut Evidence) -> Result<(), Errno> {
    let Some((family, holds)) = meaning(set).filter(|(_, holds)| *holds != Holds::Others) else {
        return Ok(());
    };
    let listed = Netlink::netfilter()?.dump(LIST, 0, &this(set), |_, attributes| {
        for (_, entry) in find(attributes, ENTRIES).into_iter().flat_map(all) {
            // One of another kind than kube-proxy makes says nothing.
            let _ = add(evidence, family, holds, entry);
        }
    });
    match listed {
        // Removed since.
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

fn add(evidence: &mut Evidence, family: IpFamily, holds: Holds, entry: &[u8]) -> Option<()> {
    let port = || Some(u16::from_be_bytes(*find(entry, 4)?.first_chunk()?));
    match holds {
        Holds::Addresses => evidence.addresses.insert(address(entry)?),
        Holds::Frontends => {
            let protocol = protocol(*find(entry, 7)?.first()?)?;
            evidence.frontends.insert((protocol, SocketAddr::new(address(entry)?, port()?)))
        }
        Holds::NodePorts(protocol) => evidence.node_ports.insert((family, protocol, port()?)),
        Holds::Others => false,
    };
    Some(())
}

fn address(entry: &[u8]) -> Option<IpAddr> {
    let address = find(entry, 1)?;
    match (find(address, 1), find(address, 2)) {
        (Some(v4), _) => Some(Ipv4Addr::from(*v4.first_chunk::<4>()?).into()),
        (None, Some(v6)) => Some(Ipv6Addr::from(*v6.first_chunk::<16>()?).into()),
        (None, None) => None,
    }
}

/// Removes these; gone already is fine.
pub fn remove(sets: &[String]) -> Result<(), IpvsError> {
    let mut left: Vec<_> = sets.iter().collect();
    let began = Instant::now();
    loop {
        let order = |set: &&String| Order { kind: DESTROY, family: 0, attributes: this(set) };
        let orders: Vec<_> = left.iter().map(order).collect();
        let outcomes = Netlink::netfilter().and_then(|mut netlink| netlink.each(0, &orders));
        let outcomes = outcomes.map_err(failed("remove kube-proxy's sets"))?;
        let mut used = Vec::new();
        for (set, outcome) in left.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) | Err(Errno::ENOENT) => {}
                // ip_set's own errors begin behind the system's, and this one alone can come: in use.
                Err(Errno::UnknownErrno) => used.push(set),
                Err(errno) => return Err(failed("remove a set of kube-proxy")(errno)),
            }
        }
        match used.first() {
            None => return Ok(()),
            Some(set) if began.elapsed() >= PATIENCE => {
                return Err(IpvsError::InUse((*set).clone()));
            }
            Some(_) => std::thread::sleep(LOOK),
        }
        left = used;
    }
}

/// The attributes of an order about one set.
fn this(set: &str) -> Vec<u8> {
    let mut attributes = attribute(PROTOCOL, &[VERSION]);
    attributes.extend(name(SET_NAME, set));
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::takeover::netlink::nested;

    #[test]
    fn sets_are_kube_proxys_by_their_whole_name() {
        let holds = |set| meaning(set);
        assert_eq!(holds("KUBE-CLUSTER-IP"), Some((IpFamily::V4, Holds::Frontends)));
        assert_eq!(holds("KUBE-6-CLUSTER-IP"), Some((IpFamily::V6, Holds::Frontends)));
        let udp = Holds::NodePorts(Protocol::Udp);
        assert_eq!(holds("KUBE-6-NODE-PORT-LOCAL-UDP"), Some((IpFamily::V6, udp)));
        // Cut, as kube-proxy does.
        assert_eq!(holds("KUBE-6-LOAD-BALANCER-SOURCE-CID"), Some((IpFamily::V6, Holds::Others)));
        for other in ["KUBE-CLUSTER-IP2", "KUBE-CLUSTER", "KUBE-OWN", "cali40all-hosts", "KUBE-6-"]
        {
            assert_eq!(holds(other), None, "{other}");
        }
    }

    #[test]
    fn entries_say_which_virtual_servers_are_meant() {
        let mut evidence = Evidence::default();
        let ip: Ipv4Addr = "10.96.0.1".parse().unwrap();
        let address = nested(1, &[attribute(1, &ip.octets())]);
        let port = attribute(4, &80u16.to_be_bytes());
        let entry = [address.clone(), port.clone(), attribute(7, &[17])].concat();
        add(&mut evidence, IpFamily::V4, Holds::Frontends, &entry).unwrap();
        let is_there = |evidence: &Evidence, protocol| {
            evidence.names(protocol, SocketAddr::new(ip.into(), 80))
        };
        assert!(is_there(&evidence, Protocol::Udp) && !is_there(&evidence, Protocol::Tcp));
        add(&mut evidence, IpFamily::V4, Holds::Addresses, &address).unwrap();
        assert!(is_there(&evidence, Protocol::Tcp));
        add(&mut evidence, IpFamily::V6, Holds::NodePorts(Protocol::Tcp), &port).unwrap();
        assert!(evidence.node_ports.contains(&(IpFamily::V6, Protocol::Tcp, 80)));
        assert_eq!(add(&mut evidence, IpFamily::V4, Holds::Frontends, &port), None);
    }
}
