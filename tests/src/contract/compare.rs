//! One question, put to the model and to a datapath.

use super::case::{Ask, How};
use super::scenery;
use anyhow::{Context, Result, bail, ensure};
use lb_agent::cluster::snapshot::Protocol;
use lb_agent::contract::{Answer, Place, Refusal, Source, Translation, Verdict};
use lb_common::abi::Address;
use lb_common::bytes::Be16;
use lb_common::lb::Verdict as PacketVerdict;
use lb_common::lb::frontend::Destination;
use lb_common::lb::socket::SocketVerdict;
use lb_common::model::frame::{Segment, Transport};
use lb_common::model::node::Outcome;
use lb_common::model::scene::Role;
use lb_common::model::world::World;
use std::net::{IpAddr, SocketAddr};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Chunk type INIT of SCTP.
const INIT: u8 = 1;
/// The client's first port.
const FIRST_PORT: u16 = 40_000;

/// Where a packet passes the node's hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In through the uplink.
    In,
    /// Out through the uplink.
    Out,
    /// From a pod, at the node's end of its device.
    FromPod,
    /// To a pod, likewise.
    ToPod,
}

/// Something that carries what the maps say: the host build of the decisions, or the loaded programs.
pub trait Datapath {
    /// Whether it masquerades all from now on.
    fn masquerade_all(&mut self, is_wanted: bool);

    /// The maps hold this, and no flow or socket is known. What affinity remembers stays where
    /// [`remembers`](Self::remembers) says so.
    ///
    /// # Errors
    /// When it can't be written.
    fn load(&mut self, world: &World) -> Result<()>;

    /// Whether affinity outlasts [`load`](Self::load), and [`set_time`](Self::set_time) counts.
    fn remembers(&self) -> bool;

    /// Seconds since the case began.
    fn set_time(&mut self, now: u64);

    /// Forgets or restores what affinity remembers: `false` puts it aside, `true` brings back what was.
    ///
    /// # Errors
    /// When it can't be cleared.
    fn set_memory(&mut self, present: bool) -> Result<()>;

    /// Whether this question can be put to it.
    fn can_be_asked(&self, ask: &Ask) -> bool;

    /// A frame passes.
    ///
    /// # Errors
    /// When it can't be run.
    fn packet(&mut self, way: Way, frame: &[u8]) -> Result<Outcome>;

    /// A new socket makes a call; with what it is shown as its peer afterwards, if it was translated.
    ///
    /// # Errors
    /// When it can't be made.
    fn call(&mut self, call: &Call) -> Result<(SocketVerdict, Option<SocketAddr>)>;
}

/// A call on a socket.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Where the socket is.
    pub place: Place,
    /// `connect` or `sendto`.
    pub how: How,
    /// The address that it is bound to, if it has to be.
    pub bound: Option<IpAddr>,
    /// Where to.
    pub destination: Destination,
}

/// What a datapath did: `None` unless it translated.
type Did = Result<Option<SocketAddr>>;

/// Asks once. Returns the endpoint that was chosen.
///
/// # Errors
/// When the datapath did something else than is due; the rules are in the message.
pub fn ask(datapath: &mut impl Datapath, ask: &Ask, due: &Answer, port: u16) -> Did {
    let did = match ask.how {
        How::Packet => ask_packet(datapath, ask, due, FIRST_PORT + port),
        How::Connect | How::Send => ask_call(datapath, ask, due),
    };
    did.with_context(|| {
        let because: Vec<String> = due.because.iter().map(ToString::to_string).collect();
        format!("{ask}\n  due: {:?}\n  because {}", due.verdict, because.join(";\n          "))
    })
}

fn ask_packet(datapath: &mut impl Datapath, ask: &Ask, due: &Answer, port: u16) -> Did {
    let source = SocketAddr::new(ask.source.context("a packet has a source")?, port);
    let transport = match ask.protocol {
        Protocol::Tcp => Transport::Tcp(SYN),
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp(INIT),
    };
    let sent = Segment::new(source, ask.destination, transport);
    let ways = match ask.place {
        Place::Outside => (Way::In, Way::Out),
        Place::Pod => (Way::FromPod, Way::ToPod),
        Place::Node => bail!("the node's own packets pass no hook on their way in"),
    };
    let outcome = datapath.packet(ways.0, &sent.frame())?;
    match (&due.verdict, outcome.verdict) {
        (Verdict::NotOurs, PacketVerdict::Pass) => {
            ensure!(outcome.bytes == sent.frame(), "the packet was changed");
            Ok(None)
        }
        (Verdict::Drop, PacketVerdict::Drop)
        | (Verdict::Refuse(Refusal::Reset), PacketVerdict::Reset)
        | (Verdict::Refuse(Refusal::PortUnreachable), PacketVerdict::Answer) => Ok(None),
        (Verdict::Translate(due), PacketVerdict::Deliver | PacketVerdict::Forward) => {
            translated(datapath, &sent, due, &outcome, ways.1).map(Some)
        }
        (_, did) => bail!("the datapath says {did:?}"),
    }
}

/// The packet and an answer to it, against what etherparse writes. What is delivered comes in one way and
/// its answer goes out the other; what is forwarded comes back in from where the endpoint is.
fn translated(
    datapath: &mut impl Datapath,
    sent: &Segment,
    due: &Translation,
    outcome: &Outcome,
    goes_out: Way,
) -> Result<SocketAddr> {
    let (seen, backend) = ends(&outcome.bytes, sent.source.is_ipv4())?;
    let due_source = due.backends.get(&backend).with_context(|| format!("went to {backend}"))?;
    let (verdict, hop_limit) = match due_source {
        Source::Client => {
            ensure!(seen == sent.source, "{backend} sees {seen}");
            (PacketVerdict::Deliver, 64)
        }
        Source::Node => {
            let node = scenery::beside(Role::Node, seen.ip());
            ensure!(seen.ip() == node, "{backend} sees {seen}, not {node}");
            (PacketVerdict::Forward, 63)
        }
    };
    ensure!(outcome.verdict == verdict, "{backend}: {:?} instead of {verdict:?}", outcome.verdict);
    let arrives = sent.between(seen, backend, hop_limit);
    ensure!(outcome.bytes == arrives.frame(), "other bytes arrive at {backend}");
    let reply = Segment { hop_limit: 64, ..arrives.reply(SYN | ACK) };
    let is_here = scenery::PODS.iter().any(|pod| scenery::beside(*pod, seen.ip()) == backend.ip());
    let way = match due_source {
        Source::Client => goes_out,
        Source::Node if is_here => Way::FromPod,
        Source::Node => Way::In,
    };
    let back = datapath.packet(way, &reply.frame())?;
    let due_back = reply.between(due.shown, sent.source, hop_limit);
    ensure!(back.verdict == verdict, "the answer of {backend}: {:?}", back.verdict);
    ensure!(back.bytes == due_back.frame(), "the answer of {backend} is not from {}", due.shown);
    Ok(backend)
}

/// Source and destination of a frame without options or extension headers.
pub(super) fn ends(frame: &[u8], v4: bool) -> Result<(SocketAddr, SocketAddr)> {
    let (addresses, width, ports) = if v4 { (26, 4, 34) } else { (22, 16, 54) };
    let address = |at: usize| -> Result<IpAddr> {
        let bytes = frame.get(at..at + width).context("no address")?;
        Ok(if v4 {
            IpAddr::from(<[u8; 4]>::try_from(bytes)?)
        } else {
            IpAddr::from(<[u8; 16]>::try_from(bytes)?)
        })
    };
    let port = |at: usize| -> Result<u16> {
        let bytes = frame.get(at..at + 2).context("no port")?;
        Ok(u16::from_be_bytes(bytes.try_into()?))
    };
    let source = SocketAddr::new(address(addresses)?, port(ports)?);
    Ok((source, SocketAddr::new(address(addresses + width)?, port(ports + 2)?)))
}

fn ask_call(datapath: &mut impl Datapath, ask: &Ask, due: &Answer) -> Did {
    let known = scenery::known_source(ask.place, ask.destination.ip());
    let call = Call {
        place: ask.place,
        how: ask.how,
        bound: ask.source.filter(|source| known != Some(*source)),
        destination: Destination {
            address: Address::from(ask.destination.ip()),
            port: Be16::new(ask.destination.port()),
            protocol: lb_agent::tables::encode::protocol_number(ask.protocol),
        },
    };
    let (verdict, shown) = datapath.call(&call)?;
    match (&due.verdict, verdict) {
        (Verdict::NotOurs, SocketVerdict::Pass)
        | (Verdict::Refuse(Refusal::Call), SocketVerdict::Refuse)
        // The silent drop of a socket.
        | (Verdict::Drop, SocketVerdict::Discard) => Ok(None),
        // A source that nobody knows is in no range; the caller is told to try again.
        (Verdict::Drop, SocketVerdict::Unreachable) if ask.source.is_none() => Ok(None),
        (Verdict::Translate(due), SocketVerdict::Translate(address, port)) => {
            let backend = SocketAddr::new(address.into(), port.get());
            ensure!(due.backends.contains_key(&backend), "went to {backend}");
            ensure!(shown == Some(due.shown), "the socket is shown {shown:?}");
            Ok(Some(backend))
        }
        (_, did) => bail!("the datapath says {did:?}"),
    }
}
