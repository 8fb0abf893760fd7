//! Taking a node over from kube-proxy, and giving it back, without breaking a connection.
//!
//! ```text
//! takeover::state(bpffs)?                 what of kube-proxy is here, what it carries, what may be removed
//! takeover::begin(&mut handover)?         before our programs are attached: whose are the flows?
//! takeover::settle(&mut handover)?        afterwards: new flows are ours
//! takeover::follow(&mut handover)?        now and then, until the last of its flows has ended
//! takeover::remove_kube_proxy(…)?         its rules, once nothing needs them
//! takeover::hand_back(…)?                 before our datapath is removed: our flows end first
//! ```
//!
//! The kernel goes on translating known flows without the rules that they were opened by, as long as it does
//! NAT in their family at all (what that takes is in `nat`); when it stops, each of them breaks.

pub mod conntrack;
pub mod ipvs;
pub mod leftovers;
pub mod legacy;
mod names;
mod nat;
mod netlink;
pub mod nftables;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lb_common::abi::TakeoverFlags;
use nix::errno::Errno;

use crate::bpf::expiry::CarriedFlows;
use crate::bpf::takeover::{Handover, Others, Services};
use crate::bpf::{Access, BpfError, cleanup};
use conntrack::{Held, Stage, Translated};
use leftovers::{LeftoverError, Leftovers};

/// How often flows are counted by those who wait for their end.
const LOOK: Duration = Duration::from_secs(1);
/// Answers to datagrams that were sent through us may take this long.
const ANSWERS: Duration = Duration::from_secs(1);

/// Why a take-over, or the way back, stopped.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// What kube-proxy has left can't be read or removed.
    #[error(transparent)]
    Leftovers(#[from] LeftoverError),
    /// Conntrack can't be read or changed.
    #[error("{what}: {source}; this needs CAP_NET_ADMIN in the node's network namespace")]
    Netfilter {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// Maps and pins.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Nobody would serve the Services.
    #[error(
        "lb-agent doesn't serve this node (no datapath under {0}): without kube-proxy's rules nobody \
         would; start `lb-agent run` first, or say --force"
    )]
    NotServed(PathBuf),
    /// The end of the rules would be the end of connections.
    #[error(
        "what kube-proxy has left still carries {0} flows, which would break: IPVS has them, or no other \
         rules on this node keep NAT going; wait for their end with --wait DURATION, or end them with \
         --force"
    )]
    StillNeeded(usize),
    /// The end of the datapath would be the end of connections.
    #[error(
        "{0} flows from outside still go through lb-agent's datapath and would break; new ones are \
         kube-proxy's already: wait with --wait DURATION, or end them with --force"
    )]
    StillCarried(usize),
}

fn failed(what: &'static str) -> impl FnOnce(Errno) -> TakeoverError {
    move |source| TakeoverError::Netfilter { what, source }
}

/// What of kube-proxy is on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// What it has left, or works with.
    pub leftovers: Leftovers,
    /// Flows to Services that the kernel translates and that have not begun to end; without a datapath of
    /// ours nobody knows the Services, and all translated flows count.
    pub carried: usize,
    /// Of these, those that would break without it.
    pub would_break: usize,
    /// Our programs are attached, and new flows are ours.
    pub is_served: bool,
}

impl State {
    /// Whether kube-proxy may be stopped (its DaemonSet deleted): its rules stay, and with them its
    /// flows; new ones are ours.
    pub fn may_stop_kube_proxy(&self) -> bool {
        self.is_served
    }

    /// Whether its rules may be removed.
    pub fn may_remove_rules(&self) -> bool {
        self.is_served && self.would_break == 0
    }
}

/// Looks at this node.
pub fn state(bpffs: &Path) -> Result<State, TakeoverError> {
    let handover = match Handover::at(bpffs, Access::Read) {
        Ok(handover) => Some(handover),
        Err(BpfError::NoDatapath(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let services = handover.as_ref().map(Handover::services).transpose()?;
    let is_served = match &handover {
        Some(handover) => {
            let flags = handover.flags();
            let is_settled = flags & TakeoverFlags::SETTLED != 0;
            is_settled && flags & TakeoverFlags::YIELDS == 0 && handover.is_attached()?
        }
        None => false,
    };
    let leftovers = Leftovers::read()?;
    let carried = carried(&leftovers, services.as_ref())?;
    let would_break = carried.iter().filter(|flow| leftovers.carry(flow)).count();
    Ok(State { leftovers, carried: carried.len(), would_break, is_served })
}

/// Flows that the kernel translates to endpoints of Services.
fn translated(leftovers: &Leftovers, services: Option<&Services>) -> Result<Others, TakeoverError> {
    let mut others = Others::list(|| leftovers.flows())?;
    others.flows.retain(|flow| {
        services.is_none_or(|known| known.of(flow.protocol, flow.frontend).is_some())
    });
    Ok(others)
}

/// Those that have not begun to end.
fn carried(
    leftovers: &Leftovers,
    services: Option<&Services>,
) -> Result<Vec<Translated>, TakeoverError> {
    let mut flows = translated(leftovers, services)?.flows;
    flows.retain(|flow| flow.stage != Stage::Closing);
    Ok(flows)
}

/// Before our programs are attached for the first time: if another proxy is here, or its flows, it
/// opens flows until [`settle`]. A restart, where our programs are at work, is none of this.
pub fn begin(handover: &mut Handover) -> Result<(), TakeoverError> {
    let flags = handover.flags();
    if flags & TakeoverFlags::SETTLED != 0 && flags & TakeoverFlags::YIELDS == 0 {
        return Ok(());
    }
    let services = handover.services()?;
    let leftovers = Leftovers::read()?;
    let others = translated(&leftovers, Some(&services))?;
    let has_rules = leftovers.any();
    if has_rules || !others.flows.is_empty() {
        let rules = if has_rules { TakeoverFlags::RULES } else { 0 };
        handover.set_flags(TakeoverFlags::BESIDE | TakeoverFlags::YIELDS | rules);
        // Sockets ask as soon as they meet our hooks.
        handover.remember(&services, &others)?;
    }
    Ok(())
}

/// After our programs were attached: what was opened until now stays the other proxy's, what comes is
/// ours.
pub fn settle(handover: &mut Handover) -> Result<(), TakeoverError> {
    let flags = handover.flags();
    if flags & TakeoverFlags::YIELDS == 0 {
        handover.set_flags(flags | TakeoverFlags::SETTLED);
        return Ok(());
    }
    // Conntrack knows what was opened before our hooks saw it; they have marked what came since.
    let remembered = remember(handover);
    let rules = flags & TakeoverFlags::RULES;
    handover.set_flags(TakeoverFlags::BESIDE | TakeoverFlags::SETTLED | rules);
    remembered?;
    // What was opened in this moment.
    let (flows, datagrams) = remember(handover)?;
    tracing::info!(
        flows,
        datagrams,
        "another service proxy works here, or has worked: flows that it carries stay its until they \
         end, new ones are ours"
    );
    Ok(())
}

/// Marks the other proxy's flows; how many it has, and how many of them had to be marked.
fn remember(handover: &Handover) -> Result<(usize, usize), TakeoverError> {
    let services = handover.services()?;
    let others = translated(&Leftovers::read()?, Some(&services))?;
    Ok((others.flows.len(), handover.remember(&services, &others)?))
}

/// Forgets the other proxy's flows that have ended; with the last one, and its rules, that there was
/// another proxy. Whether sockets that it led may be nobody's now.
pub fn follow(handover: &mut Handover) -> Result<bool, TakeoverError> {
    let flags = handover.flags();
    if flags & TakeoverFlags::BESIDE == 0 {
        return Ok(false);
    }
    let services = handover.services()?;
    let leftovers = Leftovers::read()?;
    let others = translated(&leftovers, Some(&services))?;
    handover.follow_others(&others)?;
    if leftovers.any() {
        handover.set_flags(flags | TakeoverFlags::RULES);
        return Ok(false);
    }
    let is_over = others.flows.iter().all(|flow| flow.stage == Stage::Closing);
    let beside = if is_over { 0 } else { TakeoverFlags::BESIDE };
    handover.set_flags(flags & !TakeoverFlags::RULES & !TakeoverFlags::BESIDE | beside);
    if is_over {
        tracing::info!("no flow of another service proxy is left, and none of its rules");
    }
    Ok(true)
}

/// Removes kube-proxy's rules, and nothing else; what was there.
///
/// Not as long as that would break flows: those are waited for, for `wait` at most. `is_forced`: now,
/// whatever it breaks.
pub fn remove_kube_proxy(
    bpffs: &Path,
    wait: Duration,
    is_forced: bool,
) -> Result<Leftovers, TakeoverError> {
    let began = Instant::now();
    loop {
        let state = state(bpffs)?;
        if !state.leftovers.any() {
            return Ok(state.leftovers);
        }
        if is_forced || state.may_remove_rules() {
            state.leftovers.remove()?;
            return Ok(state.leftovers);
        }
        if !state.is_served {
            return Err(TakeoverError::NotServed(bpffs.to_owned()));
        }
        if began.elapsed() >= wait {
            return Err(TakeoverError::StillNeeded(state.would_break));
        }
        std::thread::sleep(LOOK);
    }
}

/// Where another proxy's rules are: lets it open flows, and waits until those from outside that we carry
/// have ended, for `wait` at most. For a stopped agent, before its datapath is removed.
pub fn hand_back(bpffs: &Path, wait: Duration) -> Result<(), TakeoverError> {
    let mut handover = match Handover::at(bpffs, Access::ReadWrite) {
        Ok(handover) => handover,
        Err(BpfError::NoDatapath(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let leftovers = Leftovers::read()?;
    if !leftovers.any() {
        return Ok(());
    }
    let _unused = cleanup::keep_unused(bpffs)?;
    let flags = handover.flags();
    let mut held = Held::default();
    hold(&mut held, &handover.carried()?)?;
    handover.set_flags(flags | TakeoverFlags::BESIDE | TakeoverFlags::YIELDS);
    let began = Instant::now();
    loop {
        let carried = handover.carried()?;
        hold(&mut held, &carried)?;
        if carried.count == 0 {
            break;
        }
        if began.elapsed() >= wait {
            return Err(TakeoverError::StillCarried(carried.count));
        }
        std::thread::sleep(LOOK);
    }
    // Sockets' datagrams go by the other proxy first; answers to earlier ones still show the Service.
    cleanup::stop_translating_sockets(bpffs)?;
    std::thread::sleep(ANSWERS);
    hold(&mut held, &CarriedFlows::default())
}

/// Keeps the other proxy's masquerade off the ports of our flows.
fn hold(held: &mut Held, carried: &CarriedFlows) -> Result<(), TakeoverError> {
    held.replace(&carried.masqueraded).map_err(failed("make our flows known to conntrack"))
}
