//! SCTP with real sockets, which only some kernels have: associations of the node's processes, of pods and
//! of clients outside, with checksums that devices would fill in and with those that the kernel computes.

use super::place::Place;
use super::sys;
use crate::packet::bench::{Bench, SNAT_PORTS};
use crate::packet::network;
use anyhow::{Context, Result, anyhow, ensure};
use aya::programs::{SchedClassifier, TcAttachType, tc};
use lb_common::abi::Address;
use lb_common::family::{V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::scene::{Role, at, device, ip, port};
use nix::sys::socket::sockopt::{ReceiveTimeout, ReuseAddr, SendTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    listen, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::{fs, thread};

/// Seconds that any step of an association may take: several times SCTP's first retransmission.
const PATIENCE: i64 = 15;
/// Bytes that go each way: more than a packet, so that chunks of several sizes are sent.
const PAYLOAD: usize = 9_000;
/// As much as one packet of any device has room for. The kernel learns no path MTU towards addresses of its
/// own, so that it goes on with what the loopback device takes.
const ONE_PACKET: usize = 1_000;

/// Both families.
pub fn associations_reach_services() -> Result<()> {
    family::<V4>().context("IPv4")?;
    family::<V6>().context("IPv6")
}

fn family<F: AnswerFormat>() -> Result<()> {
    let ran = thread::scope(|scope| scope.spawn(node::<F>).join());
    ran.unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
}

/// A client and what it asks for.
struct Case {
    name: &'static str,
    /// Where the client is; `None` for the node itself.
    place: Option<usize>,
    from: Role,
    to: SocketAddr,
    /// Where the endpoint is (`None`: on the node itself), and its address.
    endpoint: (Option<usize>, Role),
    /// Whether the endpoint sees the client itself, or the node.
    is_kept: bool,
    payload: usize,
}

/// Indices of places.
const POD: usize = 0;
const OUTSIDE: usize = 1;

fn cases<F: AnswerFormat>() -> Vec<Case> {
    let here = (Some(POD), Role::LocalPod);
    let there = (Some(OUTSIDE), Role::RemotePod);
    let cluster_ip = |service| at::<F>(Role::ClusterIp, service);
    let node_port = |service| at::<F>(Role::Node, port::node_port(service));
    let case = |name, place, from, to, endpoint, is_kept| Case {
        name,
        place,
        from,
        to,
        endpoint,
        is_kept,
        payload: PAYLOAD,
    };
    let short = |case| Case { payload: ONE_PACKET, ..case };
    vec![
        case("node to a pod", None, Role::Node, cluster_ip(port::LOCAL), here, true),
        case("node to elsewhere", None, Role::Node, cluster_ip(port::REMOTE), there, false),
        case(
            "node by a load balancer's address",
            None,
            Role::Node,
            at::<F>(Role::LoadBalancer, port::LOCAL),
            here,
            true,
        ),
        // Through the loopback device.
        short(case(
            "node by its own NodePort",
            None,
            Role::Node,
            node_port(port::LOCAL),
            here,
            true,
        )),
        short(case(
            "node by its own NodePort elsewhere",
            None,
            Role::Node,
            node_port(port::REMOTE),
            there,
            false,
        )),
        case("pod to elsewhere", Some(POD), Role::LocalPod, cluster_ip(port::REMOTE), there, true),
        case("outside to a pod", Some(OUTSIDE), Role::Client, node_port(port::LOCAL), here, true),
        case(
            "outside to elsewhere",
            Some(OUTSIDE),
            Role::Client,
            node_port(port::REMOTE),
            there,
            false,
        ),
    ]
}

/// With the endpoint of `port::LOCAL` on an address of the node's own.
fn own_endpoint<F: AnswerFormat>() -> [Case; 3] {
    let case = |name, to| Case {
        name,
        place: None,
        from: Role::Node,
        to,
        endpoint: (None, Role::Node),
        is_kept: true,
        payload: PAYLOAD,
    };
    [
        case("node to an endpoint of its own", at::<F>(Role::ClusterIp, port::LOCAL)),
        case("by a load balancer's address", at::<F>(Role::LoadBalancer, port::LOCAL)),
        case("by its own NodePort", at::<F>(Role::Node, port::node_port(port::LOCAL))),
    ]
}

/// The node's side: the programs on the uplink and on a pod's device, whose other ends are in places of
/// their own.
fn node<F: AnswerFormat>() -> Result<()> {
    network::enter()?;
    // Nothing is to come in where the way back doesn't lead out (IPv4 alone has such a check).
    fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").context("be strict about sources")?;
    let mut bench = Bench::<F>::new()?;
    let places = [Place::new()?, Place::new()?];
    for (index, place, programs) in [
        (device::POD, &places[POD], ["pod_ingress", "pod_egress"]),
        (device::UPLINK, &places[OUTSIDE], ["tc_ingress", "tc_egress"]),
    ] {
        bench.programs.attach(&network::names(index).0, programs)?;
        network::hand_over(index, place.thread.as_raw().unsigned_abs())?;
    }
    let [pod, client, remote] = [Role::LocalPod, Role::Client, Role::RemotePod].map(ip::<F>);
    let [node, service] = [Role::Node, Role::ClusterIp].map(ip::<F>);
    places[POD]
        .run(move || network::settle(device::POD, &[pod], &[node, service, client, remote]))?;
    places[OUTSIDE]
        .run(move || network::settle(device::UPLINK, &[client, remote], &[node, pod]))?;
    attach_own(&mut bench)?;
    for are_computed in [false, true] {
        if are_computed {
            compute_checksums(&places)?;
        }
        for case in cases::<F>() {
            let name = case.name;
            run::<F>(&places, &case).with_context(|| {
                format!(
                    "{name}, checksums computed: {are_computed}; DROPS {:?}",
                    bench.programs.drops()
                )
            })?;
        }
    }
    bench.change(|world| {
        let endpoint = Address::from(pod);
        for backend in world.backends.iter_mut().filter(|backend| backend.address == endpoint) {
            backend.address = Address::from(node);
        }
    })?;
    for case in own_endpoint::<F>() {
        run::<F>(&places, &case).context(case.name)?;
    }
    Ok(())
}

fn attach_own<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    tc::qdisc_add_clsact("lo").context("clsact on lo")?;
    let loaded = bench.programs.ebpf().program_mut("own_egress").context("no own_egress")?;
    let loaded: &mut SchedClassifier = loaded.try_into()?;
    loaded.attach("lo", TcAttachType::Egress).context("attach own_egress to lo")?;
    Ok(())
}

fn compute_checksums(places: &[Place; 2]) -> Result<()> {
    for (index, place) in [(device::POD, POD), (device::UPLINK, OUTSIDE)] {
        let (name, peer) = network::names(index);
        sys::compute_checksums(&name).with_context(|| format!("ethtool: {name}"))?;
        places[place].run(move || {
            sys::compute_checksums(&peer).with_context(|| format!("ethtool: {peer}"))
        })?;
    }
    Ok(())
}

fn run<F: AnswerFormat>(places: &[Place; 2], case: &Case) -> Result<()> {
    let (place, role) = case.endpoint;
    let endpoint = at::<F>(role, port::BACKEND);
    let server = match place {
        Some(place) => places[place].run(move || serve(endpoint)),
        None => serve(endpoint),
    };
    let server = server.context("the server")?;
    let payload = case.payload;
    let serving = thread::spawn(move || echo(&server, payload));
    let (from, to) = (at::<F>(case.from, 0), case.to);
    let client = match case.place {
        Some(place) => places[place].run(move || open(from, to)),
        None => open(from, to),
    };
    let mut client = client.context("connect")?;
    ensure!(client.peer_addr()? == to, "the client sees {}", client.peer_addr()?);
    let sent: Vec<u8> = (0..payload).map(|at| at as u8).collect();
    client.write_all(&sent).context("send")?;
    let mut received = vec![0; payload];
    client.read_exact(&mut received).context("receive the echo")?;
    ensure!(received == sent, "other bytes came back");
    let own = client.local_addr()?;
    drop(client);
    let seen = serving.join().map_err(|_| anyhow!("the server panicked"))?.context("the server")?;
    if case.is_kept {
        ensure!(seen == own, "the endpoint sees {seen} instead of {own}");
    } else {
        let (first, last) = SNAT_PORTS;
        ensure!(
            seen.ip() == ip::<F>(Role::Node) && (first..=last).contains(&seen.port()),
            "the endpoint sees {seen}"
        );
    }
    Ok(())
}

/// One address, and no other of the host's: SCTP tells its peer all that a socket has.
fn bound(address: SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let protocol = Some(SockProtocol::Sctp);
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, protocol)
        .context("the kernel has no SCTP")?;
    let patience = TimeVal::seconds(PATIENCE);
    setsockopt(&socket, SendTimeout, &patience)?;
    setsockopt(&socket, ReceiveTimeout, &patience)?;
    // The association before may still be at its end.
    setsockopt(&socket, ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
        .with_context(|| format!("bind {address}"))?;
    Ok(socket)
}

/// The calls of std's TCP types are those of any connection.
fn open(from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = bound(from)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket.into())
}

fn serve(address: SocketAddr) -> Result<TcpListener> {
    let socket = bound(address)?;
    listen(&socket, Backlog::new(1)?)?;
    Ok(socket.into())
}

/// Sends back what the first client sends, and returns the address that it came from.
fn echo(server: &TcpListener, payload: usize) -> Result<SocketAddr> {
    let (mut client, seen) = server.accept().context("accept")?;
    let mut bytes = vec![0; payload];
    client.read_exact(&mut bytes).context("receive")?;
    client.write_all(&bytes).context("send back")?;
    Ok(seen)
}
