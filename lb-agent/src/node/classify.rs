//! Decides, from links, addresses and routes, which devices are external, which address stands for
//! this node on each of them, and which addresses serve NodePorts. Pure: it asks nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::facts::{ClientAddresses, Device, NodeFacts, Role};
use super::observe::{Address, Link, Observed};
use crate::cluster::snapshot::IpFamily;
use crate::config::{DeviceSelection, NodePortAddresses, PodDevices};
use crate::takeover::ipvs;

/// Kinds of devices (`IFLA_INFO_KIND`) that carry the traffic of other nodes inside packets.
///
/// Each module makes a fallback device of its own in every namespace (tunl0, sit0, …): those stay
/// down until somebody uses them, and only devices that are up count.
const OVERLAY_KINDS: [&str; 14] = [
    "vxlan",
    "geneve",
    "wireguard",
    "ipip",
    "sit",
    "ip6tnl",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "erspan",
    "ip6erspan",
    "vti",
    "xfrm",
];

/// Kinds of devices that lead to pods, containers and virtual machines of this node, or nowhere: an address on
/// one doesn't make it external.
const INNER_KINDS: [&str; 7] = ["bridge", "dummy", "ifb", "netkit", "openvswitch", "veth", "vrf"];

/// Kinds of ports that make a bridge one to the outside; the first is hardware.
const WIRED_KINDS: [&str; 4] = ["", "bond", "team", "vlan"];

/// Kinds of devices that container runtimes put one end of into a pod.
const PAIR_KINDS: [&str; 2] = ["veth", "netkit"];

/// What the operator chose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// `--devices`.
    pub devices: DeviceSelection,
    /// `--pod-devices`.
    pub pod_devices: PodDevices,
    /// `--nodeport-addresses`.
    pub nodeport_addresses: NodePortAddresses,
}

/// What is true of this node. `node_addresses` are the Node object's, InternalIPs first; empty as
/// long as it isn't known.
pub fn node_facts(
    observed: &Observed,
    selection: &Selection,
    node_addresses: &[IpAddr],
) -> NodeFacts {
    let view = View { observed, node_addresses, chosen: &selection.devices };
    NodeFacts {
        addresses: view.addresses(&selection.nodeport_addresses),
        devices: view.devices(Role::External, |link| view.is_external(link)),
        pod_devices: view.devices(Role::Pod, |link| {
            !view.is_external(link) && leads_to_a_pod(link, &selection.pod_devices)
        }),
        own_devices: view.devices(Role::Own, |link| link.up && link.loopback),
        own: by_family(|family| view.primary(family)),
    }
}

struct View<'a> {
    observed: &'a Observed,
    node_addresses: &'a [IpAddr],
    chosen: &'a DeviceSelection,
}

/// Whether packets of a pod come in through this device.
fn leads_to_a_pod(link: &Link, selection: &PodDevices) -> bool {
    let is_meant = match selection {
        PodDevices::Pairs => link.peer_elsewhere && PAIR_KINDS.contains(&link.kind.as_str()),
        PodDevices::Named(patterns) => patterns.iter().any(|pattern| pattern.matches(&link.name)),
    };
    is_meant && link.up && link.ethernet && !link.loopback
}

impl View<'_> {
    fn devices(&self, role: Role, is_meant: impl Fn(&Link) -> bool) -> BTreeMap<u32, Device> {
        let links = self.observed.links.values().filter(|link| is_meant(link));
        links.map(|link| (link.index, self.device(link, role))).collect()
    }

    fn is_external(&self, link: &Link) -> bool {
        match self.chosen {
            DeviceSelection::Named(patterns) => {
                patterns.iter().any(|pattern| pattern.matches(&link.name))
            }
            DeviceSelection::Found => {
                let is_overlay = OVERLAY_KINDS.contains(&link.kind.as_str());
                let has_network = self.has_address(link) && self.leads_outside(link);
                link.up
                    && !link.loopback
                    && (self.is_uplink(link) || (is_overlay || has_network) && !self.is_port(link))
            }
        }
    }

    /// A default route leads there, or the cluster knows the node by an address of it.
    fn is_uplink(&self, link: &Link) -> bool {
        let mut routes = self.observed.routes.iter().filter(|route| route.is_default);
        let mut own = self.observed.addresses.iter().filter(|own| own.link == link.index);
        routes.any(|route| route.device == link.index)
            || own.any(|own| self.node_addresses.contains(&own.address))
    }

    fn has_address(&self, link: &Link) -> bool {
        let mut own = self.observed.addresses.iter();
        own.any(|own| own.link == link.index && own.global && is_routable(own.address))
    }

    /// To a network beside the node: hardware, VLANs and the like, and bridges with a port to one.
    fn leads_outside(&self, link: &Link) -> bool {
        let mut ports = self.observed.links.values().filter(|port| port.master == Some(link.index));
        let mut has_wire = || ports.any(|port| WIRED_KINDS.contains(&port.kind.as_str()));
        !INNER_KINDS.contains(&link.kind.as_str()) || link.kind == "bridge" && has_wire()
    }

    /// Frames of a bridge's, bond's or switch's port belong to its master, which is the device with
    /// the routes. A VRF's members keep their own.
    fn is_port(&self, link: &Link) -> bool {
        let master = link.master.and_then(|index| self.observed.links.get(&index));
        master.is_some_and(|master| master.kind != "vrf")
    }

    fn device(&self, link: &Link, role: Role) -> Device {
        let source = |family| self.source(link, family).or_else(|| self.primary(family));
        let ClientAddresses { address4, address6 } = by_family(source);
        Device {
            role,
            name: link.name.clone(),
            index: link.index,
            kind: link.kind.clone(),
            mtu: link.mtu,
            ethernet: link.ethernet,
            uplink: *self.chosen != DeviceSelection::Found || self.is_uplink(link),
            address4,
            address6,
        }
    }

    /// The address that the device itself suggests for what leaves through it.
    fn source(&self, link: &Link, family: IpFamily) -> Option<IpAddr> {
        self.preferred_source(link, family, true)
            .or_else(|| self.own_address(link, family))
            .or_else(|| self.preferred_source(link, family, false))
    }

    /// `src` of the device's routes; routes are ordered with the preferred ones first.
    fn preferred_source(
        &self,
        link: &Link,
        family: IpFamily,
        default_routes: bool,
    ) -> Option<IpAddr> {
        self.observed
            .routes
            .iter()
            .filter(|route| route.device == link.index && route.is_default == default_routes)
            .filter_map(|route| route.preferred_source)
            .find(|source| IpFamily::of(*source) == family && is_routable(*source))
    }

    fn own_address(&self, link: &Link, family: IpFamily) -> Option<IpAddr> {
        let usable = |address: &&Address| {
            address.link == link.index
                && IpFamily::of(address.address) == family
                && address.global
                && address.usable_as_source
                && is_routable(address.address)
        };
        let rank = |address: &Address| {
            let is_the_nodes = self.node_addresses.contains(&address.address);
            // Virtual addresses (keepalived, kube-vip) come as host prefixes beside the real one.
            (!is_the_nodes, address.secondary, address.is_host_prefix())
        };
        // `min_by_key` keeps the first of equals: the kernel's order.
        let own = self.observed.addresses.iter().filter(usable);
        own.min_by_key(|address| rank(address)).map(|address| address.address)
    }

    /// The address that stands for the node where a device has none: the Node object's if we have
    /// it, else that of the best default route's device.
    fn primary(&self, family: IpFamily) -> Option<IpAddr> {
        let is_ours =
            |address: &&IpAddr| self.observed.addresses.iter().any(|own| own.address == **address);
        let named = self.node_addresses.iter().filter(|address| IpFamily::of(**address) == family);
        named.copied().find(|address| is_ours(&address)).or_else(|| {
            let defaults = self.observed.routes.iter().filter(|route| route.is_default);
            defaults
                .filter_map(|route| self.observed.links.get(&route.device))
                .find_map(|link| self.source(link, family))
        })
    }

    fn addresses(&self, nodeports: &NodePortAddresses) -> BTreeMap<IpAddr, bool> {
        // kube-proxy's IPVS mode binds every Service address to this device and leaves it behind; they are
        // not the node's own (kube-proxy leaves them out of its NodePort addresses, too).
        let is_ipvs =
            |index| self.observed.links.get(&index).is_some_and(|link| link.name == ipvs::DEVICE);
        self.observed
            .addresses
            .iter()
            .filter(|own| is_routable(own.address) && !is_ipvs(own.link))
            .map(|own| (own.address, self.serves_nodeports(own.address, nodeports)))
            .collect()
    }

    fn serves_nodeports(&self, address: IpAddr, nodeports: &NodePortAddresses) -> bool {
        let family = IpFamily::of(address);
        match nodeports {
            NodePortAddresses::All => true,
            NodePortAddresses::Primary => {
                let named =
                    self.node_addresses.iter().find(|named| IpFamily::of(**named) == family);
                named.copied().or_else(|| self.primary(family)) == Some(address)
            }
            NodePortAddresses::Within(ranges) => {
                let mut of_family =
                    ranges.iter().filter(|range| IpFamily::of(range.addr()) == family).peekable();
                of_family.peek().is_none() || of_family.any(|range| range.contains(&address))
            }
        }
    }
}

/// The addresses that `find` finds.
fn by_family(find: impl Fn(IpFamily) -> Option<IpAddr>) -> ClientAddresses {
    ClientAddresses {
        address4: find(IpFamily::V4).and_then(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }),
        address6: find(IpFamily::V6).and_then(|address| match address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        }),
    }
}

/// Neither loopback nor link-local nor unspecified nor multicast.
fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !(address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_multicast())
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_unspecified()
                || address.is_multicast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DevicePattern;
    use crate::node::observe::Route;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.into(),
            kind: kind.into(),
            mtu: 1500,
            ethernet: true,
            up: true,
            loopback: name == "lo",
            master: None,
            peer_elsewhere: false,
        }
    }

    fn address(link: u32, text: &str) -> Address {
        let (address, prefix_length) = text.split_once('/').unwrap();
        Address {
            link,
            address: address.parse().unwrap(),
            prefix_length: prefix_length.parse().unwrap(),
            global: true,
            secondary: false,
            usable_as_source: true,
        }
    }

    fn default_route(device: u32, family: IpFamily) -> Route {
        Route { is_default: true, metric: 0, family, device, preferred_source: None }
    }

    /// eth0 with both families and default routes, flannel's overlay and bridge, a pod's veth.
    fn node() -> Observed {
        let mut node = Observed::default();
        for link in [
            link(1, "lo", ""),
            link(2, "eth0", ""),
            link(3, "flannel.1", "vxlan"),
            link(4, "cni0", "bridge"),
            Link { master: Some(4), peer_elsewhere: true, ..link(5, "veth1234", "veth") },
            Link { up: false, ..link(6, "tunl0", "ipip") },
        ] {
            node.links.insert(link.index, link);
        }
        node.addresses = vec![
            Address { global: false, ..address(1, "127.0.0.1/8") },
            Address { global: false, ..address(1, "::1/128") },
            address(2, "192.168.1.10/24"),
            address(2, "2001:db8::10/64"),
            Address { global: false, ..address(2, "fe80::1/64") },
            address(3, "10.244.0.0/32"),
            address(4, "10.244.0.1/24"),
        ];
        node.routes = [IpFamily::V4, IpFamily::V6].map(|family| default_route(2, family)).into();
        node
    }

    fn facts(node: &Observed) -> NodeFacts {
        node_facts(node, &Selection::default(), &[])
    }

    fn names(facts: &NodeFacts) -> Vec<&str> {
        facts.devices.values().map(|device| device.name.as_str()).collect()
    }

    fn sources(facts: &NodeFacts, index: u32) -> (String, String) {
        let device = &facts.devices[&index];
        (
            device.address4.map(|a| a.to_string()).unwrap_or_default(),
            device.address6.map(|a| a.to_string()).unwrap_or_default(),
        )
    }

    #[test]
    fn devices_of_default_routes_and_overlays_that_are_up_are_external() {
        assert_eq!(names(&facts(&node())), ["eth0", "flannel.1"]);
    }

    #[test]
    fn every_network_beside_the_node_is_external_and_none_inside() {
        let mut node = node();
        for link in [
            link(7, "eth1", ""),
            link(8, "eth2", ""),
            link(9, "eth0.5", "vlan"),
            link(10, "tun0", "tun"),
            link(11, "docker0", "bridge"),
            link(12, "br-lan", "bridge"),
            Link { master: Some(12), ..link(13, "eth3", "") },
            link(14, "virbr0", "bridge"),
            Link { master: Some(14), ..link(15, "vnet0", "tun") },
            link(16, "nodelocaldns", "dummy"),
            link(17, "veth-here", "veth"),
        ] {
            node.links.insert(link.index, link);
        }
        // eth2 has none: a port of a switch that the kernel doesn't know, or not in use.
        for index in [7, 9, 10, 11, 12, 13, 14, 16, 17] {
            node.addresses.push(address(index, &format!("10.0.{index}.1/24")));
        }
        node.addresses.push(Address { global: false, ..address(8, "fe80::8/64") });
        let facts = node_facts(&node, &Selection::default(), &["10.0.7.1".parse().unwrap()]);
        assert_eq!(names(&facts), ["eth0", "flannel.1", "eth1", "eth0.5", "tun0", "br-lan"]);
        let uplinks = facts.devices.values().filter(|device| device.uplink);
        assert_eq!(uplinks.map(|device| device.index).collect::<Vec<_>>(), [2, 7]);
    }

    #[test]
    fn a_device_by_whose_address_the_cluster_knows_the_node_is_external_whatever_it_is() {
        let mut node = node();
        node.links.insert(7, link(7, "veth-node", "veth"));
        node.addresses.push(address(7, "10.0.7.1/24"));
        let facts = node_facts(&node, &Selection::default(), &["10.0.7.1".parse().unwrap()]);
        assert_eq!(names(&facts), ["eth0", "flannel.1", "veth-node"]);
    }

    #[test]
    fn devices_whose_other_end_is_elsewhere_lead_to_pods_unless_they_are_external() {
        let mut node = node();
        node.links.insert(7, link(7, "veth-here", "veth"));
        node.links.insert(8, Link { peer_elsewhere: true, ..link(8, "macvlan0", "macvlan") });
        node.links.insert(9, Link { peer_elsewhere: true, up: false, ..link(9, "veth9", "veth") });
        node.links.insert(10, link(10, "tap0", "tun"));
        let of = |selection: &Selection, node: &Observed| -> Vec<String> {
            let facts = node_facts(node, selection, &[]);
            facts.pod_devices.into_values().map(|device| device.name).collect()
        };
        assert_eq!(of(&Selection::default(), &node), ["veth1234"]);
        let named = vec![DevicePattern::Prefix("tap".into()), DevicePattern::Name("eth0".into())];
        let named = Selection { pod_devices: PodDevices::Named(named), ..Selection::default() };
        assert_eq!(of(&named, &node), ["tap0"]);
        // A node that is a container itself.
        let eth0 = Link { peer_elsewhere: true, ..link(2, "eth0", "veth") };
        node.links.insert(2, eth0);
        assert_eq!(of(&Selection::default(), &node), ["veth1234"]);
    }

    #[test]
    fn a_device_that_is_down_or_loopback_is_not_external() {
        let mut node = node();
        node.links.get_mut(&2).unwrap().up = false;
        node.routes.insert(default_route(1, IpFamily::V4));
        assert_eq!(names(&facts(&node)), ["flannel.1"]);
    }

    #[test]
    fn an_overlay_that_is_a_bridge_port_is_not_external_but_one_in_a_vrf_is() {
        for (master_kind, expected) in
            [("bridge", vec!["eth0"]), ("vrf", vec!["eth0", "flannel.1"])]
        {
            let mut node = node();
            node.links.get_mut(&4).unwrap().kind = master_kind.into();
            node.links.get_mut(&3).unwrap().master = Some(4);
            assert_eq!(names(&facts(&node)), expected, "{master_kind}");
        }
    }

    #[test]
    fn a_bond_or_bridge_with_the_default_route_is_external_and_its_ports_are_not() {
        for kind in ["bond", "bridge", "vlan"] {
            let mut node = node();
            node.links.insert(7, link(7, "up0", kind));
            node.links.get_mut(&2).unwrap().master = Some(7);
            node.routes = [default_route(7, IpFamily::V4)].into();
            assert_eq!(names(&facts(&node)), ["flannel.1", "up0"], "{kind}");
        }
    }

    #[test]
    fn named_devices_replace_the_choice_by_routes() {
        let devices = DeviceSelection::Named(vec![
            DevicePattern::Name("cni0".into()),
            DevicePattern::Prefix("eth".into()),
            DevicePattern::Name("absent".into()),
        ]);
        let selection = Selection { devices, ..Selection::default() };
        assert_eq!(names(&node_facts(&node(), &selection, &[])), ["eth0", "cni0"]);
    }

    #[test]
    fn the_snat_address_is_the_devices_own_and_else_the_nodes() {
        let facts = facts(&node());
        assert_eq!(sources(&facts, 2), ("192.168.1.10".into(), "2001:db8::10".into()));
        assert_eq!(sources(&facts, 3), ("10.244.0.0".into(), "2001:db8::10".into()));
    }

    #[test]
    fn the_snat_address_prefers_the_default_routes_source_then_the_nodes_own_then_a_subnets() {
        let with = |change: fn(&mut Observed)| {
            let mut node = node();
            change(&mut node);
            sources(
                &node_facts(&node, &Selection::default(), &["192.168.1.12".parse().unwrap()]),
                2,
            )
            .0
        };
        for (case, change, expected) in [
            (
                "a virtual address before the real one",
                (|node: &mut Observed| node.addresses.insert(0, address(2, "192.168.1.99/32")))
                    as fn(&mut Observed),
                "192.168.1.10",
            ),
            (
                "a secondary address",
                |node| {
                    let own = Address { secondary: true, ..address(2, "192.168.1.11/24") };
                    node.addresses.insert(0, own);
                },
                "192.168.1.10",
            ),
            (
                "the Node's InternalIP",
                |node| node.addresses.push(address(2, "192.168.1.12/24")),
                "192.168.1.12",
            ),
            (
                "an address still under duplicate detection",
                |node| {
                    let own = Address { usable_as_source: false, ..address(2, "192.168.1.12/24") };
                    node.addresses.push(own);
                },
                "192.168.1.10",
            ),
            (
                "a preferred source",
                |node| {
                    node.addresses.push(address(1, "203.0.113.1/32"));
                    let preferred_source = Some("203.0.113.1".parse().unwrap());
                    let route = default_route(2, IpFamily::V4);
                    node.routes = [Route { preferred_source, ..route }].into();
                },
                "203.0.113.1",
            ),
        ] {
            assert_eq!(with(change), expected, "{case}");
        }
    }

    #[test]
    fn a_device_without_addresses_uses_the_source_of_its_routes() {
        let mut node = node();
        node.links.insert(8, link(8, "wg0", "wireguard"));
        node.routes.insert(Route {
            is_default: false,
            preferred_source: Some("10.244.0.1".parse().unwrap()),
            ..default_route(8, IpFamily::V4)
        });
        assert_eq!(sources(&facts(&node), 8), ("10.244.0.1".into(), "2001:db8::10".into()));
    }

    fn addresses(node: &Observed, nodeports: NodePortAddresses, named: &[&str]) -> Vec<String> {
        let named: Vec<IpAddr> = named.iter().map(|text| text.parse().unwrap()).collect();
        let selection = Selection { nodeport_addresses: nodeports, ..Selection::default() };
        let facts = node_facts(node, &selection, &named);
        let serving = facts.addresses.iter().filter(|(_, serves)| **serves);
        serving.map(|(address, _)| address.to_string()).collect()
    }

    #[test]
    fn nodeports_are_served_on_all_addresses_but_loopback_and_link_local() {
        assert_eq!(
            addresses(&node(), NodePortAddresses::All, &[]),
            ["10.244.0.0", "10.244.0.1", "192.168.1.10", "2001:db8::10"]
        );
    }

    #[test]
    fn primary_is_the_nodes_first_address_of_each_family() {
        for (named, expected) in [
            (&["10.244.0.1", "192.168.1.10", "2001:db8::10"][..], ["10.244.0.1", "2001:db8::10"]),
            (&[], ["192.168.1.10", "2001:db8::10"]),
        ] {
            assert_eq!(addresses(&node(), NodePortAddresses::Primary, named), expected);
        }
    }

    #[test]
    fn a_family_without_a_range_is_not_restricted() {
        let ranges = vec!["192.168.0.0/16".parse().unwrap()];
        assert_eq!(
            addresses(&node(), NodePortAddresses::Within(ranges), &[]),
            ["192.168.1.10", "2001:db8::10"]
        );
    }

    #[test]
    fn service_addresses_that_ipvs_left_behind_are_not_the_nodes() {
        let mut node = node();
        node.links.insert(9, link(9, "kube-ipvs0", "dummy"));
        node.addresses.push(address(9, "10.96.0.1/32"));
        let ipvs: IpAddr = "10.96.0.1".parse().unwrap();
        assert!(!facts(&node).addresses.contains_key(&ipvs));
    }
}
