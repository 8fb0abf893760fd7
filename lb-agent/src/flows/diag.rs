//! `NETLINK_SOCK_DIAG`: which UDP sockets of a network namespace are connected where, which TCP sockets wait
//! for an answer to their SYNs, their end, and where others listen.
//!
//! The messages are those of include/uapi/linux/{netlink,inet_diag,sock_diag}.h. A socket belongs to
//! the namespace in which it was opened, wherever its thread goes after that.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use bytemuck::{Pod, Zeroable};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    socket,
};

use crate::cluster::snapshot::{IpFamily, Protocol};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const UDP: u8 = libc::IPPROTO_UDP as u8;
const TCP: u8 = libc::IPPROTO_TCP as u8;
/// As large as the kernel's own buffer for a dump.
const BUFFER: usize = 32 << 10;

/// `struct nlmsghdr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Header {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct inet_diag_sockid`; ports and addresses in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct SocketId {
    local_port: [u8; 2],
    peer_port: [u8; 2],
    local: [u8; 16],
    peer: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2` behind its header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SocketId,
}

/// The beginning of `struct inet_diag_msg`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Message {
    family: u8,
    state: u8,
    timer: u8,
    retransmissions: u8,
    id: SocketId,
}

/// A TCP or UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    family: u8,
    protocol: u8,
    id: SocketId,
}

impl Socket {
    /// Its cookie: what `bpf_get_socket_cookie` returns for it.
    pub fn cookie(&self) -> u64 {
        let [low, high] = self.id.cookie;
        u64::from(high) << 32 | u64::from(low)
    }

    /// Where it is connected, or connects to. An IPv6 socket to a mapped address talks IPv4.
    pub fn peer(&self) -> SocketAddr {
        self.address(self.id.peer, self.id.peer_port)
    }

    /// UDP or TCP.
    pub fn protocol(&self) -> Protocol {
        if self.protocol == TCP { Protocol::Tcp } else { Protocol::Udp }
    }

    /// Where its packets come from.
    pub fn local(&self) -> SocketAddr {
        self.address(self.id.local, self.id.local_port)
    }

    fn address(&self, ip: [u8; 16], port: [u8; 2]) -> SocketAddr {
        let ip = if self.family == AddressFamily::Inet as u8 {
            let [a, b, c, d, ..] = ip;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            Ipv6Addr::from(ip).to_canonical()
        };
        SocketAddr::new(ip, u16::from_be_bytes(port))
    }
}

/// Why the sockets can't be told or ended.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {source}")]
pub struct DiagError {
    call: &'static str,
    /// The kernel's answer.
    pub source: Errno,
}

impl DiagError {
    fn of(call: &'static str) -> impl Fn(Errno) -> Self {
        move |source| Self { call, source }
    }
}

/// What answers of the kernel are about.
enum Answer<'a> {
    Found(&'a [u8]),
    End(Result<(), Errno>),
}

/// The sockets of one network namespace.
#[derive(Debug)]
pub struct Diag {
    socket: OwnedFd,
    sequence: u32,
}

impl Diag {
    /// Those of the calling thread's namespace.
    pub fn here() -> Result<Self, DiagError> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )
        .map_err(DiagError::of("socket(NETLINK_SOCK_DIAG)"))?;
        // To the kernel, and from nobody else.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))
            .map_err(DiagError::of("connect(NETLINK_SOCK_DIAG)"))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The connected UDP sockets of a family; IPv6 has those with mapped addresses too.
    pub fn connected(&mut self, family: IpFamily) -> Result<Vec<Socket>, DiagError> {
        /// `1 << TCP_ESTABLISHED`: of a UDP socket, connected.
        const CONNECTED: u32 = 1 << 1;
        let error = DiagError::of("list UDP sockets by NETLINK_SOCK_DIAG");
        self.list(family, UDP, CONNECTED).map_err(error)
    }

    /// The TCP sockets of a family whose SYNs nobody has answered yet. The kernel looks through all its TCP
    /// sockets, of every namespace.
    pub fn connecting(&mut self, family: IpFamily) -> Result<Vec<Socket>, DiagError> {
        /// `1 << TCP_SYN_SENT`.
        const CONNECTING: u32 = 1 << 2;
        let error = DiagError::of("list TCP sockets by NETLINK_SOCK_DIAG");
        self.list(family, TCP, CONNECTING).map_err(error)
    }

    /// The sockets of a family that wait for what comes: TCP sockets that listen, and UDP sockets that are
    /// connected to nobody.
    pub fn listening(&mut self, family: IpFamily) -> Result<Vec<Socket>, DiagError> {
        /// `1 << TCP_LISTEN`.
        const LISTENING: u32 = 1 << 10;
        /// `1 << TCP_CLOSE`: of a UDP socket, connected to nobody.
        const UNCONNECTED: u32 = 1 << 7;
        let error = DiagError::of("list sockets that listen by NETLINK_SOCK_DIAG");
        let mut sockets = self.list(family, TCP, LISTENING).map_err(&error)?;
        sockets.extend(self.list(family, UDP, UNCONNECTED).map_err(error)?);
        Ok(sockets)
    }

    fn list(&mut self, family: IpFamily, protocol: u8, states: u32) -> Result<Vec<Socket>, Errno> {
        let family = match family {
            IpFamily::V4 => AddressFamily::Inet,
            IpFamily::V6 => AddressFamily::Inet6,
        };
        let wanted = Socket { family: family as u8, protocol, id: SocketId::zeroed() };
        let sequence = self.ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &wanted, states)?;
        let mut sockets = Vec::new();
        self.listen(sequence, |message| {
            let message = message.get(..size_of::<Message>())?;
            let Message { family, id, .. } = bytemuck::pod_read_unaligned(message);
            sockets.push(Socket { family, protocol, id });
            Some(())
        })?;
        Ok(sockets)
    }

    /// Ends a socket: its calls fail, and it is connected to nothing any more. `false` if it isn't
    /// there as it was any more.
    pub fn destroy(&mut self, socket: &Socket) -> Result<bool, DiagError> {
        let ended = self
            .ask(SOCK_DESTROY, NLM_F_ACK, socket, 0)
            .and_then(|sequence| self.listen(sequence, |_| None));
        match ended {
            Ok(()) => Ok(true),
            // Closed, or connected elsewhere: then another socket may be at its place (ESTALE).
            Err(Errno::ENOENT | Errno::ESTALE) => Ok(false),
            Err(source) => Err(DiagError { call: "SOCK_DESTROY", source }),
        }
    }

    /// Whether the kernel can do both at all.
    pub fn probe(&mut self) -> Result<(), DiagError> {
        self.connected(IpFamily::V4)?;
        // Port 0 is nobody's.
        let family = AddressFamily::Inet as u8;
        let nobody = Socket { family, protocol: UDP, id: SocketId::zeroed() };
        self.destroy(&nobody).map(drop)
    }

    fn ask(&mut self, kind: u16, flags: u16, socket: &Socket, states: u32) -> Result<u32, Errno> {
        let Socket { family, protocol, id } = *socket;
        self.sequence = self.sequence.wrapping_add(1);
        let header = Header {
            length: size_of::<Request>() as u32,
            kind,
            flags: NLM_F_REQUEST | flags,
            sequence: self.sequence,
            port: 0,
        };
        let request = Request { header, family, protocol, extensions: 0, pad: 0, states, id };
        send(self.socket.as_raw_fd(), bytemuck::bytes_of(&request), MsgFlags::empty())?;
        Ok(self.sequence)
    }

    /// Reads all answers to a request.
    fn listen(
        &self,
        sequence: u32,
        mut visit: impl FnMut(&[u8]) -> Option<()>,
    ) -> Result<(), Errno> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            };
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((answer, behind)) = next(rest, sequence) {
                match answer {
                    Some(Answer::Found(message)) => {
                        // A message that is too short for its kind isn't one that we know.
                        let _ = visit(message);
                    }
                    Some(Answer::End(result)) => return result,
                    None => {}
                }
                rest = behind;
            }
        }
    }
}

/// The first message of a datagram (`None`: not an answer to `sequence`) and what is behind it.
fn next(datagram: &[u8], sequence: u32) -> Option<(Option<Answer<'_>>, &[u8])> {
    let (header, _) = datagram.split_at_checked(size_of::<Header>())?;
    let header: Header = bytemuck::pod_read_unaligned(header);
    let length = header.length as usize;
    let body = datagram.get(size_of::<Header>()..length)?;
    let behind = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    let is_ours = header.sequence == sequence;
    let answer = match header.kind {
        // Both begin with a negative errno, or 0.
        NLMSG_ERROR | NLMSG_DONE => {
            let errno = body.get(..4).map_or(0, bytemuck::pod_read_unaligned::<i32>);
            let result = if errno == 0 { Ok(()) } else { Err(Errno::from_raw(-errno)) };
            Some(Answer::End(result))
        }
        SOCK_DIAG_BY_FAMILY => Some(Answer::Found(body)),
        _ => None,
    };
    Some((answer.filter(|_| is_ours), behind))
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Switches on the loopback device of the calling thread's namespace.
    pub fn loopback_up() {
        let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(status.success());
    }

    /// In a namespace of its own, with a loopback device that works.
    fn alone(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
            loopback_up();
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn connected(from: &str, to: &str) -> UdpSocket {
        let socket = UdpSocket::bind(from).unwrap();
        socket.connect(to).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    #[test]
    fn connected_sockets_are_listed_by_family_with_their_peers_and_others_are_not() {
        alone(|| {
            let _unconnected = UdpSocket::bind("127.0.0.1:7").unwrap();
            let _sockets = [
                connected("127.0.0.1:0", "127.0.0.1:7001"),
                connected("[::1]:0", "[::1]:7002"),
                connected("[::]:0", "[::ffff:127.0.0.1]:7003"),
            ];
            let mut diag = Diag::here().unwrap();
            let mut peers = |family| -> Vec<String> {
                let sockets = diag.connected(family).unwrap();
                let mut peers: Vec<_> = sockets.iter().map(|s| s.peer().to_string()).collect();
                peers.sort_unstable();
                peers
            };
            assert_eq!(peers(IpFamily::V4), ["127.0.0.1:7001"]);
            assert_eq!(peers(IpFamily::V6), ["127.0.0.1:7003", "[::1]:7002"]);
        });
    }

    #[test]
    fn a_destroyed_socket_fails_and_its_neighbour_does_not() {
        alone(|| {
            for (family, from, to) in [
                (IpFamily::V4, "127.0.0.1:0", "127.0.0.1:7001"),
                (IpFamily::V6, "[::1]:0", "[::1]:7002"),
                (IpFamily::V6, "[::]:0", "[::ffff:127.0.0.1]:7003"),
            ] {
                let (ended, stays) = (connected(from, to), connected(from, to));
                let port = ended.local_addr().unwrap().port().to_be_bytes();
                let mut diag = Diag::here().unwrap();
                let sockets = diag.connected(family).unwrap();
                let socket = sockets.iter().find(|socket| socket.id.local_port == port).unwrap();
                assert!(diag.destroy(socket).unwrap(), "{to}");
                assert!(!diag.destroy(socket).unwrap(), "{to}: it is not there any more");
                let error = ended.recv(&mut [0]).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{to}");
                assert!(ended.peer_addr().is_err(), "{to}");
                assert_eq!(stays.peer_addr().unwrap(), to.parse().unwrap());
            }
        });
    }

    #[test]
    fn where_sockets_listen_is_told_and_connected_ones_are_not() {
        alone(|| {
            let tcp = TcpListener::bind("127.0.0.1:7001").unwrap();
            let _connection = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
            let _udp = [UdpSocket::bind("127.0.0.1:7002"), UdpSocket::bind("[::1]:7003")];
            let _connected = connected("127.0.0.1:7004", "127.0.0.1:7002");
            let mut diag = Diag::here().unwrap();
            let mut listening = |family| -> Vec<String> {
                let sockets = diag.listening(family).unwrap();
                let text = |socket: &Socket| format!("{:?} {}", socket.protocol(), socket.local());
                sockets.iter().map(text).collect()
            };
            assert_eq!(listening(IpFamily::V4), ["Tcp 127.0.0.1:7001", "Udp 127.0.0.1:7002"]);
            assert_eq!(listening(IpFamily::V6), ["Udp [::1]:7003"]);
        });
    }

    #[test]
    fn tcp_sockets_that_wait_are_listed_and_ended_and_connections_are_not() {
        alone(|| {
            for words in [
                "link add nowhere type veth peer name nobody",
                "link set nobody up",
                "link set nowhere up",
                "addr add 192.0.2.1/24 dev nowhere",
                "addr add 2001:db8::1/64 dev nowhere nodad",
                "neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev nowhere",
                "neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev nowhere",
            ] {
                let status = Command::new("ip").args(words.split(' ')).status().unwrap();
                assert!(status.success(), "ip {words}");
            }
            let server = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut connection = TcpStream::connect(server.local_addr().unwrap()).unwrap();
            let mut diag = Diag::here().unwrap();
            for (family, to) in [(IpFamily::V4, "192.0.2.2:80"), (IpFamily::V6, "[2001:db8::2]:80")]
            {
                let caller = std::thread::spawn(move || TcpStream::connect(to).unwrap_err());
                let started = Instant::now();
                let waiting = loop {
                    match diag.connecting(family).unwrap()[..] {
                        [waiting] => break waiting,
                        _ => assert!(started.elapsed() < Duration::from_secs(10), "{to}"),
                    }
                };
                assert_eq!(
                    (waiting.peer(), waiting.protocol()),
                    (to.parse().unwrap(), Protocol::Tcp)
                );
                assert!(diag.destroy(&waiting).unwrap());
                let error = caller.join().unwrap();
                assert_eq!(error.raw_os_error(), Some(Errno::ECONNABORTED as i32), "{to}");
                assert_eq!(diag.connecting(family).unwrap(), []);
            }
            connection.write_all(b"it lives").unwrap();
        });
    }

    #[test]
    fn this_kernel_can_do_it() {
        Diag::here().unwrap().probe().unwrap();
    }
}
