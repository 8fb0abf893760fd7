//! A case from its beginning to its end.

use super::case::{Ask, Case, How, Step};
use super::compare::{self, Datapath};
use super::product::{Product, object_name};
use super::scenery;
use anyhow::{Context, Result, ensure};
use lb_agent::contract::affinity::Memory;
use lb_agent::contract::{Answer, Cluster, Here, Verdict, answer};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Flows that are opened for each endpoint of which one is to be seen: one of six stays unseen after 180
/// once in 10¹⁴ questions.
const TRIES: usize = 30;

/// The model's side of a case.
pub(super) struct Known {
    pub(super) cluster: Cluster,
    pub(super) here: Here,
    memory: Memory,
    now: u64,
}

impl Known {
    pub(super) fn new(case: &Case) -> Self {
        Self {
            cluster: Cluster::default(),
            here: scenery::here(case),
            memory: Memory::default(),
            now: 0,
        }
    }

    pub(super) fn take(&mut self, step: &Step) {
        let Cluster { services, slices, node } = &mut self.cluster;
        let name = |name: &Option<String>| object_name(name.as_deref().unwrap_or_default());
        match step {
            Step::Service(object) => {
                services.insert(name(&object.metadata.name), (**object).clone());
            }
            Step::NoService(name) => {
                services.remove(&object_name(name));
            }
            Step::Slice(object) => {
                slices.insert(name(&object.metadata.name), (**object).clone());
            }
            Step::NoSlice(name) => {
                slices.remove(&object_name(name));
            }
            Step::Node(object) => *node = Some((**object).clone()),
            Step::Wait(seconds) => self.now += seconds,
            Step::Tidy | Step::Restart | Step::Ask(_) => return,
        }
        self.memory.settle(&self.cluster, &self.here);
    }

    fn answer(&self, memory: &Memory, ask: &Ask) -> Answer {
        answer(&self.cluster, &self.here, memory, self.now, &ask.question())
    }
}

/// Plays a case: the datapath, on the maps as the agent wrote them change by change, answers each question
/// as the model does, and so does one on maps that were written at once.
///
/// # Errors
/// At the first difference.
pub fn play(case: &Case, datapath: &mut impl Datapath) -> Result<()> {
    let mut known = Known::new(case);
    let mut product = Product::new(case)?;
    datapath.masquerade_all(case.masquerades_all);
    datapath.set_memory(false)?;
    datapath.set_memory(true)?;
    datapath.set_time(0);
    for (number, step) in (1..).zip(&case.steps) {
        known.take(step);
        product.take(step)?;
        datapath.set_time(known.now);
        if let Step::Ask(ask) = step
            && datapath.can_be_asked(ask)
        {
            one(&mut known, &product, datapath, ask).with_context(|| format!("step {number}"))?;
        }
    }
    Ok(())
}

/// What the model alone says to the questions of a case; of several endpoints the first is chosen.
pub fn answers(case: &Case) -> Vec<(Ask, Answer)> {
    let mut known = Known::new(case);
    let mut answers = Vec::new();
    for step in &case.steps {
        known.take(step);
        if let Step::Ask(ask) = step {
            let answer = known.answer(&known.memory, ask);
            if let (Some(key), Verdict::Translate(to)) = (&answer.remembered_as, &answer.verdict)
                && let Some(backend) = to.backends.keys().next()
            {
                known.memory.remember(key, *backend, known.now);
            }
            answers.push((ask.clone(), answer));
        }
    }
    answers
}

fn one(
    known: &mut Known,
    product: &Product,
    datapath: &mut impl Datapath,
    ask: &Ask,
) -> Result<()> {
    datapath.load(&product.world())?;
    if datapath.remembers() {
        let due = known.answer(&known.memory, ask);
        let did = compare::ask(datapath, ask, &due, 0)?;
        if let (Some(key), Some(backend)) = (&due.remembered_as, did) {
            known.memory.remember(key, backend, known.now);
        }
    }
    // From here on, as if nobody had asked before.
    let due = known.answer(&Memory::default(), ask);
    let first = anew(datapath, ask, &due, 0)?;
    if let Verdict::Translate(translation) = &due.verdict {
        let wanted: BTreeSet<SocketAddr> = translation.backends.keys().copied().collect();
        let mut seen: BTreeSet<SocketAddr> = first.into_iter().collect();
        for number in 1..TRIES * wanted.len() {
            if seen == wanted {
                break;
            }
            seen.extend(anew(datapath, ask, &due, number as u16)?);
        }
        ensure!(seen == wanted, "{ask}: of {wanted:?} only {seen:?} are ever chosen");
    }
    datapath.load(&product.fresh()?)?;
    let fresh = anew(datapath, ask, &due, 0).context("with maps that were written at once")?;
    // Every node chooses the same endpoint for a client, whatever it has been through.
    let consistent = ask.how != How::Packet || first == fresh;
    ensure!(
        consistent,
        "{ask}: {fresh:?} instead of {first:?} with maps that were written at once"
    );
    datapath.set_memory(true)
}

/// Asks with another port of the client, or another socket, and without memory.
fn anew(
    datapath: &mut impl Datapath,
    ask: &Ask,
    due: &Answer,
    number: u16,
) -> Result<Option<SocketAddr>> {
    datapath.set_memory(false)?;
    // Port 0 has a flow already.
    compare::ask(datapath, ask, due, number + 1)
}
