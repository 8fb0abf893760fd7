//! A loaded object beside a model of the same node: both get every frame, and must agree.

use super::programs::{Hook, Programs, Run};
use super::{differ, network};
use anyhow::{Context, Result, ensure};
use lb_common::abi::{Config, FlowFlags};
use lb_common::family::Family;
use lb_common::lb::Verdict;
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::node::{Node, Outcome, Tc, Xdp};
use lb_common::model::scene::{self, Role, device};
use lb_common::model::world::World;
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
        Self::load(model, &["tc_ingress", "tc_egress", "xdp_ingress"])
    }

    /// A second bench in the same network, for tc ingress alone and with this range of SNAT ports.
    ///
    /// # Errors
    /// When the kernel refuses a program or a map.
    pub fn with_snat_ports(ports: (u16, u16)) -> Result<Self> {
        let mut model = scene::node::<F>();
        model.snat_ports = ports;
        Self::load(model, &["tc_ingress"])
    }

    fn load(model: Node<F>, programs: &[&str]) -> Result<Self> {
        let (snat_port_min, snat_port_max) = model.snat_ports;
        let config = Config { host_netns_cookie: 0, snat_port_min, snat_port_max, pad: 0 };
        let mut programs = Programs::load(&config, |name| programs.contains(&name))?;
        programs.fill(&model.world)?;
        Ok(Self { programs, model })
    }

    /// Forgets flows and counters, and restores the tables.
    ///
    /// # Errors
    /// When a map refuses.
    pub fn reset(&mut self) -> Result<()> {
        self.programs.forget()?;
        let model = scene::node::<F>();
        if self.model.world.records != model.world.records
            || self.model.world.backends != model.world.backends
            || self.model.world.source_ranges != model.world.source_ranges
        {
            self.programs.fill(&model.world)?;
        }
        self.model = Node { snat_ports: self.model.snat_ports, ..model };
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
            Hook::Ingress | Hook::Egress => 14 + F::HEADER_LEN as usize,
            Hook::Xdp => 15,
        }
    }

    /// Runs a frame through a program and the model.
    ///
    /// # Errors
    /// When they don't agree.
    pub fn run(&mut self, hook: Hook, frame: &[u8]) -> Result<Run> {
        self.model.input = if hook == Hook::Xdp { XDP_INPUT } else { device::UPLINK };
        let expected = match hook {
            Hook::Ingress => self.model.ingress::<Tc>(frame),
            Hook::Egress => self.model.egress::<Tc>(frame),
            Hook::Xdp => self.model.ingress::<Xdp>(frame),
        };
        let run = self.programs.run(hook, device::UPLINK, self.model.segment, frame)?;
        agree(hook, &expected, &run).with_context(|| {
            let start = frame.get(..frame.len().min(120)).unwrap_or_default();
            format!("{hook:?} of {} bytes {start:02x?}", frame.len())
        })?;
        Ok(run)
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
    pub fn same_drops(&mut self) -> Result<()> {
        let (expected, found) = (self.model.world.dropped(), self.programs.drops()?);
        ensure!(expected == found, "DROPS: expected {expected:?}, found {found:?}");
        Ok(())
    }

    /// Sends a first packet and returns the source that the backend sees.
    ///
    /// # Errors
    /// When it isn't forwarded.
    pub fn open(&mut self, frame: &[u8]) -> Result<SocketAddr> {
        let run = self.run(Hook::Ingress, frame)?;
        ensure!(run.action == TC_REDIRECT, "action {} instead of a redirect", run.action);
        source::<F>(&run.bytes)
    }
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

/// Whether a program did what the model says.
fn agree(hook: Hook, expected: &Outcome, run: &Run) -> Result<()> {
    let xdp = hook == Hook::Xdp;
    let action = match expected.verdict {
        Verdict::Pass | Verdict::Deliver if xdp => XDP_PASS,
        Verdict::Pass | Verdict::Deliver => TC_NEXT,
        Verdict::Drop if xdp => XDP_DROP,
        Verdict::Drop => TC_DROP,
        Verdict::Answer | Verdict::Reset if xdp => XDP_PASS,
        Verdict::Forward if xdp => XDP_REDIRECT,
        Verdict::Forward | Verdict::Answer | Verdict::Reset => TC_REDIRECT,
    };
    ensure!(
        run.action == action,
        "the program says {}, the model {:?} ({action})",
        run.action,
        expected.verdict
    );
    if expected.verdict == Verdict::Drop {
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
