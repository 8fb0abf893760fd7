//! Turns a [`Topology`] into what each namespace must be told: pure text for `ip -batch`,
//! `bridge -batch`, `nft -f`, and sysctl values. Runs nothing.

use anyhow::Result;

use crate::topology::{
    self, Cni, Dual, Family, Host, Options, PodNetwork, ReversePath, Role, Topology,
};

/// Inner MTU of the overlay: 1500 less 50 bytes of outer Ethernet, IPv4, UDP and VXLAN headers.
const VXLAN_MTU: u16 = 1450;
/// The device of [`PodNetwork::Tunnel`], and its MTU: 1500 less IPv4 and UDP headers, and some.
pub(crate) const TUNNEL: &str = "tun0";
const TUNNEL_MTU: u16 = 1440;

/// What one namespace must be told, in the order sysctls, ip, bridge, nft, offload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wiring {
    /// Paths below /proc/sys/net and their values.
    pub sysctls: Vec<(&'static str, &'static str)>,
    /// Lines for `ip -batch`.
    pub ip: Vec<String>,
    /// Lines for `bridge -batch`.
    pub bridge: Vec<String>,
    /// Text for `nft -f`; empty for none.
    pub nft: String,
    /// Devices whose transmit checksum offload is turned off.
    pub no_offload: Vec<String>,
}

/// The wiring of every host, in an order that creates devices before they are configured: fabric,
/// nodes, then the rest.
pub(crate) fn wire(
    topology: &Topology,
    namespace: &dyn Fn(&str) -> String,
) -> Result<Vec<(String, Wiring)>> {
    let mut all = Vec::new();
    for host in &topology.hosts {
        let mut wiring = Wiring { sysctls: sysctls(host, &topology.options), ..Wiring::default() };
        wiring.ip.push("link set lo up".into());
        match &host.role {
            Role::Fabric => fabric(topology, namespace, &mut wiring)?,
            Role::Node { number } => node(topology, host, *number, namespace, &mut wiring)?,
            Role::Pod { number, .. } => pod(topology, host, *number, &mut wiring)?,
            Role::Client => client(topology, host, &mut wiring),
            Role::Edge => edge(topology, namespace, &mut wiring),
            Role::Site => leaf(host, topology::SITE_ROUTER, &mut wiring),
        }
        if topology.options.checksum_offload {
            wiring.no_offload.clear();
        }
        all.push((host.name.clone(), wiring));
    }
    Ok(all)
}

/// Every value that matters is written: a new namespace inherits some of them from the machine.
fn sysctls(host: &Host, options: &Options) -> Vec<(&'static str, &'static str)> {
    let mut values = vec![
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        // Duplicate address detection would keep addresses unusable for seconds.
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/accept_ra", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        // Redirects would let a host learn routes that the test did not give it.
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv6/conf/all/accept_redirects", "0"),
        ("ipv6/conf/default/accept_redirects", "0"),
    ];
    let routes = match host.role {
        Role::Fabric | Role::Node { .. } | Role::Edge => true,
        Role::Pod { .. } | Role::Client | Role::Site => false,
    };
    if routes {
        values.extend([
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ]);
    }
    let strict = matches!(host.role, Role::Node { .. })
        && matches!(options.reverse_path, ReversePath::Strict);
    let rp_filter = if strict { "1" } else { "0" };
    values.extend([
        ("ipv4/conf/all/rp_filter", rp_filter),
        ("ipv4/conf/default/rp_filter", rp_filter),
    ]);
    values
}

fn fabric(
    topology: &Topology,
    namespace: &dyn Fn(&str) -> String,
    wiring: &mut Wiring,
) -> Result<()> {
    let ip = &mut wiring.ip;
    // Snooping without a querier could lose neighbour solicitations, which are multicast.
    ip.push("link add br0 type bridge stp_state 0 mcast_snooping 0".into());
    ip.push("link set br0 up".into());
    add_addresses(ip, "br0", topology::FABRIC_ROUTER, 24, 64);
    for host in &topology.hosts {
        let on_bridge = match host.role {
            Role::Node { .. } | Role::Edge => true,
            Role::Client => topology.options.client_path_mtu.is_none(),
            Role::Fabric | Role::Pod { .. } | Role::Site => false,
        };
        if on_bridge {
            let port = format!("p-{}", host.name);
            ip.push(veth(&port, "", &namespace(&host.name)));
            ip.push(format!("link set {port} master br0 up"));
            wiring.no_offload.push(port);
        }
    }
    ip.push(veth("p-site", "", &namespace("site")));
    ip.push("link set p-site up".into());
    add_addresses(ip, "p-site", topology::SITE_ROUTER, 24, 64);
    wiring.no_offload.push("p-site".into());
    for (node, number) in topology.nodes() {
        for (range, gateway) in pod_ranges(number).into_iter().zip(node.address.both()) {
            ip.push(format!("route add {range} via {gateway}"));
        }
    }
    if topology.options.client_path_mtu.is_some() {
        ip.push(format!("route add 10.241.0.0/24 via {}", topology::EDGE.v4));
        ip.push(format!("route add fd00:241::/64 via {}", topology::EDGE.v6));
    }
    Ok(())
}

fn node(
    topology: &Topology,
    host: &Host,
    number: u8,
    namespace: &dyn Fn(&str) -> String,
    wiring: &mut Wiring,
) -> Result<()> {
    let ip = &mut wiring.ip;
    ip.push("link set eth0 up".into());
    wiring.no_offload.push("eth0".into());
    add_addresses(ip, "eth0", host.address, 24, 64);
    // Without a default route a packet to a Service address that no rule translates would fail
    // with "network unreachable" instead of the verdict under test.
    default_routes(ip, topology::FABRIC_ROUTER);
    if topology.options.client_path_mtu.is_some() {
        ip.push(format!("route add 10.241.0.0/24 via {}", topology::EDGE.v4));
        ip.push(format!("route add fd00:241::/64 via {}", topology::EDGE.v6));
    }
    let gateway = topology::pod_range(number, 1)?;
    let mtu = match topology.options.pod_network {
        PodNetwork::Routed => String::new(),
        PodNetwork::Vxlan => format!("mtu {VXLAN_MTU}"),
        PodNetwork::Tunnel => format!("mtu {TUNNEL_MTU}"),
    };
    if topology.options.cni == Cni::Bridge {
        ip.push(format!("link add cni0 {mtu} type bridge stp_state 0 mcast_snooping 0"));
        ip.push("link set cni0 up".into());
        add_addresses(ip, "cni0", gateway, 24, 64);
    }
    for pod in topology.pods_of(&host.name) {
        let device = format!("veth-{}", pod.name);
        ip.push(veth(&device, &mtu, &namespace(&pod.name)));
        match topology.options.cni {
            Cni::PointToPoint => {
                ip.push(format!("link set {device} up"));
                add_addresses(ip, &device, gateway, 32, 128);
                for address in pod.address.both() {
                    ip.push(format!("route add {address} dev {device}"));
                }
            }
            Cni::Bridge => ip.push(format!("link set {device} master cni0 up")),
        }
        wiring.no_offload.push(device);
    }
    other_nodes(topology, host, number, wiring)?;
    if topology.options.masquerade {
        wiring.nft = masquerade();
    }
    Ok(())
}

/// Routes to the pods of the other nodes.
fn other_nodes(topology: &Topology, host: &Host, number: u8, wiring: &mut Wiring) -> Result<()> {
    let ip = &mut wiring.ip;
    match topology.options.pod_network {
        PodNetwork::Routed => {}
        PodNetwork::Vxlan => {
            ip.push(format!(
                "link add vxlan0 mtu {VXLAN_MTU} address {} type vxlan id 42 dstport 4789 local {} \
                 nolearning",
                overlay_mac(number),
                host.address.v4
            ));
            ip.push("link set vxlan0 up".into());
            add_addresses(ip, "vxlan0", topology::pod_range(number, 0)?, 32, 128);
            // The kernel computes inner checksums in software unless told to leave them partial.
            wiring.no_offload.push("vxlan0".into());
        }
        PodNetwork::Tunnel => {
            ip.push(format!("tuntap add dev {TUNNEL} mode tun"));
            ip.push(format!("link set {TUNNEL} mtu {TUNNEL_MTU} up"));
            add_addresses(ip, TUNNEL, topology::pod_range(number, 0)?, 32, 128);
        }
    }
    for (other, other_number) in topology.nodes().filter(|(other, _)| other.name != host.name) {
        let ranges = pod_ranges(other_number).into_iter().zip(Family::BOTH);
        match topology.options.pod_network {
            PodNetwork::Routed => ip.extend(ranges.map(|(range, family)| {
                format!("route add {range} via {}", other.address.of(family))
            })),
            PodNetwork::Vxlan => {
                let inner = topology::pod_range(other_number, 0)?;
                let mac = overlay_mac(other_number);
                for (range, family) in ranges {
                    let via = inner.of(family);
                    ip.push(format!("route add {range} via {via} dev vxlan0 onlink"));
                    ip.push(format!("neigh add {via} lladdr {mac} dev vxlan0 nud permanent"));
                }
                let outer = other.address.v4;
                wiring.bridge.push(format!("fdb append {mac} dev vxlan0 dst {outer}"));
            }
            PodNetwork::Tunnel => {
                ip.extend(ranges.map(|(range, _)| format!("route add {range} dev {TUNNEL}")));
            }
        }
    }
    Ok(())
}

fn pod(topology: &Topology, host: &Host, number: u8, wiring: &mut Wiring) -> Result<()> {
    let gateway = topology::pod_range(number, 1)?;
    let ip = &mut wiring.ip;
    ip.push("link set eth0 up".into());
    wiring.no_offload.push("eth0".into());
    match topology.options.cni {
        Cni::PointToPoint => {
            add_addresses(ip, "eth0", host.address, 32, 128);
            for address in gateway.both() {
                ip.push(format!("route add {address} dev eth0"));
            }
        }
        Cni::Bridge => add_addresses(ip, "eth0", host.address, 24, 64),
    }
    default_routes(ip, gateway);
    Ok(())
}

fn client(topology: &Topology, host: &Host, wiring: &mut Wiring) {
    if topology.options.client_path_mtu.is_some() {
        leaf(host, topology::EDGE_INNER, wiring);
    } else {
        leaf(host, topology::FABRIC_ROUTER, wiring);
        service_routes(topology, "", &mut wiring.ip);
    }
}

/// The client's way to Service addresses: what a cloud's router or BGP would do.
fn service_routes(topology: &Topology, metrics: &str, ip: &mut Vec<String>) {
    let nodes: Vec<_> = topology.nodes().map(|(node, _)| node.address).collect();
    let (Some(first), Some(last)) = (nodes.first(), nodes.last()) else { return };
    for family in Family::BOTH {
        let (load_balancer, external) =
            (topology::LOAD_BALANCER.of(family), topology::EXTERNAL_IP.of(family));
        ip.push(format!("route add {load_balancer} via {} {metrics}", first.of(family)));
        ip.push(format!("route add {external} via {} {metrics}", last.of(family)));
    }
    for (range, gateway) in topology::SERVICE_RANGES.into_iter().zip(first.both()) {
        ip.push(format!("route add {range} via {gateway} {metrics}"));
    }
}

/// The limit is a metric of the routes, not of a device: a veth drops silently what its peer's MTU
/// cannot hold, while a route makes the router answer "packet too big" in both directions.
fn edge(topology: &Topology, namespace: &dyn Fn(&str) -> String, wiring: &mut Wiring) {
    let mtu = topology.options.client_path_mtu.unwrap_or(1500);
    let metrics = format!("mtu {mtu}");
    let ip = &mut wiring.ip;
    ip.push("link set eth0 up".into());
    add_addresses(ip, "eth0", topology::EDGE, 24, 64);
    ip.push(veth("eth1", "", &namespace("client")));
    ip.push("link set eth1 up".into());
    add_addresses(ip, "eth1", topology::EDGE_INNER, 24, 64);
    ip.push(format!("route replace 10.240.0.0/24 dev eth0 src {} {metrics}", topology::EDGE.v4));
    ip.push(format!("route add fd00:240::/64 dev eth0 metric 128 {metrics}"));
    ip.push(format!("route add {} dev eth1 {metrics}", topology::CLIENT_BEHIND_EDGE.v4));
    ip.push(format!("route add {} dev eth1 {metrics}", topology::CLIENT_BEHIND_EDGE.v6));
    for gateway in topology::FABRIC_ROUTER.both() {
        ip.push(format!("route add default via {gateway} {metrics}"));
    }
    service_routes(topology, &metrics, ip);
    wiring.no_offload.extend(["eth0".into(), "eth1".into()]);
}

/// A host with one device and a default route.
fn leaf(host: &Host, gateway: Dual, wiring: &mut Wiring) {
    wiring.ip.push("link set eth0 up".into());
    wiring.no_offload.push("eth0".into());
    add_addresses(&mut wiring.ip, "eth0", host.address, 24, 64);
    default_routes(&mut wiring.ip, gateway);
}

fn veth(name: &str, attributes: &str, peer_namespace: &str) -> String {
    format!(
        "link add {name} {attributes} type veth peer name eth0 {attributes} netns {peer_namespace}"
    )
}

fn add_addresses(ip: &mut Vec<String>, device: &str, address: Dual, v4: u8, v6: u8) {
    ip.push(format!("address add {}/{v4} dev {device}", address.v4));
    ip.push(format!("address add {}/{v6} dev {device} nodad", address.v6));
}

fn default_routes(ip: &mut Vec<String>, gateway: Dual) {
    for address in gateway.both() {
        ip.push(format!("route add default via {address}"));
    }
}

fn pod_ranges(number: u8) -> [String; 2] {
    [format!("10.244.{number}.0/24"), format!("fd00:244:{number}::/64")]
}

fn overlay_mac(number: u8) -> String {
    format!("02:4c:42:00:00:{number:02x}")
}

fn masquerade() -> String {
    let [v4, v6] = topology::POD_RANGES;
    format!(
        "table inet lblab-cni {{
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        ip saddr {v4} ip daddr != {v4} masquerade
        ip6 saddr {v6} ip6 daddr != {v6} masquerade
    }}
}}
"
    )
}
