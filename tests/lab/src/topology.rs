//! Which hosts a lab has and which addresses they own: pure, decided from [`Options`] alone.
//!
//! Nothing here touches the machine; [`crate::wiring`] turns a [`Topology`] into commands and
//! [`crate::Lab`] runs them. The addresses are those of the project's fixtures, so that manifests,
//! tests and documentation can name them literally.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// How pods are joined to their node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cni {
    /// A veth per pod and a /32 (/128) route to it, as the CNI plugin `ptp` and most others do.
    #[default]
    PointToPoint,
    /// All pods of a node on one bridge `cni0`, as the CNI plugin `bridge` does.
    Bridge,
}

/// How packets between pods of different nodes travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodNetwork {
    /// Routes on the fabric: `10.244.2.0/24 via 10.240.0.12`.
    #[default]
    Routed,
    /// A flannel-like `vxlan0` on each node (IPv4 underlay, MTU 1450, one address per family in the
    /// node's pod range). What a pod sends to another node's own address leaves by the fabric, so
    /// with a strict reverse path check it arrives only if pods are masqueraded.
    Vxlan,
    /// The same by a `tun0` on each node, whose packets have no link header, as those of IPIP and WireGuard
    /// (MTU 1440).
    Tunnel,
}

impl PodNetwork {
    /// Whether packets between nodes are packed into others, and come in through a device of their own.
    pub fn is_overlay(self) -> bool {
        match self {
            Self::Routed => false,
            Self::Vxlan | Self::Tunnel => true,
        }
    }
}

/// `net.ipv4.conf.*.rp_filter` on the nodes. (IPv6 has no such check.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReversePath {
    /// 0: no check.
    Off,
    /// 1: a packet whose source is not routed back through its device is dropped.
    #[default]
    Strict,
}

/// What can be chosen about a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Number of nodes, 1 to 9: `node-a`, `node-b`, …
    pub nodes: u8,
    /// Pods on each node, 0 to 80: `pod-a1`, `pod-a2`, …
    pub pods_per_node: u8,
    /// How pods are joined to their node.
    pub cni: Cni,
    /// How packets between pods of different nodes travel.
    pub pod_network: PodNetwork,
    /// Reverse path check on the nodes.
    pub reverse_path: ReversePath,
    /// Nodes masquerade what pods send to addresses outside the pod network.
    pub masquerade: bool,
    /// Puts a router `edge` with this path MTU (bytes, IP layer, at least 1280) between the client
    /// and the fabric; the client's own devices keep 1500, so that only ICMP can tell.
    pub client_path_mtu: Option<u16>,
    /// Transmit checksum offload of every veth. XDP on veth sees partial checksums unless this is
    /// off on each sender, and nothing on a veth path verifies them: XDP tests turn it off.
    pub checksum_offload: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            pods_per_node: 2,
            cni: Cni::default(),
            pod_network: PodNetwork::default(),
            reverse_path: ReversePath::default(),
            masquerade: false,
            client_path_mtu: None,
            checksum_offload: true,
        }
    }
}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An address of each family that name the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dual {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Dual {
    /// Joins the two.
    pub const fn new(v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        Self { v4, v6 }
    }

    /// The address of `family`.
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Both, IPv4 first.
    pub fn both(&self) -> [IpAddr; 2] {
        Family::BOTH.map(|family| self.of(family))
    }
}

/// The LoadBalancer address of the fixtures; the client routes it to the first node.
pub const LOAD_BALANCER: Dual =
    Dual::new(Ipv4Addr::new(10, 240, 0, 200), Ipv6Addr::new(0xfd00, 0x240, 0, 0, 0, 0, 0, 0x200));
/// An external IP (TEST-NET-2, documentation prefix); the client routes it to the last node.
pub const EXTERNAL_IP: Dual = Dual::new(
    Ipv4Addr::new(198, 51, 100, 80),
    Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x80),
);
/// The site on the Internet.
pub const SITE: Dual = Dual::new(
    Ipv4Addr::new(203, 0, 113, 10),
    Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10),
);
/// The router that nodes, client and site have in common, on the fabric's bridge.
pub const FABRIC_ROUTER: Dual =
    Dual::new(Ipv4Addr::new(10, 240, 0, 1), Ipv6Addr::new(0xfd00, 0x240, 0, 0, 0, 0, 0, 1));
/// The fabric's address on the site's side.
pub const SITE_ROUTER: Dual =
    Dual::new(Ipv4Addr::new(203, 0, 113, 1), Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 1));
/// The client's address on the fabric.
pub const CLIENT: Dual =
    Dual::new(Ipv4Addr::new(10, 240, 0, 100), Ipv6Addr::new(0xfd00, 0x240, 0, 0, 0, 0, 0, 0x100));
/// The client's address behind the router `edge` ([`Options::client_path_mtu`]).
pub const CLIENT_BEHIND_EDGE: Dual =
    Dual::new(Ipv4Addr::new(10, 241, 0, 100), Ipv6Addr::new(0xfd00, 0x241, 0, 0, 0, 0, 0, 0x100));
/// The router `edge` on the fabric.
pub const EDGE: Dual =
    Dual::new(Ipv4Addr::new(10, 240, 0, 90), Ipv6Addr::new(0xfd00, 0x240, 0, 0, 0, 0, 0, 0x90));
/// The router `edge` on the client's side.
pub const EDGE_INNER: Dual =
    Dual::new(Ipv4Addr::new(10, 241, 0, 1), Ipv6Addr::new(0xfd00, 0x241, 0, 0, 0, 0, 0, 1));
/// Service ranges.
pub const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
/// Ranges that hold every pod.
pub const POD_RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:244::/32"];

/// What a host is there for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds the bridge that joins the others, and the router to the site.
    Fabric,
    /// A Kubernetes node; `number` is the N in its pod range 10.244.N.0/24.
    Node {
        /// 1 for `node-a`.
        number: u8,
    },
    /// A pod.
    Pod {
        /// Name of its node.
        node: String,
        /// Number of its node.
        number: u8,
    },
    /// The client outside.
    Client,
    /// The site on the Internet.
    Site,
    /// The router with the small path MTU.
    Edge,
}

/// One host: a network namespace with a name and an address of each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Short name: `node-a`, `pod-b2`, `client`, `site`, `fabric`, `edge`.
    pub name: String,
    /// What it is there for.
    pub role: Role,
    /// Its main addresses.
    pub address: Dual,
}

/// All hosts of a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The choices it was made from.
    pub options: Options,
    /// Every host: fabric, nodes, pods, edge if any, client, site.
    pub hosts: Vec<Host>,
}

impl Topology {
    /// Decides names and addresses.
    pub fn new(options: &Options) -> Result<Self> {
        ensure!((1..=9).contains(&options.nodes), "a lab has 1 to 9 nodes, not {}", options.nodes);
        ensure!(
            options.pods_per_node <= 80,
            "a lab has at most 80 pods per node, not {}",
            options.pods_per_node
        );
        ensure!(
            options.client_path_mtu.is_none_or(|mtu| (1280..=1500).contains(&mtu)),
            "the client's path MTU must be 1280 (IPv6's minimum) to 1500 bytes"
        );
        let mut hosts = vec![host("fabric", Role::Fabric, FABRIC_ROUTER)];
        for number in 1..=options.nodes {
            hosts.push(host(node_name(number), Role::Node { number }, node_address(number)?));
        }
        for number in 1..=options.nodes {
            for pod in 1..=options.pods_per_node {
                let role = Role::Pod { node: node_name(number), number };
                hosts.push(host(
                    format!("pod-{}{pod}", letter(number)),
                    role,
                    pod_range(number, 10 + u16::from(pod))?,
                ));
            }
        }
        if options.client_path_mtu.is_some() {
            hosts.push(host("edge", Role::Edge, EDGE));
            hosts.push(host("client", Role::Client, CLIENT_BEHIND_EDGE));
        } else {
            hosts.push(host("client", Role::Client, CLIENT));
        }
        hosts.push(host("site", Role::Site, SITE));
        Ok(Self { options: options.clone(), hosts })
    }

    /// The host called `name`.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.iter().find(|host| host.name == name).with_context(|| {
            let names: Vec<_> = self.hosts.iter().map(|host| host.name.as_str()).collect();
            format!("the lab has no host `{name}`; it has {}", names.join(", "))
        })
    }

    /// Nodes with their numbers, in order.
    pub fn nodes(&self) -> impl Iterator<Item = (&Host, u8)> {
        self.hosts.iter().filter_map(|host| match host.role {
            Role::Node { number } => Some((host, number)),
            Role::Fabric | Role::Pod { .. } | Role::Client | Role::Site | Role::Edge => None,
        })
    }

    /// The pods of the node called `node`, in order.
    pub fn pods_of<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Host> {
        self.hosts.iter().filter(
            move |host| matches!(&host.role, Role::Pod { node: owner, .. } if owner == node),
        )
    }
}

fn host(name: impl Into<String>, role: Role, address: Dual) -> Host {
    Host { name: name.into(), role, address }
}

fn letter(number: u8) -> char {
    char::from(b'a' + number - 1)
}

/// `node-a` for 1.
pub fn node_name(number: u8) -> String {
    format!("node-{}", letter(number))
}

/// 10.240.0.11 and fd00:240::11 for 1.
fn node_address(number: u8) -> Result<Dual> {
    // The IPv6 text has the digits of the IPv4 one, so that a person sees at once who is who.
    let v6 = format!("fd00:240::{}", 10 + number);
    Ok(Dual::new(Ipv4Addr::new(10, 240, 0, 10 + number), v6.parse()?))
}

/// Address `last` in the pod range of node `number`: 10.244.N.last, fd00:244:N::last.
pub fn pod_range(number: u8, last: u16) -> Result<Dual> {
    let v4 = format!("10.244.{number}.{last}");
    let v6 = format!("fd00:244:{number}::{last}");
    Ok(Dual::new(v4.parse()?, v6.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_the_addresses_that_fixtures_and_documentation_name() {
        let topology = Topology::new(&Options::default()).unwrap();
        let cases = [
            ("node-a", "10.240.0.11", "fd00:240::11"),
            ("node-b", "10.240.0.12", "fd00:240::12"),
            ("pod-a1", "10.244.1.11", "fd00:244:1::11"),
            ("pod-a2", "10.244.1.12", "fd00:244:1::12"),
            ("pod-b1", "10.244.2.11", "fd00:244:2::11"),
            ("client", "10.240.0.100", "fd00:240::100"),
            ("site", "203.0.113.10", "2001:db8:113::10"),
        ];
        for (name, v4, v6) in cases {
            let address = topology.host(name).unwrap().address;
            assert_eq!(address.v4.to_string(), v4, "{name}");
            assert_eq!(address.v6.to_string(), v6, "{name}");
        }
    }

    #[test]
    fn options_out_of_range_are_refused_with_the_range() {
        let base = Options::default();
        let cases = [
            (Options { nodes: 0, ..base.clone() }, "1 to 9 nodes"),
            (Options { nodes: 10, ..base.clone() }, "1 to 9 nodes"),
            (Options { pods_per_node: 81, ..base.clone() }, "80 pods"),
            (Options { client_path_mtu: Some(1279), ..base }, "1280"),
        ];
        for (options, message) in cases {
            let error = Topology::new(&options).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
