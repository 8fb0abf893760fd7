//! The loaded packet programs against the model of the contract, on maps as the agent writes them.

use super::Case;
use super::bench::Bench;
use super::programs::Hook;
use crate::contract::case::{Ask, How};
use crate::contract::compare::{Call, Datapath, Way};
use crate::contract::play::play;
use crate::contract::{cases, random};
use anyhow::{Result, bail};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::socket::SocketVerdict;
use lb_common::model::node::Outcome;
use lb_common::model::world::World;
use std::net::SocketAddr;

/// For each family.
const CASES: u32 = 150;

pub(super) fn table<F: AnswerFormat>() -> Vec<Case<F>> {
    vec![("random clusters are served as the contract says", random_clusters)]
}

fn random_clusters<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let mut masquerading = Bench::masquerading()?;
    random(cases(CASES), |case| {
        let bench = if case.masquerades_all { &mut masquerading } else { &mut *bench };
        play(case, &mut Loaded { bench })
    })
}

/// The programs, and beside them the model of `lb_common`, which must do the same.
struct Loaded<'a, F: AnswerFormat> {
    bench: &'a mut Bench<F>,
}

impl<F: AnswerFormat> Datapath for Loaded<'_, F> {
    /// What the programs were loaded with.
    fn masquerade_all(&mut self, _is_wanted: bool) {}

    fn load(&mut self, world: &World) -> Result<()> {
        self.bench.programs.forget()?;
        self.bench.programs.fill(world)?;
        self.bench.model.flows.clear();
        self.bench.model.world = world.clone();
        Ok(())
    }

    fn remembers(&self) -> bool {
        false
    }

    fn set_time(&mut self, _now: u64) {}

    fn set_memory(&mut self, _present: bool) -> Result<()> {
        self.bench.model.world.affinity.clear();
        self.bench.programs.forget_affinity()
    }

    fn can_be_asked(&self, ask: &Ask) -> bool {
        ask.how == How::Packet && ask.destination.is_ipv4() == F::HAS_HEADER_CHECKSUM
    }

    fn packet(&mut self, way: Way, frame: &[u8]) -> Result<Outcome> {
        let hook = match way {
            Way::In => Hook::Ingress,
            Way::Out => Hook::Egress,
            Way::FromPod => Hook::PodIngress,
            Way::ToPod => Hook::PodEgress,
        };
        self.bench.run_both(hook, frame).map(|(outcome, _)| outcome)
    }

    fn call(&mut self, _call: &Call) -> Result<(SocketVerdict, Option<SocketAddr>)> {
        bail!("packet programs have no sockets")
    }
}
