//! Flows of datagrams that go on through everything that happens to a cluster: they may keep their endpoint
//! as long as it serves, and no datagram reaches one that has left.

use super::case::{Ask, Case, How, Step};
use super::compare::{Datapath, Way, ends};
use super::host::Host;
use super::play::Known;
use super::product::Product;
use anyhow::{Context, Result, ensure};
use lb_agent::cluster::snapshot::Protocol;
use lb_agent::contract::{self, Place};
use lb_common::lb::Verdict;
use lb_common::model::frame::{Segment, Transport};
use std::net::SocketAddr;

/// The first flow's port; each has one of its own.
const FIRST_PORT: u16 = 41_000;

/// A flow, and where its last datagram went.
struct Flow {
    ask: Ask,
    port: u16,
    endpoint: Option<SocketAddr>,
}

/// Plays a case on the host build of the decisions; after every step each flow so far sends a datagram.
/// Returns how often a flow lost its endpoint.
///
/// # Errors
/// When a datagram reaches an endpoint that no Service has.
pub fn play(case: &Case) -> Result<u32> {
    let (mut known, mut product) = (Known::new(case), Product::new(case)?);
    let mut host = Host::default();
    host.masquerade_all(case.masquerades_all);
    let mut flows: Vec<Flow> = Vec::new();
    let mut lost = 0;
    for (number, step) in (1..).zip(&case.steps) {
        known.take(step);
        product.take(step)?;
        host.change(product.world());
        if let Step::Ask(ask) = step
            && ask.how == How::Packet
            && ask.protocol == Protocol::Udp
        {
            let port = FIRST_PORT + flows.len() as u16;
            flows.push(Flow { ask: ask.clone(), port, endpoint: None });
        }
        let serving = contract::serving(&known.cluster, &known.here, Protocol::Udp);
        for flow in &mut flows {
            let went = datagram(&mut host, flow)?;
            let is_right = went.is_none_or(|endpoint| serving.contains(&endpoint));
            ensure!(
                is_right,
                "step {number}: a datagram of {} reaches {went:?}, which serves nothing",
                flow.ask
            );
            lost += u32::from(flow.endpoint.is_some_and(|endpoint| !serving.contains(&endpoint)));
            flow.endpoint = went;
        }
    }
    Ok(lost)
}

/// Where the flow's next datagram goes; `None` when it isn't translated.
fn datagram(host: &mut Host, flow: &Flow) -> Result<Option<SocketAddr>> {
    let Flow { ask, port, .. } = flow;
    let source = SocketAddr::new(ask.source.context("a packet has a source")?, *port);
    let sent = Segment::new(source, ask.destination, Transport::Udp);
    let way = if ask.place == Place::Pod { Way::FromPod } else { Way::In };
    let outcome = host.packet(way, &sent.frame())?;
    match outcome.verdict {
        Verdict::Deliver | Verdict::Forward => {
            ends(&outcome.bytes, source.is_ipv4()).map(|(_, endpoint)| Some(endpoint))
        }
        Verdict::Pass
        | Verdict::Answer
        | Verdict::Reset
        | Verdict::Raise
        | Verdict::HandOver
        | Verdict::Parked
        | Verdict::Drop => Ok(None),
    }
}
