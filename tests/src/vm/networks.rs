//! Networks that not every kernel has: endpoints on a node that the real kinds of tunnels lead to, whose packets
//! have no link header, as network plugins join nodes; and clients of a VLAN.

use super::place::Place;
use super::sys::run;
use crate::packet::bench::SNAT_PORTS;
use crate::packet::network;
use crate::packet::programs::Programs;
use anyhow::{Context, Result, anyhow, bail, ensure};
use lb_agent::node::classify::{Selection, node_facts};
use lb_agent::node::facts::{Device, NodeFacts};
use lb_agent::node::observe::Observer;
use lb_agent::tables::encode;
use lb_common::abi::{Config, ConfigFlags};
use lb_common::family::{V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::scene::{self, Role, at, device, ip, port};
use lb_common::model::sockets::HOST;
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// Several times TCP's first retransmissions.
const PATIENCE: Duration = Duration::from_secs(8);
/// Bytes that go each way: more than a packet.
const PAYLOAD: usize = 20_000;
/// Room for the flows of a few requests.
const FLOWS: u32 = 1 << 10;

/// One way to join two nodes.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    /// What `ip link add … type` is told beside the ends.
    device: &'static str,
    /// Whether its ends are IPv6 addresses.
    over_v6: bool,
    /// Whether a route names the other end, and not the device.
    is_shared: bool,
    carries_v4: bool,
    carries_v6: bool,
}

const KINDS: [Kind; 7] = {
    const fn kind(
        name: &'static str,
        device: &'static str,
        carries_v4: bool,
        carries_v6: bool,
    ) -> Kind {
        Kind { name, device, over_v6: false, is_shared: false, carries_v4, carries_v6 }
    }
    [
        kind("IPIP", "ipip", true, false),
        // As Calico has it: one device to all nodes.
        Kind { is_shared: true, ..kind("IPIP to all nodes", "ipip", true, false) },
        kind("GRE", "gre", true, true),
        kind("SIT", "sit", false, true),
        Kind { over_v6: true, ..kind("IPv4 in IPv6", "ip6tnl mode ipip6", true, false) },
        Kind { over_v6: true, ..kind("IPv6 in IPv6", "ip6tnl mode ip6ip6", false, true) },
        kind("WireGuard", "wireguard", true, true),
    ]
};

/// The names of the tunnels' devices, at both ends.
const TUNNEL: &str = "tun-nodes";
/// The ends of the tunnels: this node, the other one.
const ENDS_V4: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
const ENDS_V6: [&str; 2] = ["fd99::1", "fd99::2"];
const WIREGUARD_PORT: &str = "51820";

pub fn services_are_reached() -> Result<()> {
    let ran = thread::scope(|scope| scope.spawn(node).join());
    ran.unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
}

/// The node's side. The client is behind the uplink, the other node behind the second device.
fn node() -> Result<()> {
    network::enter()?;
    let places = [Place::new()?, Place::new()?];
    let [client, other] = &places;
    for (place, index) in [(client, device::UPLINK), (other, device::OVERLAY)] {
        network::hand_over(index, place.thread.as_raw().unsigned_abs())?;
    }
    let (uplink, _) = network::names(device::UPLINK);
    let (underlay, to_other) = network::names(device::OVERLAY);
    // As long as at its other end.
    run(&format!("ip link set {underlay} mtu 1500"))?;
    for (own, bits) in [(ENDS_V4[0], "24"), (ENDS_V6[0], "64")] {
        run(&format!("ip addr add {own}/{bits} dev {underlay}"))?;
    }
    other.run(move || {
        network::settle(device::OVERLAY, &[], &[])?;
        for (own, bits) in [(ENDS_V4[1], "24"), (ENDS_V6[1], "64")] {
            run(&format!("ip addr add {own}/{bits} dev {to_other}"))?;
        }
        for pod in [ip::<V4>(Role::RemotePod), ip::<V6>(Role::RemotePod)] {
            run(&format!("ip addr add {pod} dev lo"))?;
        }
        Ok(())
    })?;
    let nodes = [ip::<V4>(Role::Node), ip::<V6>(Role::Node)];
    let clients = [ip::<V4>(Role::Client), ip::<V6>(Role::Client)];
    for (node, client) in nodes.into_iter().zip(clients) {
        run(&format!("ip addr add {node} dev {uplink}"))?;
        run(&format!("ip route add {client} dev {uplink}"))?;
    }
    client.run(move || network::settle(device::UPLINK, &clients, &nodes))?;
    let config = Config {
        host_netns_cookie: HOST,
        snat_port_min: SNAT_PORTS.0,
        snat_port_max: SNAT_PORTS.1,
        flags: ConfigFlags::TRAFFIC,
    };
    const USED: [&str; 4] = ["tc_ingress", "tc_egress", "tc_ingress_l3", "tc_egress_l3"];
    let mut programs = Programs::load(&config, FLOWS, |name| USED.contains(&name))?;
    programs.attach(&uplink, ["tc_ingress", "tc_egress"])?;
    for kind in &KINDS {
        through(kind, &mut programs, &places)
            .with_context(|| format!("{}; DROPS {:?}", kind.name, programs.drops()))?;
    }
    from_vlan(&mut programs, &places)
        .with_context(|| format!("from a VLAN; DROPS {:?}", programs.drops()))
}

fn through(kind: &Kind, programs: &mut Programs, places: &[Place; 2]) -> Result<()> {
    let keys = if kind.device == "wireguard" { Some([key()?, key()?]) } else { None };
    up(kind, 0, keys.as_ref())?;
    let (told, keys_there) = (*kind, keys.clone());
    places[1].run(move || up(&told, 1, keys_there.as_ref()))?;
    programs.attach(TUNNEL, ["tc_ingress_l3", "tc_egress_l3"])?;
    if kind.carries_v4 {
        through_family::<V4>(programs, places).context("IPv4")?;
    }
    if kind.carries_v6 {
        through_family::<V6>(programs, places).context("IPv6")?;
    }
    // The links went with it.
    run(&format!("ip link del {TUNNEL}"))?;
    places[1].run(|| run(&format!("ip link del {TUNNEL}")))?;
    Ok(())
}

/// A private key and its public one.
type Keys = [(String, String); 2];

fn key() -> Result<(String, String)> {
    let private = run("wg genkey")?.trim().to_owned();
    let mut pubkey = Command::new("/bin/wg")
        .arg("pubkey")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("wg pubkey")?;
    pubkey.stdin.take().context("no stdin")?.write_all(private.as_bytes())?;
    let public = String::from_utf8(pubkey.wait_with_output()?.stdout)?.trim().to_owned();
    Ok((private, public))
}

/// One end of a tunnel: 0 is this node's, 1 the other's.
fn up(kind: &Kind, end: usize, keys: Option<&Keys>) -> Result<()> {
    let ends = if kind.over_v6 { ENDS_V6 } else { ENDS_V4 };
    let (own, peer) = (ends[end], ends[1 - end]);
    let Kind { device, is_shared, .. } = kind;
    match keys {
        Some(keys) => {
            run(&format!("ip link add {TUNNEL} type {device}"))?;
            let file = format!("/tmp/wireguard-{end}");
            fs::write(&file, &keys[end].0)?;
            let public = &keys[1 - end].1;
            run(&format!(
                "wg set {TUNNEL} listen-port {WIREGUARD_PORT} private-key {file} peer {public} \
                 allowed-ips 0.0.0.0/0,::/0 endpoint {peer}:{WIREGUARD_PORT}"
            ))?;
        }
        None => {
            let remote = if *is_shared { String::new() } else { format!(" remote {peer}") };
            run(&format!("ip link add {TUNNEL} type {device} local {own}{remote}"))?;
        }
    }
    run(&format!("ip link set {TUNNEL} up"))?;
    let via = if *is_shared {
        format!("via {peer} dev {TUNNEL} onlink")
    } else {
        format!("dev {TUNNEL}")
    };
    let of_family = [
        (kind.carries_v4, ip::<V4> as fn(Role) -> IpAddr),
        (kind.carries_v6, ip::<V6> as fn(Role) -> IpAddr),
    ];
    for (_, ip) in of_family.into_iter().filter(|(is_carried, _)| *is_carried) {
        let pod = ip(Role::RemotePod);
        if end == 0 {
            run(&format!("ip addr add {} dev {TUNNEL} nodad", ip(Role::Overlay)))?;
            run(&format!("ip route replace {pod} {via}"))?;
        } else {
            for role in [Role::Overlay, Role::Node] {
                run(&format!("ip route replace {} {via} src {pod}", ip(role)))?;
            }
        }
    }
    Ok(())
}

/// The client outside gets its answers, and the other node's pod is told that nobody listens.
fn through_family<F: AnswerFormat>(programs: &mut Programs, places: &[Place; 2]) -> Result<()> {
    let found = serve::<F>(programs, &[])?;
    let tunnel = found.values().find(|device| device.name == TUNNEL);
    let tunnel = tunnel.context("the device isn't taken for an overlay")?;
    ensure!(!tunnel.ethernet, "the device has a link header");
    answered::<F>(places, ip::<F>(Role::Overlay))?;
    let empty = at::<F>(Role::Node, port::node_port(port::EMPTY));
    places[1].run(move || refused(empty).context("a pod of the other node"))
}

/// The name of the VLAN's device, at both ends.
const VLAN: &str = "vlan5";

/// The client is in a VLAN of the uplink's wire, the endpoint behind another device, without a tunnel. Frames of
/// the VLAN pass the hooks of the wire's own device first.
fn from_vlan(programs: &mut Programs, places: &[Place; 2]) -> Result<()> {
    let (wire, wire_there) = network::names(device::UPLINK);
    let (underlay, _) = network::names(device::OVERLAY);
    let up = |wire: &str| {
        run(&format!("ip link add link {wire} name {VLAN} type vlan id 5"))?;
        run(&format!("ip link set {VLAN} up"))
    };
    up(&wire)?;
    let gateways = ["10.5.0.1", "fd05::1"];
    for (own, length) in gateways.into_iter().zip([24, 64]) {
        run(&format!("ip addr add {own}/{length} dev {VLAN} nodad"))?;
    }
    places[0].run(move || up(&wire_there))?;
    for (gateway, node, client) in [
        (gateways[0], ip::<V4>(Role::Node), ip::<V4>(Role::OtherClient)),
        (gateways[1], ip::<V6>(Role::Node), ip::<V6>(Role::OtherClient)),
    ] {
        run(&format!("ip route add {client} dev {VLAN}"))?;
        places[0].run(move || {
            run(&format!("ip addr add {client} dev {VLAN} nodad"))?;
            run(&format!("ip route replace {node} via {gateway} dev {VLAN} src {client} onlink"))
        })?;
    }
    for ([own, other], pod) in
        [(ENDS_V4, ip::<V4>(Role::RemotePod)), (ENDS_V6, ip::<V6>(Role::RemotePod))]
    {
        run(&format!("ip route replace {pod} via {other} dev {underlay}"))?;
        let node = if pod.is_ipv4() { ip::<V4>(Role::Node) } else { ip::<V6>(Role::Node) };
        places[1].run(move || run(&format!("ip route replace {node} via {own}")))?;
    }
    programs.attach(&underlay, ["tc_ingress", "tc_egress"])?;
    programs.attach(VLAN, ["tc_ingress", "tc_egress"])?;
    let own: Vec<IpAddr> =
        [ENDS_V4[0], ENDS_V6[0]].iter().filter_map(|own| own.parse().ok()).collect();
    let [own_v4, own_v6] = own[..] else { bail!("no addresses") };
    let found = serve::<V4>(programs, &own)?;
    ensure!(found.values().any(|device| device.name == VLAN), "the VLAN isn't external");
    answered::<V4>(places, own_v4).context("IPv4")?;
    serve::<V6>(programs, &own)?;
    answered::<V6>(places, own_v6).context("IPv6")
}

/// Has the programs serve the scene, with the devices that the agent finds by itself.
fn serve<F: AnswerFormat>(
    programs: &mut Programs,
    node_addresses: &[IpAddr],
) -> Result<BTreeMap<u32, Device>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let observed = runtime.block_on(async {
        let (_, observed) = Observer::start().await?;
        anyhow::Ok(observed.borrow().clone())
    })?;
    let NodeFacts { devices, .. } = node_facts(&observed, &Selection::default(), node_addresses);
    let mut world = scene::world::<F>();
    world.devices.remove(&device::OVERLAY);
    world
        .devices
        .extend(devices.iter().map(|(index, found)| (*index, encode::device(found, false))));
    programs.forget()?;
    programs.fill(&world)?;
    Ok(devices)
}

/// The client outside reaches the other node's endpoint, which sees this address of the node.
fn answered<F: AnswerFormat>(places: &[Place; 2], sees: IpAddr) -> Result<()> {
    let to = at::<F>(Role::Node, port::node_port(port::REMOTE));
    let endpoint = at::<F>(Role::RemotePod, port::BACKEND);
    let (server, datagrams) =
        places[1].run(move || Ok((TcpListener::bind(endpoint)?, UdpSocket::bind(endpoint)?)))?;
    let is_the_nodes = |seen: SocketAddr| {
        let (first, last) = SNAT_PORTS;
        let is_so = seen.ip() == sees && (first..=last).contains(&seen.port());
        ensure!(is_so, "the endpoint sees {seen}");
        Ok(())
    };
    let serving = thread::spawn(move || echo(&server));
    places[0].run(move || connection(to).context("TCP"))?;
    is_the_nodes(serving.join().map_err(|_| anyhow!("the server panicked"))??)?;
    let serving = thread::spawn(move || echo_datagram(&datagrams));
    places[0].run(move || datagram(to).context("UDP"))?;
    is_the_nodes(serving.join().map_err(|_| anyhow!("the server panicked"))??)
}

/// Nobody listens, and the sender behind the tunnel is told.
fn refused(to: SocketAddr) -> Result<()> {
    match TcpStream::connect_timeout(&to, PATIENCE).map_err(|error| error.kind()) {
        Err(ErrorKind::ConnectionRefused) => {}
        other => bail!("TCP: {other:?}"),
    }
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(b"question")?;
    match socket.recv(&mut [0; 16]).map_err(|error| error.kind()) {
        Err(ErrorKind::ConnectionRefused) => Ok(()),
        other => bail!("UDP: {other:?}"),
    }
}

fn connection(to: SocketAddr) -> Result<()> {
    let mut client = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let sent: Vec<u8> = (0..PAYLOAD).map(|at| at as u8).collect();
    client.write_all(&sent).context("send")?;
    let mut received = vec![0; PAYLOAD];
    client.read_exact(&mut received).context("receive the echo")?;
    ensure!(received == sent, "other bytes came back");
    Ok(())
}

/// Sends back what the first client sends, and returns the address that it came from.
fn echo(server: &TcpListener) -> Result<SocketAddr> {
    let (mut client, seen) = server.accept().context("accept")?;
    client.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = vec![0; PAYLOAD];
    client.read_exact(&mut bytes).context("the server receives")?;
    client.write_all(&bytes).context("the server sends back")?;
    Ok(seen)
}

fn datagram(to: SocketAddr) -> Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = UdpSocket::bind(any)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.send_to(b"question", to)?;
    let mut received = [0; 16];
    let (length, from) = client.recv_from(&mut received).context("receive the answer")?;
    ensure!(
        from == to && received.get(..length) == Some(b"question"),
        "another answer from {from}"
    );
    Ok(())
}

fn echo_datagram(server: &UdpSocket) -> Result<SocketAddr> {
    server.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = [0; 16];
    let (length, seen) = server.recv_from(&mut bytes).context("the server receives")?;
    server.send_to(bytes.get(..length).unwrap_or_default(), seen)?;
    Ok(seen)
}
