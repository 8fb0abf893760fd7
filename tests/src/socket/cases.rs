//! What an application sees of the hooks.

use super::{Bench, Style};
use anyhow::{Context, Result, bail, ensure};
use lb_agent::node::namespace::netns_cookie;
use lb_common::abi::{Address, ClientAddresses};
use lb_common::lb::DropReason;
use lb_common::model::scene::{Role, port};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, sendto,
    setsockopt, socket, sockopt::SendTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// More than any answer of this machine takes.
const PATIENCE: Duration = Duration::from_secs(3);
/// Patience with silence.
const SILENCE: Duration = Duration::from_millis(300);

type Case = (&'static str, fn(&mut Bench) -> Result<()>);

pub(super) const CASES: [Case; 22] = [
    ("TCP reaches the endpoint, and getpeername shows the frontend", tcp),
    ("connected UDP reaches the endpoint, and every answer is the frontend's", udp_connected),
    ("unconnected UDP reaches the endpoint, and recvfrom shows the frontend", udp_unconnected),
    ("NodePorts are served on the node's address and on loopback", node_ports),
    ("a NodePort on an address that serves none is not translated", other_address),
    ("a pod's loopback is the pod's own", pods_loopback),
    ("without endpoints, TCP is refused at once, blocking or not", refuse_tcp),
    ("without endpoints, UDP is refused at once, connected or not", refuse_udp),
    ("a port that a live ClusterIP doesn't have is refused at once", unknown_port),
    ("internal policy Local without a local endpoint is silent", silent),
    ("external policies don't bind sockets of the node", short_circuit),
    ("TCP Fast Open reaches the endpoint", fast_open),
    ("a socket that connects elsewhere shows where it is", reconnect),
    ("a refused connect leaves a UDP socket as it was", refused_reconnect),
    ("what a UDP socket is connected to is known until it leaves", remembered),
    ("connections are spread over the endpoints, datagrams of a socket stay together", spread),
    ("an unconnected socket goes elsewhere when its endpoint left", generation),
    ("a direct connection to an endpoint shows the endpoint", direct),
    ("what is not served is counted with its reason", counted),
    ("a client with session affinity keeps its endpoint; a bound socket is its own", affinity),
    ("source ranges judge a socket by the address that it will send from", source_ranges),
    ("random clusters are served as the contract says", super::contract::random_clusters),
];

fn tcp(bench: &mut Bench) -> Result<()> {
    for role in [Role::ClusterIp, Role::External, Role::LoadBalancer] {
        let frontend = bench.at(role, port::LOCAL);
        talks_tcp(frontend, &bench.endpoint(Role::LocalPod))?;
    }
    talks_tcp(bench.at(Role::ClusterIp, port::REMOTE), &bench.endpoint(Role::RemotePod))
}

fn udp_connected(bench: &mut Bench) -> Result<()> {
    let frontend = bench.at(Role::ClusterIp, port::LOCAL);
    let socket = udp(bench.style)?;
    socket.connect(frontend).with_context(|| format!("connect to {frontend}"))?;
    for _ in 0..3 {
        ensure!(socket.peer_addr()? == frontend, "getpeername says {}", socket.peer_addr()?);
        socket.send(b"?").context("send")?;
        is_answered(&socket, frontend, &bench.endpoint(Role::LocalPod))?;
    }
    Ok(())
}

fn udp_unconnected(bench: &mut Bench) -> Result<()> {
    let socket = udp(bench.style)?;
    for (service, role) in [(port::LOCAL, Role::LocalPod), (port::REMOTE, Role::RemotePod)] {
        let frontend = bench.at(Role::ClusterIp, service);
        socket.send_to(b"?", frontend).with_context(|| format!("send to {frontend}"))?;
        is_answered(&socket, frontend, &bench.endpoint(role))?;
    }
    Ok(())
}

fn node_ports(bench: &mut Bench) -> Result<()> {
    let number = port::node_port(port::LOCAL);
    let endpoint = bench.endpoint(Role::LocalPod);
    for address in
        [bench.at(Role::Node, number), loopback(bench.style, number), own_host(bench.style, number)]
    {
        talks_tcp(address, &endpoint)?;
        let socket = udp(bench.style)?;
        socket.send_to(b"?", address).with_context(|| format!("send to {address}"))?;
        is_answered(&socket, address, &endpoint)?;
    }
    Ok(())
}

fn other_address(bench: &mut Bench) -> Result<()> {
    // Nobody listens there, and nobody translates.
    let address = bench.at(Role::Management, port::node_port(port::LOCAL));
    fails(TcpStream::connect_timeout(&address, PATIENCE), ErrorKind::ConnectionRefused)
}

/// In another namespace, as in a pod: its own server on the same port of its own loopback.
fn pods_loopback(bench: &mut Bench) -> Result<()> {
    let style = bench.style;
    let pod = thread::spawn(move || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
        crate::packet::network::own(&[])?;
        let address = loopback(style, port::node_port(port::LOCAL));
        let listener = TcpListener::bind(address).with_context(|| format!("bind {address}"))?;
        let stream = TcpStream::connect_timeout(&address, PATIENCE).context("connect")?;
        let (_, client) = listener.accept().context("accept")?;
        ensure!(stream.local_addr()? == client, "somebody else was accepted");
        let own_host = own_host(style, address.port());
        let stream = TcpStream::connect_timeout(&own_host, PATIENCE).context("connect")?;
        let (_, client) = listener.accept().context("accept")?;
        ensure!(stream.local_addr()?.port() == client.port(), "somebody else was accepted");
        Ok(())
    });
    pod.join().unwrap_or_else(|_| bail!("it panicked"))
}

fn refuse_tcp(bench: &mut Bench) -> Result<()> {
    let frontend = bench.at(Role::ClusterIp, port::EMPTY);
    let before = Instant::now();
    fails(TcpStream::connect_timeout(&frontend, PATIENCE), ErrorKind::ConnectionRefused)?;
    ensure!(before.elapsed() < Duration::from_secs(1), "it took {:?}", before.elapsed());
    let socket = stream(bench.style, SockFlag::SOCK_NONBLOCK)?;
    let result = connect(socket.as_raw_fd(), &SockaddrStorage::from(frontend));
    ensure!(result == Err(Errno::ECONNREFUSED), "non-blocking connect: {result:?}");
    Ok(())
}

fn refuse_udp(bench: &mut Bench) -> Result<()> {
    let frontend = bench.at(Role::ClusterIp, port::EMPTY);
    let socket = udp(bench.style)?;
    fails(socket.connect(frontend), ErrorKind::ConnectionRefused)?;
    fails(socket.send_to(b"?", frontend), ErrorKind::ConnectionRefused)
}

fn unknown_port(bench: &mut Bench) -> Result<()> {
    let address = bench.at(Role::ClusterIp, 7);
    fails(TcpStream::connect_timeout(&address, PATIENCE), ErrorKind::ConnectionRefused)?;
    let socket = udp(bench.style)?;
    fails(socket.connect(address), ErrorKind::ConnectionRefused)?;
    fails(socket.send_to(b"?", address), ErrorKind::ConnectionRefused)
}

fn silent(bench: &mut Bench) -> Result<()> {
    let frontend = bench.at(Role::ClusterIp, port::INTERNAL_ELSEWHERE);
    fails(TcpStream::connect_timeout(&frontend, SILENCE), ErrorKind::TimedOut)?;
    let socket = udp(bench.style)?;
    socket.send_to(b"?", frontend)?;
    socket.connect(frontend)?;
    socket.send(b"?")?;
    ensure!(socket.peer_addr()? == frontend, "getpeername says {}", socket.peer_addr()?);
    socket.set_read_timeout(Some(SILENCE))?;
    fails(socket.recv(&mut [0]), ErrorKind::WouldBlock)
}

fn short_circuit(bench: &mut Bench) -> Result<()> {
    let endpoint = bench.endpoint(Role::RemotePod);
    let number = port::node_port(port::ELSEWHERE);
    talks_tcp(bench.at(Role::External, port::ELSEWHERE), &endpoint)?;
    talks_tcp(bench.at(Role::LoadBalancer, port::ELSEWHERE), &endpoint)?;
    talks_tcp(bench.at(Role::Node, number), &endpoint)
}

fn fast_open(bench: &mut Bench) -> Result<()> {
    let frontend = bench.at(Role::ClusterIp, port::LOCAL);
    let socket = stream(bench.style, SockFlag::empty())?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    sendto(socket.as_raw_fd(), b"?", &SockaddrStorage::from(frontend), flags)
        .context("sendto(MSG_FASTOPEN)")?;
    greets(&mut TcpStream::from(socket), frontend, &bench.endpoint(Role::LocalPod))
}

fn reconnect(bench: &mut Bench) -> Result<()> {
    let socket = udp(bench.style)?;
    let frontend = bench.at(Role::ClusterIp, port::LOCAL);
    let others = [
        bench.at(Role::ClusterIp, port::REMOTE),
        // The endpoint itself: the address that the socket is connected to already.
        bench.at(Role::LocalPod, port::BACKEND),
        bench.at(Role::ThirdRemotePod, port::BACKEND),
    ];
    for other in others {
        for address in [frontend, other] {
            socket.connect(address).with_context(|| format!("connect to {address}"))?;
            let shown = socket.peer_addr()?;
            ensure!(shown == address, "connected to {address}, getpeername says {shown}");
        }
    }
    Ok(())
}

fn refused_reconnect(bench: &mut Bench) -> Result<()> {
    let socket = udp(bench.style)?;
    let frontend = bench.at(Role::ClusterIp, port::LOCAL);
    socket.connect(frontend)?;
    fails(socket.connect(bench.at(Role::ClusterIp, port::EMPTY)), ErrorKind::ConnectionRefused)?;
    let shown = socket.peer_addr()?;
    ensure!(shown == frontend, "getpeername says {shown}");
    socket.send(b"?")?;
    is_answered(&socket, frontend, &bench.endpoint(Role::LocalPod))
}

fn remembered(bench: &mut Bench) -> Result<()> {
    let endpoint = |role| -> Result<SocketAddr> { Ok(bench.endpoint(role).parse()?) };
    let (local, remote) = (endpoint(Role::LocalPod)?, endpoint(Role::RemotePod)?);
    let services = [port::LOCAL, port::REMOTE].map(|service| bench.at(Role::ClusterIp, service));
    let own = bench.at(Role::LocalPod, port::BACKEND);
    let (socket, other) = (udp(bench.style)?, udp(bench.style)?);
    other.connect(services[0])?;
    for (address, expected) in [
        (services[0], vec![local, local]),
        (services[1], vec![local, remote]),
        (services[0], vec![local, local]),
        // Where it is connected already, but by its own choice.
        (own, vec![local]),
        (services[0], vec![local, local]),
    ] {
        socket.connect(address).with_context(|| format!("connect to {address}"))?;
        let known = bench.programs.talked_to()?;
        ensure!(known == expected, "connected to {address}, REVERSE knows {known:?}");
    }
    talks_tcp(services[1], &bench.endpoint(Role::RemotePod))?;
    drop(socket);
    let known = bench.programs.talked_to()?;
    ensure!(known == [local], "one socket is open, REVERSE knows {known:?}");
    Ok(())
}

fn spread(bench: &mut Bench) -> Result<()> {
    let frontend = bench.at(Role::ClusterIp, port::SPREAD);
    let (mut by_tcp, mut by_udp) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..60 {
        let mut said = String::new();
        TcpStream::connect_timeout(&frontend, PATIENCE)?.read_to_string(&mut said)?;
        by_tcp.insert(said);
        let socket = udp(bench.style)?;
        let mut answers = BTreeSet::new();
        for _ in 0..4 {
            socket.send_to(b"?", frontend)?;
            answers.insert(answer(&socket)?.1);
        }
        ensure!(answers.len() == 1, "one socket was answered by {answers:?}");
        by_udp.extend(answers);
    }
    ensure!(by_tcp.len() == 3, "TCP reached {by_tcp:?}");
    ensure!(by_udp.len() == 3, "UDP reached {by_udp:?}");
    Ok(())
}

fn generation(bench: &mut Bench) -> Result<()> {
    let socket = udp(bench.style)?;
    let frontend = bench.at(Role::ClusterIp, port::LOCAL);
    socket.send_to(b"?", frontend)?;
    is_answered(&socket, frontend, &bench.endpoint(Role::LocalPod))?;
    // The endpoint leaves, and another one takes its slot.
    let mut changed = bench.world.clone();
    let local = bench.at(Role::LocalPod, port::BACKEND);
    let other = bench.at(Role::RemotePod, 0).ip().to_canonical();
    changed.leave(SocketAddr::new(local.ip().to_canonical(), local.port()));
    for backend in &mut changed.backends {
        if backend.address == local.ip().to_canonical().into() {
            backend.address = other.into();
        }
    }
    bench.programs.fill(&changed)?;
    socket.send_to(b"?", frontend)?;
    is_answered(&socket, frontend, &bench.endpoint(Role::RemotePod))
}

fn affinity(bench: &mut Bench) -> Result<()> {
    let node = bench.at(Role::Node, 0).ip();
    for (bound, known) in [(None, false), (None, true), (Some(node), true)] {
        bench.programs.forget()?;
        let namespace = netns_cookie()?;
        let mut world = bench.world.clone();
        if known {
            let own = bench.at(Role::Management, 0).ip().to_canonical().into();
            world.clients = [(namespace, ClientAddresses { address4: own, address6: own })].into();
        }
        bench.programs.fill(&world)?;
        let frontend = bench.at(Role::ClusterIp, port::STICKY);
        let node_port = bench.at(Role::Node, port::node_port(port::STICKY));
        let (mut by_tcp, mut by_udp) = (BTreeSet::new(), BTreeSet::new());
        for to in [frontend, node_port].repeat(8) {
            let socket = from(bench.style, bound, SockType::Stream)?;
            connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).context("connect")?;
            let mut said = String::new();
            TcpStream::from(socket).read_to_string(&mut said)?;
            by_tcp.insert(said);
            for connected in [true, false] {
                let socket = UdpSocket::from(from(bench.style, bound, SockType::Datagram)?);
                socket.set_read_timeout(Some(PATIENCE))?;
                if connected {
                    socket.connect(to)?;
                    socket.send(b"?")?;
                } else {
                    socket.send_to(b"?", to)?;
                }
                by_udp.insert(answer(&socket)?.1);
            }
        }
        ensure!(by_tcp.len() == 1, "TCP reached {by_tcp:?}");
        ensure!(by_udp.len() == 1, "UDP reached {by_udp:?}");
        let client = match (bound, known) {
            (Some(address), _) => address.to_canonical().into(),
            (None, true) => bench.at(Role::Management, 0).ip().to_canonical().into(),
            (None, false) => Address::of_namespace(namespace),
        };
        let clients = bench.programs.remembered_clients()?;
        ensure!(clients == [client].into(), "{clients:?} instead of {client:?}");
    }
    Ok(())
}

fn source_ranges(bench: &mut Bench) -> Result<()> {
    let (node, other) = (Role::Node, Role::Management);
    for (bound, known, admitted) in [
        (None, Some(node), true),
        (None, Some(other), false),
        (None, None, false),
        (Some(node), Some(other), true),
        (Some(node), None, true),
        (Some(other), Some(node), false),
    ] {
        bench.programs.forget()?;
        let mut world = bench.world.clone();
        if let Some(role) = known {
            let own = bench.at(role, 0).ip().to_canonical().into();
            let own = ClientAddresses { address4: own, address6: own };
            world.clients = [(netns_cookie()?, own)].into();
        }
        bench.programs.fill(&world)?;
        let bound = bound.map(|role| bench.at(role, 0).ip());
        let frontend = bench.at(Role::LoadBalancer, port::RANGES);
        let to = SockaddrStorage::from(frontend);
        let stream = from(bench.style, bound, SockType::Stream)?;
        let datagrams = from(bench.style, bound, SockType::Datagram)?;
        let connected = from(bench.style, bound, SockType::Datagram)?;
        setsockopt(&stream, SendTimeout, &TimeVal::milliseconds(300)).context("SO_SNDTIMEO")?;
        let results = [
            connect(stream.as_raw_fd(), &to),
            sendto(datagrams.as_raw_fd(), b"?", &to, MsgFlags::empty()).map(drop),
            connect(connected.as_raw_fd(), &to),
        ];
        let expected = if admitted {
            [Ok(()); 3]
        } else if bound.is_none() && known.is_none() {
            [Err(Errno::EHOSTUNREACH); 3]
        } else {
            // A blocking `connect` whose patience ended.
            [Err(Errno::EINPROGRESS), Ok(()), Ok(())]
        };
        ensure!(
            results == expected,
            "bound to {bound:?}, known as {known:?}: {results:?} instead of {expected:?}"
        );
        if admitted {
            let endpoint = bench.endpoint(Role::LocalPod);
            greets(&mut TcpStream::from(stream), frontend, &endpoint)?;
            let datagrams = UdpSocket::from(datagrams);
            datagrams.set_read_timeout(Some(PATIENCE))?;
            is_answered(&datagrams, frontend, &endpoint)?;
        }
        // Other addresses of the Service ask nobody.
        talks_tcp(bench.at(Role::ClusterIp, port::RANGES), &bench.endpoint(Role::LocalPod))?;
    }
    Ok(())
}

/// A blocking socket that is bound to an address, or not.
pub(super) fn from(style: Style, bound: Option<IpAddr>, kind: SockType) -> Result<OwnedFd> {
    let family = match style {
        Style::V4 => AddressFamily::Inet,
        Style::V6 | Style::Mapped => AddressFamily::Inet6,
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).context("a socket")?;
    if let Some(address) = bound {
        let address = SockaddrStorage::from(SocketAddr::new(address, 0));
        bind(socket.as_raw_fd(), &address).context("bind")?;
    }
    Ok(socket)
}

fn direct(bench: &mut Bench) -> Result<()> {
    let address = bench.at(Role::LocalPod, port::BACKEND);
    talks_tcp(address, &bench.endpoint(Role::LocalPod))?;
    let socket = udp(bench.style)?;
    socket.send_to(b"?", address)?;
    is_answered(&socket, address, &bench.endpoint(Role::LocalPod))
}

fn counted(bench: &mut Bench) -> Result<()> {
    refuse_tcp(bench)?;
    refuse_udp(bench)?;
    silent(bench)?;
    let mut counts: Vec<_> =
        bench.programs.drops()?.into_iter().map(|((_, reason), count)| (reason, count)).collect();
    counts.sort_unstable();
    let [refused, silent] = [DropReason::NoEndpoints, DropReason::NoLocalEndpoint];
    // One row each for the Service's TCP and UDP ports.
    let expected =
        [(refused as u32, 2), (refused as u32, 2), (silent as u32, 1), (silent as u32, 2)];
    ensure!(counts == expected, "DROPS holds {counts:?}");
    Ok(())
}

fn talks_tcp(to: SocketAddr, endpoint: &str) -> Result<()> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE);
    greets(&mut stream.with_context(|| format!("connect to {to}"))?, to, endpoint)
}

fn greets(stream: &mut TcpStream, frontend: SocketAddr, endpoint: &str) -> Result<()> {
    let shown = stream.peer_addr().context("getpeername")?;
    ensure!(shown == frontend, "connected to {frontend}, getpeername says {shown}");
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = [0; 64];
    let len = stream.read(&mut said).with_context(|| format!("read from {frontend}"))?;
    let said = String::from_utf8_lossy(said.get(..len).unwrap_or_default());
    ensure!(said == endpoint, "{frontend} led to {said} instead of {endpoint}");
    Ok(())
}

fn answer(socket: &UdpSocket) -> Result<(SocketAddr, String)> {
    let mut said = [0; 64];
    let (len, from) = socket.recv_from(&mut said).context("no answer")?;
    Ok((from, String::from_utf8_lossy(said.get(..len).unwrap_or_default()).into_owned()))
}

fn is_answered(socket: &UdpSocket, frontend: SocketAddr, endpoint: &str) -> Result<()> {
    let (from, said) = answer(socket)?;
    ensure!(from == frontend, "sent to {frontend}, recvfrom says {from}");
    ensure!(said == endpoint, "{frontend} led to {said} instead of {endpoint}");
    Ok(())
}

fn fails<T>(result: std::io::Result<T>, kind: ErrorKind) -> Result<()> {
    match result {
        Ok(_) => bail!("it succeeded instead of {kind}"),
        Err(error) if error.kind() == kind => Ok(()),
        Err(error) => bail!("{error} instead of {kind}"),
    }
}

fn udp(style: Style) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(unspecified(style, 0)).context("bind a UDP socket")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn stream(style: Style, flags: SockFlag) -> Result<OwnedFd> {
    let family = match style {
        Style::V4 => AddressFamily::Inet,
        Style::V6 | Style::Mapped => AddressFamily::Inet6,
    };
    socket(family, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None).context("a TCP socket")
}

fn loopback(style: Style, port: u16) -> SocketAddr {
    let ip = match style {
        Style::V4 => [127, 0, 0, 1].into(),
        Style::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
        Style::Mapped => std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
    };
    SocketAddr::new(ip, port)
}

/// What a socket of this style binds to for any address.
fn unspecified(style: Style, port: u16) -> SocketAddr {
    let ip = match style {
        Style::V4 => [0, 0, 0, 0].into(),
        Style::V6 | Style::Mapped => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, port)
}

/// The unspecified address as a destination: on Linux, the host itself.
fn own_host(style: Style, port: u16) -> SocketAddr {
    let ip = match style {
        Style::V4 => [0, 0, 0, 0].into(),
        Style::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        Style::Mapped => std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(),
    };
    SocketAddr::new(ip, port)
}
