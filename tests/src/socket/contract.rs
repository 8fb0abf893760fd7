//! The loaded socket hooks against the model of the contract, on maps as the agent writes them: real
//! sockets of the node and, in a second namespace, of a pod.

use super::cases::from;
use super::{Bench, Style};
use crate::contract::case::{Ask, How};
use crate::contract::compare::{Call, Datapath, Way};
use crate::contract::play::play;
use crate::contract::scenery::{self, PODS};
use crate::contract::{cases, random};
use crate::packet::network;
use anyhow::{Context, Result, anyhow, bail, ensure};
use lb_agent::contract::Place;
use lb_agent::node::namespace::netns_cookie;
use lb_common::abi::Address;
use lb_common::bytes::Be16;
use lb_common::lb::DropReason;
use lb_common::lb::socket::SocketVerdict;
use lb_common::model::node::Outcome;
use lb_common::model::sockets::{HOST, POD};
use lb_common::model::world::World;
use lb_common::wire::ip;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, SockType, SockaddrStorage, connect, getpeername, sendto};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// For each style.
const CASES: u32 = 60;

pub(super) fn random_clusters(bench: &mut Bench) -> Result<()> {
    let style = bench.style;
    let (questions, asked) = channel::<Call>();
    let (tell, answers) = channel();
    // Ends with `questions`.
    let pod = thread::spawn(move || live_in_pod(style, &asked, &tell));
    let begun = answers.recv().map_err(|_| anyhow!("the pod doesn't begin"));
    let result = begun.and_then(|first| {
        let Told::Namespace(cookie) = first else { bail!("the pod begins with an answer") };
        let pod = Pod { cookie, questions, answers };
        random(cases(CASES), |case| play(case, &mut Loaded { bench, pod: &pod }))
    });
    let lived = pod.join().unwrap_or_else(|_| bail!("the pod panicked"));
    // Without its own error, a pod that ended is only a closed channel.
    lived.and(result)
}

/// What a pod's thread has to say.
enum Told {
    /// It has a network namespace with this cookie.
    Namespace(u64),
    /// It has made a call.
    Called(Result<Called>),
}

/// A thread in a network namespace of its own.
struct Pod {
    cookie: u64,
    questions: Sender<Call>,
    answers: Receiver<Told>,
}

/// A call that was made, on a socket that is still open.
struct Called {
    socket: OwnedFd,
    is_tcp: bool,
    result: Result<(), Errno>,
}

fn live_in_pod(style: Style, asked: &Receiver<Call>, tell: &Sender<Told>) -> Result<()> {
    network::enter()?;
    network::own(&PODS.into_iter().flat_map(scenery::both).collect::<Vec<_>>())?;
    network::lead_out()?;
    tell.send(Told::Namespace(netns_cookie()?)).context("tell the cookie")?;
    for call in asked {
        tell.send(Told::Called(make(style, &call))).context("tell how it went")?;
    }
    Ok(())
}

/// How an application of this style names an address.
fn styled(style: Style, address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) if style == Style::Mapped => v4.to_ipv6_mapped().into(),
        address => address,
    }
}

fn make(style: Style, call: &Call) -> Result<Called> {
    let tcp = call.destination.protocol == ip::TCP;
    let kind = if tcp { SockType::Stream } else { SockType::Datagram };
    let socket = from(style, call.bound.map(|address| styled(style, address)), kind)?;
    // Silence isn't waited for.
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("fcntl(O_NONBLOCK)")?;
    let address = styled(style, call.destination.address.into());
    let to = SockaddrStorage::from(SocketAddr::new(address, call.destination.port.get()));
    let result = match call.how {
        How::Send => sendto(socket.as_raw_fd(), b"?", &to, MsgFlags::empty()).map(|_| ()),
        How::Connect | How::Packet => connect(socket.as_raw_fd(), &to),
    };
    Ok(Called { socket, is_tcp: tcp, result })
}

struct Loaded<'a> {
    bench: &'a mut Bench,
    pod: &'a Pod,
}

impl Loaded<'_> {
    fn make(&self, call: &Call) -> Result<Called> {
        if call.place == Place::Node {
            return make(self.bench.style, call);
        }
        self.pod.questions.send(*call).map_err(|_| anyhow!("the pod has ended"))?;
        match self.pod.answers.recv().map_err(|_| anyhow!("the pod has ended"))? {
            Told::Called(called) => called.context("in the pod"),
            Told::Namespace(_) => bail!("the pod begins again"),
        }
    }

    /// What the hooks did, by what they wrote; the call must have ended accordingly.
    fn verdict(&mut self, called: &Called) -> Result<(SocketVerdict, Option<SocketAddr>)> {
        let Called { socket, is_tcp, result } = called;
        if let Some((backend, shown)) = self.bench.programs.translations()?.pop() {
            if let Ok(peer) = getpeername::<SockaddrStorage>(socket.as_raw_fd()) {
                let named = SockaddrStorage::from(SocketAddr::new(
                    styled(self.bench.style, shown.ip()),
                    shown.port(),
                ));
                ensure!(peer == named, "getpeername says {peer}, and not {named}");
            }
            let address = Address::from(backend.ip());
            if !address.is_discard() {
                let verdict = SocketVerdict::Translate(address, Be16::new(backend.port()));
                return Ok((verdict, Some(shown)));
            }
        }
        let drops = self.bench.programs.drops()?;
        let reasons: Vec<_> =
            drops.keys().filter_map(|(_, reason)| DropReason::from_number(*reason)).collect();
        match *reasons {
            [] => Ok((SocketVerdict::Pass, None)),
            [DropReason::NoEndpoints | DropReason::UnknownPort] => {
                ensure!(*result == Err(Errno::ECONNREFUSED), "a refused call ends as {result:?}");
                Ok((SocketVerdict::Refuse, None))
            }
            [DropReason::SourceRange] if *result == Err(Errno::EHOSTUNREACH) => {
                Ok((SocketVerdict::Unreachable, None))
            }
            [DropReason::NoLocalEndpoint | DropReason::SourceRange] => {
                let silent = if *is_tcp { Err(Errno::EINPROGRESS) } else { Ok(()) };
                ensure!(*result == silent, "a dropped call ends as {result:?}");
                Ok((SocketVerdict::Discard, None))
            }
            _ => bail!("the call was counted as {reasons:?}"),
        }
    }
}

impl Datapath for Loaded<'_> {
    /// No socket's source is changed.
    fn masquerade_all(&mut self, _is_wanted: bool) {}

    fn load(&mut self, world: &World) -> Result<()> {
        let mut world = world.clone();
        for (model, real) in [(HOST, netns_cookie()?), (POD, self.pod.cookie)] {
            if let Some(addresses) = world.clients.remove(&model) {
                world.clients.insert(real, addresses);
            }
        }
        self.bench.programs.fill(&world)
    }

    fn remembers(&self) -> bool {
        false
    }

    fn set_time(&mut self, _now: u64) {}

    fn set_memory(&mut self, _present: bool) -> Result<()> {
        self.bench.programs.forget_affinity()
    }

    fn can_be_asked(&self, ask: &Ask) -> bool {
        ask.how != How::Packet && ask.destination.is_ipv4() == (self.bench.style != Style::V6)
    }

    fn packet(&mut self, _way: Way, _frame: &[u8]) -> Result<Outcome> {
        bail!("socket hooks see no packets")
    }

    fn call(&mut self, call: &Call) -> Result<(SocketVerdict, Option<SocketAddr>)> {
        self.bench.programs.forget_calls()?;
        let called = self.make(call)?;
        self.verdict(&called)
    }
}
