//! A loaded object beside a model of the same node: both get every frame, and must agree.

use super::programs::{FLOWS, Hook, Programs, Run};
use super::{differ, network};
use anyhow::{Context, Result, anyhow, ensure};
use lb_common::abi::{Config, ConfigFlags, Event, FlowFlags, SCTP_PROGRAMS};
use lb_common::family::Family;
use lb_common::lb::Verdict;
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::node::{Node, Outcome, PodTc, Tc, Xdp};
use lb_common::model::scene::{self, Role, device};
use lb_common::model::sockets::HOST;
use lb_common::model::world::{EVERYTHING, World};
use std::net::{IpAddr, SocketAddr};

/// `TC_ACT_UNSPEC`: programs behind ours see the packet.
pub const TC_NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
pub const TC_DROP: i32 = 2;
/// `TC_ACT_REDIRECT`.
pub const TC_REDIRECT: i32 = 7;
/// `XDP_DROP`.
pub const XDP_DROP: i32 = 1;
/// `XDP_PASS`.
pub const XDP_PASS: i32 = 2;
/// `XDP_REDIRECT`.
pub const XDP_REDIRECT: i32 = 4;
/// XDP test runs always come in through the loopback device.
const XDP_INPUT: u32 = 1;
/// First and last SNAT port.
pub const SNAT_PORTS: (u16, u16) = (20_000, 29_999);

/// The programs and their model.
#[derive(Debug)]
pub struct Bench<F: Family> {
    /// The loaded programs.
    pub programs: Programs,
    /// The model; what it says is compared with what the programs do.
    pub model: Node<F>,
}

impl<F: AnswerFormat> Bench<F> {
    /// Loads the object and gives it and the network the scene of `lb_common::model::scene`.
    ///
    /// # Errors
    /// When the kernel refuses a program, a map or a route.
    pub fn new() -> Result<Self> {
        let model = scene::node::<F>();
        network::populate(&model)?;
        Self::load(model, &every_program(), FLOWS)
    }

    /// A second bench in the same network, for tc ingress alone and with this range of SNAT ports.
    ///
    /// # Errors
    /// When the kernel refuses a program or a map.
    pub fn with_snat_ports(ports: (u16, u16)) -> Result<Self> {
        let mut model = scene::node::<F>();
        model.snat_ports = ports;
        Self::load(model, &["tc_ingress"], FLOWS)
    }

    /// A second bench in the same network, for tc ingress alone and with room for as many flow entries. The
    /// model doesn't know which of them the kernel evicts.
    ///
    /// # Errors
    /// When the kernel refuses a program or a map.
    pub fn with_flows(entries: u32) -> Result<Self> {
        Self::load(scene::node::<F>(), &["tc_ingress"], entries)
    }

    /// A second bench in the same network, whose programs masquerade all.
    ///
    /// # Errors
    /// When the kernel refuses a program or a map.
    pub fn masquerading() -> Result<Self> {
        let model = Node { masquerades_all: true, ..scene::node::<F>() };
        Self::load(model, &every_program(), FLOWS)
    }

    fn load(model: Node<F>, programs: &[&str], flows: u32) -> Result<Self> {
        // The kernel's test run gives each a socket.
        let model = Node { from_sockets: true, ..model };
        let (snat_port_min, snat_port_max) = model.snat_ports;
        let masks = if model.masquerades_all { ConfigFlags::MASQUERADE_ALL } else { 0 };
        let flags = ConfigFlags::POD_PACKETS | ConfigFlags::TRAFFIC | masks;
        let config = Config { host_netns_cookie: HOST, snat_port_min, snat_port_max, flags };
        let mut programs = Programs::load(&config, flows, |name| programs.contains(&name))?;
        programs.fill(&model.world)?;
        // Every event is compared.
        programs.watch(&EVERYTHING)?;
        Ok(Self { programs, model })
    }

    /// Forgets flows and counters, and restores the tables.
    ///
    /// # Errors
    /// When a map refuses.
    pub fn reset(&mut self) -> Result<()> {
        self.programs.forget()?;
        let model = scene::node::<F>();
        self.programs.fill_clients(&model.world)?;
        if self.model.world.records != model.world.records
            || self.model.world.backends != model.world.backends
            || self.model.world.source_ranges != model.world.source_ranges
            || self.model.world.service_ranges != model.world.service_ranges
        {
            self.programs.fill(&model.world)?;
        }
        let Node { snat_ports, masquerades_all, .. } = self.model;
        self.model = Node { snat_ports, masquerades_all, from_sockets: true, ..model };
        Ok(())
    }

    /// Changes the tables of both.
    ///
    /// # Errors
    /// When a map refuses.
    pub fn change(&mut self, change: impl FnOnce(&mut World)) -> Result<()> {
        change(&mut self.model.world);
        self.programs.fill(&self.model.world)
    }

    /// The shortest frame that the kernel runs: an Ethernet header and a byte, and for tc (newer kernels)
    /// an IP header.
    pub fn shortest(&self, hook: Hook) -> usize {
        match hook {
            Hook::Xdp => 15,
            Hook::Ingress | Hook::Egress | Hook::PodIngress | Hook::PodEgress => {
                14 + F::HEADER_LEN as usize
            }
        }
    }

    /// Runs a frame through a program and the model.
    ///
    /// # Errors
    /// When they don't agree.
    pub fn run(&mut self, hook: Hook, frame: &[u8]) -> Result<Run> {
        self.run_both(hook, frame).map(|(_, run)| run)
    }

    /// Runs a frame through a program and the model, and returns what both did.
    ///
    /// # Errors
    /// When they don't agree.
    pub fn run_both(&mut self, hook: Hook, frame: &[u8]) -> Result<(Outcome, Run)> {
        let input = match hook {
            Hook::Ingress | Hook::Egress | Hook::Xdp => device::UPLINK,
            Hook::PodIngress | Hook::PodEgress => device::POD,
        };
        self.model.world.monitor = EVERYTHING;
        self.model.world.events.take();
        // Those of frames that the model wasn't shown.
        self.programs.events()?;
        self.model.input = if hook == Hook::Xdp { XDP_INPUT } else { input };
        let expected = match hook {
            Hook::Ingress => self.model.ingress::<Tc>(frame),
            Hook::Egress => self.model.egress::<Tc>(frame),
            Hook::Xdp => self.model.ingress::<Xdp>(frame),
            Hook::PodIngress => self.model.ingress::<PodTc>(frame),
            Hook::PodEgress => self.model.egress::<PodTc>(frame),
        };
        let expected = raised_at(expected, input);
        let run = self.programs.run(hook, input, self.model.segment, frame)?;
        let events = self.model.world.events.take();
        let events: Vec<_> = events.into_iter().map(|event| Event { time: 0, ..event }).collect();
        let found = self.programs.events()?;
        let told = if events == found {
            Ok(())
        } else {
            Err(anyhow!("EVENTS: expected {events:?}, found {found:?}"))
        };
        told.and_then(|()| agree(hook, &expected, &run)).with_context(|| {
            let start = frame.get(..frame.len().min(120)).unwrap_or_default();
            format!("{hook:?} of {} bytes {start:02x?}", frame.len())
        })?;
        Ok((expected, run))
    }

    /// Runs a frame, and compares with what is expected besides.
    ///
    /// # Errors
    /// When action or bytes are other ones.
    pub fn expect(&mut self, hook: Hook, frame: &[u8], action: i32, bytes: &[u8]) -> Result<()> {
        let run = self.run(hook, frame)?;
        ensure!(run.action == action, "{hook:?}: action {} instead of {action}", run.action);
        if run.bytes == bytes { Ok(()) } else { Err(differ("the frame", bytes, &run.bytes)) }
    }

    /// The frame passes untouched.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn untouched(&mut self, hook: Hook, frame: &[u8]) -> Result<()> {
        let next = if hook == Hook::Xdp { XDP_PASS } else { TC_NEXT };
        self.expect(hook, frame, next, frame)
    }

    /// The frame, which the model can't read, passes untouched.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn alone(&self, hook: Hook, frame: &[u8]) -> Result<()> {
        let next = if hook == Hook::Xdp { XDP_PASS } else { TC_NEXT };
        let run = self.programs.run(hook, device::UPLINK, 0, frame)?;
        ensure!(run.action == next, "{hook:?}: action {}", run.action);
        if run.bytes == frame { Ok(()) } else { Err(differ("the frame", frame, &run.bytes)) }
    }

    /// Both lose the flow entries of one direction ([`FlowFlags::REPLY`] or 0), as an LRU may.
    ///
    /// # Errors
    /// When a map refuses.
    pub fn lose(&mut self, direction: u32) -> Result<()> {
        self.model.flows.retain(|_, flow| flow.flags & FlowFlags::REPLY != direction);
        let lost = |flags: u32| flags & FlowFlags::REPLY == direction;
        let left = self.programs.lose_flows::<F>(lost)?;
        ensure!(left == self.model.flows.len(), "{left} flow entries are left");
        Ok(())
    }

    /// The counters of the programs are those of the model.
    ///
    /// # Errors
    /// Shows both when they differ.
    pub fn same_counts(&mut self) -> Result<()> {
        let (expected, found) = (self.model.world.dropped(), self.programs.drops()?);
        ensure!(expected == found, "DROPS: expected {expected:?}, found {found:?}");
        let (expected, found) = (self.model.world.traffic.borrow(), self.programs.traffic()?);
        ensure!(*expected == found, "TRAFFIC: expected {expected:?}, found {found:?}");
        Ok(())
    }

    /// Sends a first packet and returns the source that the backend sees.
    ///
    /// # Errors
    /// When it isn't forwarded.
    pub fn open(&mut self, frame: &[u8]) -> Result<SocketAddr> {
        opened::<F>(&self.run(Hook::Ingress, frame)?)
    }

    /// As [`Bench::open`], and the model isn't asked.
    ///
    /// # Errors
    /// When it isn't forwarded.
    pub fn open_unseen(&mut self, frame: &[u8]) -> Result<SocketAddr> {
        opened::<F>(&self.programs.run(Hook::Ingress, device::UPLINK, 0, frame)?)
    }
}

fn every_program() -> Vec<&'static str> {
    [&Hook::ALL.map(Hook::program)[..], &SCTP_PROGRAMS, &["own_egress"]].concat()
}

/// The source of a forwarded frame.
fn opened<F: Family>(run: &Run) -> Result<SocketAddr> {
    ensure!(run.action == TC_REDIRECT, "action {} instead of a redirect", run.action);
    source::<F>(&run.bytes)
}

/// The source address and port of a frame.
fn source<F: Family>(frame: &[u8]) -> Result<SocketAddr> {
    let header = 14 + F::HEADER_LEN as usize;
    let port = frame.get(header..header + 2).context("no ports")?;
    let port = u16::from_be_bytes(port.try_into()?);
    let start = 14 + F::SOURCE_OFFSET as usize;
    let address = frame.get(start..start + size_of::<F::Addr>()).context("no address")?;
    let address = F::widen(bytemuck::pod_read_unaligned(address));
    let roles = [Role::Node, Role::Overlay].map(|role| scene::ip::<F>(role));
    let address = IpAddr::from(address);
    ensure!(roles.contains(&address), "the source {address} is not the node's");
    Ok(SocketAddr::new(address, port))
}

/// What enters the stack where it came in is not sent anywhere; else it gets that device's link address.
fn raised_at(mut outcome: Outcome, input: u32) -> Outcome {
    if outcome.verdict != Verdict::Raise {
        return outcome;
    }
    if outcome.device == input {
        return Outcome { verdict: Verdict::Deliver, ..outcome };
    }
    for (to, from) in outcome.bytes.iter_mut().zip(network::OWN) {
        *to = from;
    }
    outcome
}

/// Whether a program did what the model says.
fn agree(hook: Hook, expected: &Outcome, run: &Run) -> Result<()> {
    let xdp = hook == Hook::Xdp;
    let action = match expected.verdict {
        Verdict::Pass | Verdict::Deliver | Verdict::Raise | Verdict::HandOver if xdp => XDP_PASS,
        Verdict::Pass | Verdict::Deliver | Verdict::HandOver => TC_NEXT,
        Verdict::Drop | Verdict::Parked if xdp => XDP_DROP,
        Verdict::Drop | Verdict::Parked => TC_DROP,
        Verdict::Answer | Verdict::Reset if xdp => XDP_PASS,
        Verdict::Forward if xdp => XDP_REDIRECT,
        Verdict::Forward | Verdict::Raise | Verdict::Answer | Verdict::Reset => TC_REDIRECT,
    };
    ensure!(
        run.action == action,
        "the program says {}, the model {:?} ({action})",
        run.action,
        expected.verdict
    );
    if matches!(expected.verdict, Verdict::Drop | Verdict::Parked) {
        // Nobody sees these bytes.
        return Ok(());
    }
    let mut bytes = expected.bytes.clone();
    if xdp && expected.verdict == Verdict::Forward {
        link(&mut bytes);
    }
    if run.bytes == bytes { Ok(()) } else { Err(differ("model and program", &bytes, &run.bytes)) }
}

/// Gives a frame the link addresses with which XDP sends it.
pub fn link(frame: &mut [u8]) {
    let addresses = network::NEXT_HOP.into_iter().chain(network::OWN);
    for (to, from) in frame.iter_mut().zip(addresses) {
        *to = from;
    }
}
