//! What a lab and its `lab-peer` processes say to each other: JSON lines over the peer's standard
//! input and output. One [`ToPeer`] is answered by one [`FromPeer`] with the same id; answers may
//! overtake each other.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::topology::Dual;

/// Transport protocol of a server or request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Both, TCP first.
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// The fragments of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fragments {
    /// As many as needed, in order.
    AsTheKernelDoes,
    /// The last first.
    Reversed,
    /// In another order for each datagram, never with the first in front.
    Shuffled,
    /// In order, but without the first.
    WithoutFirst,
}

impl Fragments {
    /// Those that differ from the kernel's.
    pub const OURS: [Self; 3] = [Self::Reversed, Self::Shuffled, Self::WithoutFirst];
}

/// A line to a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ToPeer {
    pub id: u64,
    pub command: Order,
}

/// A line from a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FromPeer {
    pub id: u64,
    /// `Err` holds what went wrong with the order itself, not with a request's connection.
    pub answer: Result<Report, String>,
}

/// What a peer can be told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    Serve(Serve),
    StopServer(u64),
    Request(Request),
    AwaitFailure { name: String, timeout: Duration },
    Forget(String),
    StartLoad(Load),
    ReadLoad(u64),
    StopLoad(u64),
    Get { address: SocketAddr, path: String, timeout: Duration },
    Tunnel(Tunnel),
    Detach,
}

/// A node's end of a tunnel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tunnel {
    /// The TUN device.
    pub device: String,
    /// Where datagrams with its packets come in.
    pub local: SocketAddr,
    /// The other nodes.
    pub far: Vec<Far>,
}

/// Another node's end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Far {
    /// The networks of its pods, a /24 and a /64.
    pub pods: Dual,
    /// Where its datagrams go.
    pub node: SocketAddr,
}

/// What a peer answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Done,
    Serving(u64),
    Outcomes(Vec<Outcome>),
    Failed(Failure),
    Loading(u64),
    Load(LoadReport),
    Page(Page),
}

/// A server to start. It answers every request with its name and the addresses it saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Serve {
    /// Transport protocol.
    pub transport: Transport,
    /// Address to bind; `::` takes both families.
    pub address: IpAddr,
    /// Port, host byte order.
    pub port: u16,
    /// Name in its answers.
    pub name: String,
}

/// One or more requests to a server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Transport protocol.
    pub transport: Transport,
    /// Where to.
    pub to: SocketAddr,
    /// How many requests, one after the other, at most [`Request::MOST`]. Without `keep` each gets
    /// a socket of its own.
    pub count: u32,
    /// UDP only: `connect` the socket (the connect hook) instead of `sendto` (the sendmsg hook).
    pub connected: bool,
    /// Reach an IPv4 address through an AF_INET6 socket, as `::ffff:a.b.c.d`.
    pub mapped: bool,
    /// Keep the socket under this name after the request, or use the one kept under it.
    pub keep: Option<String>,
    /// Local port to bind, host byte order.
    pub local_port: Option<u16>,
    /// Bytes of payload in the request; checked by the server.
    pub payload: u32,
    /// Bytes of payload in the answer; checked by the client. With UDP: one datagram.
    pub answer_payload: u32,
    /// UDP only: how request and answer are sent when they are longer than a packet.
    pub fragments: Fragments,
    /// Longest wait for a connection, and again for an answer.
    pub timeout: Duration,
}

impl Request {
    /// Most requests of one order.
    pub const MOST: u32 = 100_000;

    /// One request with an unconnected socket, no payload, and two seconds of patience.
    pub fn new(transport: Transport, address: IpAddr, port: u16) -> Self {
        Self {
            transport,
            to: SocketAddr::new(address, port),
            count: 1,
            connected: false,
            mapped: false,
            keep: None,
            local_port: None,
            payload: 0,
            answer_payload: 0,
            fragments: Fragments::AsTheKernelDoes,
            timeout: Duration::from_secs(2),
        }
    }

    /// One request over TCP.
    pub fn tcp(address: IpAddr, port: u16) -> Self {
        Self::new(Transport::Tcp, address, port)
    }

    /// One request over UDP.
    pub fn udp(address: IpAddr, port: u16) -> Self {
        Self::new(Transport::Udp, address, port)
    }

    /// Sets the number of requests.
    #[must_use]
    pub fn times(self, count: u32) -> Self {
        Self { count, ..self }
    }

    /// Connects the UDP socket.
    #[must_use]
    pub fn connected(self) -> Self {
        Self { connected: true, ..self }
    }

    /// Uses an AF_INET6 socket for an IPv4 address.
    #[must_use]
    pub fn mapped(self) -> Self {
        Self { mapped: true, ..self }
    }

    /// Keeps the socket, or uses the kept one.
    #[must_use]
    pub fn keep(self, name: impl Into<String>) -> Self {
        Self { keep: Some(name.into()), ..self }
    }

    /// Binds a local port.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        Self { local_port: Some(port), ..self }
    }

    /// Sets the payloads, in bytes.
    #[must_use]
    pub fn payloads(self, request: u32, answer: u32) -> Self {
        Self { payload: request, answer_payload: answer, ..self }
    }

    /// Sets how datagrams are sent.
    #[must_use]
    pub fn fragments(self, fragments: Fragments) -> Self {
        Self { fragments, ..self }
    }

    /// Sets the patience.
    #[must_use]
    pub fn patience(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }
}

/// What became of one request.
pub type Outcome = Result<Answer, Failure>;

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Name of the server that answered.
    pub server: String,
    /// The client's address as the server saw it.
    pub seen: SocketAddr,
    /// The client socket's own address.
    pub local: SocketAddr,
    /// `getpeername` of the client's socket; `None` for an unconnected one.
    pub peer_name: Option<SocketAddr>,
    /// Sender of the answer as `recvfrom` told it; UDP only.
    pub received_from: Option<SocketAddr>,
    /// Both payloads arrived as they were sent.
    pub intact: bool,
    /// From before the connect (or, with a kept socket, the send) to the answer's last byte, µs.
    pub micros: u64,
    /// SYNs that were sent again until the connection was there; 0 for a kept one, and for UDP.
    pub syns_lost: u32,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The call that failed: `bind`, `connect`, `send`, `receive`.
    pub call: String,
    /// Name of the error, for example `ECONNREFUSED`; a wait that took too long is `ETIMEDOUT`.
    pub errno: String,
    /// From the start of the request to its failure, µs.
    pub micros: u64,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} after {} µs", self.call, self.errno, self.micros)
    }
}

/// Requests that go on until they are stopped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    /// What to send; `count`, `keep` and `local_port` are ignored.
    pub request: Request,
    /// Requests that run at the same time, 1 to 64.
    pub workers: u32,
    /// Keep one socket per worker open for all its requests instead of a fresh one for each.
    pub persistent: bool,
    /// Pause of a worker between two requests.
    pub pause: Duration,
    /// The load ends by itself after this time.
    pub at_most: Duration,
}

impl Load {
    /// Longest wait for an answer.
    pub const PATIENCE: Duration = Duration::from_secs(20);

    /// One worker, fresh sockets, 1 ms pauses, at most two minutes.
    ///
    /// A load tells what was lost, not what was late: it waits long for an answer, because the other
    /// tests take the processors.
    pub fn new(request: Request) -> Self {
        Self {
            request: request.patience(Self::PATIENCE),
            workers: 1,
            persistent: false,
            pause: Duration::from_millis(1),
            at_most: Duration::from_secs(120),
        }
    }
}

/// What a load has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Requests answered intact.
    pub ok: u64,
    /// Requests that failed or came back damaged.
    pub failed: u64,
    /// Failures by kind, for example `connect: ECONNREFUSED`.
    pub errors: BTreeMap<String, u64>,
    /// When the first failures ended, UTC, to be laid beside the logs of agents.
    pub failed_at: Vec<String>,
    /// Connections whose SYN, or its answer, was lost: the kernel sent it again, a second later.
    pub syns_lost: u64,
    /// Answers by server name.
    pub servers: BTreeMap<String, u64>,
    /// The slowest answer, µs.
    pub slowest_micros: u64,
}

impl LoadReport {
    /// What didn't arrive: requests that failed, and connections that came about late, because a SYN or
    /// its answer was lost.
    pub fn lost(&self) -> u64 {
        self.failed + self.syns_lost
    }
}

/// Answer to an HTTP GET.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Status code.
    pub status: u16,
    /// Header lines, without the status line.
    pub headers: Vec<String>,
    /// Body.
    pub body: String,
}

/// Answers by server name; failures under their own text.
pub fn histogram(outcomes: &[Outcome]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        let key = match outcome {
            Ok(answer) => answer.server.clone(),
            Err(failure) => format!("{}: {}", failure.call, failure.errno),
        };
        *counts.entry(key).or_default() += 1;
    }
    counts
}
