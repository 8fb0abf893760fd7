//! Requests from inside a host, with real sockets and every address the kernel tells about them.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
    sockopt::{ReuseAddr, SendTimeout},
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::fragments;
use super::protocol::{Answer, Failure, Fragments, Outcome, Request, Transport};
use super::server::{Greeting, Header, LARGEST_DATAGRAM, LARGEST_PAYLOAD, pattern};
use crate::sys;

/// After so long without an answer a SYN is sent again (TCP_TIMEOUT_INIT in include/net/tcp.h).
const FIRST_RETRANSMISSION: Duration = Duration::from_secs(1);

/// An open socket to a server.
pub(super) enum Socket {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

/// The call that failed and the name of its error.
struct Fault(&'static str, String);

/// Sends `request.count` requests. With `request.keep` all use `kept`, which is opened first if it
/// is empty, and closed when a request on it fails.
pub(super) fn ask_many(request: &Request, kept: &mut Option<Socket>) -> Result<Vec<Outcome>> {
    check(request)?;
    Ok((0..request.count)
        .map(|_| {
            if request.keep.is_none() {
                *kept = None;
            }
            ask(request, kept)
        })
        .collect())
}

/// Refuses what cannot be meant.
pub(super) fn check(request: &Request) -> Result<()> {
    ensure!(request.count <= Request::MOST, "at most {} requests at once", Request::MOST);
    ensure!(!request.timeout.is_zero(), "a timeout of 0 means no timeout to a socket");
    ensure!(!request.mapped || request.to.is_ipv4(), "only an IPv4 address can be mapped");
    let largest = match request.transport {
        Transport::Tcp => LARGEST_PAYLOAD,
        // Room for the line before it.
        Transport::Udp => LARGEST_DATAGRAM - 512,
    };
    let payload = request.payload.max(request.answer_payload) as usize;
    ensure!(payload <= largest, "at most {largest} bytes of payload");
    Ok(())
}

/// One request on the socket in `slot`, which is opened first if it is empty, and emptied by a
/// failure.
pub(super) fn ask(request: &Request, slot: &mut Option<Socket>) -> Outcome {
    let start = Instant::now();
    let outcome = match slot.take() {
        Some(socket) => Ok((socket, 0)),
        None => Socket::open(request).and_then(|socket| {
            // Sooner the kernel sends one again only to a server that remembers the port's last
            // connection, and has said so (tcp_rcv_synsent_state_process in net/ipv4/tcp_input.c).
            let is_late = start.elapsed() >= FIRST_RETRANSMISSION;
            let syns_lost = if is_late { socket.retransmissions()? } else { 0 };
            Ok((socket, syns_lost))
        }),
    }
    .and_then(|(mut socket, syns_lost)| {
        let answer = socket.exchange(request, start)?;
        *slot = Some(socket);
        Ok(Answer { syns_lost, ..answer })
    });
    outcome.map_err(|Fault(call, errno)| Failure {
        call: call.to_owned(),
        errno,
        micros: micros_since(start),
    })
}

/// Waits until an idle UDP socket fails, or for `timeout`.
pub(super) fn await_failure(socket: &Socket, timeout: Duration) -> Result<Failure> {
    let Socket::Udp(socket) = socket else { bail!("a TCP connection ends in other ways") };
    let start = Instant::now();
    loop {
        let left = timeout.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left))?;
        // An answer to an earlier request may still arrive.
        if let Err(Fault(call, errno)) = socket.recv(&mut [0]).map_err(fault("receive")) {
            return Ok(Failure { call: call.to_owned(), errno, micros: micros_since(start) });
        }
    }
}

impl Socket {
    fn open(request: &Request) -> Result<Self, Fault> {
        match request.transport {
            Transport::Tcp => {
                let stream = connect_tcp(request)?;
                stream.set_nodelay(true).map_err(fault("setsockopt"))?;
                Ok(Self::Tcp(BufReader::new(stream)))
            }
            Transport::Udp => {
                let to = target(request);
                let any = wildcard(to);
                let socket = UdpSocket::bind((any, request.local_port.unwrap_or(0)))
                    .map_err(fault("bind"))?;
                if request.connected {
                    socket.connect(to).map_err(fault("connect"))?;
                }
                Ok(Self::Udp(socket))
            }
        }
    }

    fn retransmissions(&self) -> Result<u32, Fault> {
        match self {
            Self::Tcp(reader) => {
                sys::retransmissions(reader.get_ref()).map_err(errno_fault("getsockopt"))
            }
            Self::Udp(_) => Ok(0),
        }
    }

    fn exchange(&mut self, request: &Request, start: Instant) -> Result<Answer, Fault> {
        static NONCE: AtomicU64 = AtomicU64::new(0);
        let header = Header {
            nonce: NONCE.fetch_add(1, Ordering::Relaxed),
            payload: request.payload as usize,
            answer: request.answer_payload as usize,
            fragments: request.fragments,
        };
        let mut message = header.line().into_bytes();
        message.extend(pattern(header.payload));
        let (greeting, payload, received_from) = match self {
            Self::Tcp(reader) => {
                exchange_tcp(reader, &message, request.timeout).map(|(g, p)| (g, p, None))?
            }
            Self::Udp(socket) => exchange_udp(socket, &message, &header, request)?,
        };
        let micros = micros_since(start);
        let (local, peer_name) = match self {
            Self::Tcp(reader) => (reader.get_ref().local_addr(), reader.get_ref().peer_addr()),
            Self::Udp(socket) => (socket.local_addr(), socket.peer_addr()),
        };
        Ok(Answer {
            server: greeting.server,
            seen: greeting.seen,
            local: local.map_err(fault("getsockname"))?,
            peer_name: peer_name.ok(),
            received_from,
            intact: greeting.intact && payload == pattern(header.answer),
            micros,
            syns_lost: 0,
        })
    }
}

/// By hand rather than by std, because of the local port.
fn connect_tcp(request: &Request) -> Result<TcpStream, Fault> {
    let to = target(request);
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let descriptor = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(errno_fault("socket"))?;
    if let Some(port) = request.local_port {
        setsockopt(&descriptor, ReuseAddr, &true).map_err(errno_fault("setsockopt"))?;
        let local = SockaddrStorage::from(SocketAddr::new(wildcard(to), port));
        bind(descriptor.as_raw_fd(), &local).map_err(errno_fault("bind"))?;
    }
    // On Linux `connect` keeps to the send timeout, and says so by EINPROGRESS.
    let millis = i64::try_from(request.timeout.as_millis().max(1)).unwrap_or(i64::MAX);
    setsockopt(&descriptor, SendTimeout, &TimeVal::milliseconds(millis))
        .map_err(errno_fault("setsockopt"))?;
    match connect(descriptor.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => Ok(TcpStream::from(descriptor)),
        Err(Errno::EINPROGRESS) => Err(Fault("connect", format!("{:?}", Errno::ETIMEDOUT))),
        Err(errno) => Err(errno_fault("connect")(errno)),
    }
}

fn exchange_tcp(
    reader: &mut BufReader<TcpStream>,
    message: &[u8],
    timeout: Duration,
) -> Result<(Greeting, Vec<u8>), Fault> {
    let deadline = Instant::now() + timeout;
    reader.get_mut().write_all(message).map_err(fault("send"))?;
    reader.get_ref().set_read_timeout(Some(timeout)).map_err(fault("setsockopt"))?;
    let mut line = String::new();
    reader.take(4096).read_line(&mut line).map_err(fault("receive"))?;
    if line.is_empty() {
        return Err(Fault("receive", "EOF".into()));
    }
    let greeting: Greeting = serde_json::from_str(&line).map_err(garbage)?;
    let mut payload = vec![0; greeting.payload.min(LARGEST_PAYLOAD)];
    let mut filled = 0;
    while let Some(rest) = payload.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Fault("receive", format!("{:?}", Errno::ETIMEDOUT)));
        }
        reader.get_ref().set_read_timeout(Some(left)).map_err(fault("setsockopt"))?;
        match reader.read(rest).map_err(fault("receive"))? {
            0 => return Err(Fault("receive", "EOF".into())),
            read => filled += read,
        }
    }
    Ok((greeting, payload))
}

type UdpAnswer = (Greeting, Vec<u8>, Option<SocketAddr>);

fn exchange_udp(
    socket: &UdpSocket,
    message: &[u8],
    header: &Header,
    request: &Request,
) -> Result<UdpAnswer, Fault> {
    if request.fragments != Fragments::AsTheKernelDoes {
        fragments::send(request.fragments, socket, request.to, message).map_err(fault("send"))?;
    } else if request.connected {
        socket.send(message).map_err(fault("send"))?;
    } else {
        socket.send_to(message, target(request)).map_err(fault("send"))?;
    }
    let deadline = Instant::now() + request.timeout;
    let mut buffer = vec![0; LARGEST_DATAGRAM];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Fault("receive", format!("{:?}", Errno::ETIMEDOUT)));
        }
        socket.set_read_timeout(Some(left)).map_err(fault("setsockopt"))?;
        let (length, from) = socket.recv_from(&mut buffer).map_err(fault("receive"))?;
        let datagram = buffer.get(..length).unwrap_or_default();
        let end = datagram.iter().position(|&byte| byte == b'\n').unwrap_or(0);
        let (line, rest) = datagram.split_at(end);
        let greeting: Greeting = serde_json::from_slice(line).map_err(garbage)?;
        // An answer to an earlier request that was given up may still arrive.
        if greeting.nonce == header.nonce {
            let payload = rest.get(1..).unwrap_or_default().to_vec();
            return Ok((greeting, payload, Some(from)));
        }
    }
}

/// The address for the socket: mapped if asked for.
fn target(request: &Request) -> SocketAddr {
    match (request.to.ip(), request.mapped) {
        (IpAddr::V4(v4), true) => (v4.to_ipv6_mapped(), request.to.port()).into(),
        (IpAddr::V4(_) | IpAddr::V6(_), _) => request.to,
    }
}

fn wildcard(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn micros_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn fault(call: &'static str) -> impl Fn(std::io::Error) -> Fault {
    move |error| match (error.kind(), error.raw_os_error()) {
        (ErrorKind::WouldBlock | ErrorKind::TimedOut, _) => {
            Fault(call, format!("{:?}", Errno::ETIMEDOUT))
        }
        (_, Some(number)) => Fault(call, format!("{:?}", Errno::from_raw(number))),
        (_, None) => Fault(call, error.to_string()),
    }
}

fn errno_fault(call: &'static str) -> impl Fn(Errno) -> Fault {
    move |errno| Fault(call, format!("{errno:?}"))
}

fn garbage(error: serde_json::Error) -> Fault {
    Fault("receive", format!("an answer that is none: {error}"))
}
