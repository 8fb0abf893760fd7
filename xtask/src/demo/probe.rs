//! Sends requests from a host of the stage and judges the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use lb_lab::{Answer, Dual, Family, Outcome, Request, Transport, histogram};

use super::board::{Board, expect};
use super::stage::Stage;

/// Requests for each family and transport: with four equal backends one stays without an answer
/// once in ten million runs.
const REQUESTS: u32 = 60;
/// Patience with a request; the network is this machine.
const PATIENCE: Duration = Duration::from_secs(1);
/// A refusal that takes longer was a timeout of some kind.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Which source address the servers must have seen.
#[derive(Clone, Copy)]
pub(super) enum Seen {
    /// Not this step's matter; it is shown.
    Any,
    /// The client's own.
    Client,
}

/// What is asked of whom, and who must answer.
#[derive(Clone, Copy)]
pub(super) struct Probe<'a> {
    /// Host that asks.
    pub from: &'a str,
    /// What is asked, as the reader knows it.
    pub what: &'a str,
    /// Addresses that are asked.
    pub to: Dual,
    /// Port, for both transports.
    pub port: u16,
    /// Servers that must answer, each at least once, and nobody else.
    pub servers: &'a [&'a str],
    /// Source that the servers must have seen.
    pub seen: Seen,
}

impl Probe<'_> {
    /// Asks over both families and transports; shows the distribution, records one check each.
    pub fn run(&self, stage: &Stage, board: &mut Board) -> Result<()> {
        let mut all = Vec::new();
        let mut checks = Vec::new();
        for family in Family::BOTH {
            for transport in Transport::BOTH {
                let to = SocketAddr::new(self.to.of(family), self.port);
                let request = Request { to, ..Request::new(transport, to.ip(), to.port()) };
                let outcomes = ask(stage, self.from, &request.patience(PATIENCE))?;
                let client = stage.lab().host(self.from)?.address.of(family);
                let mut claim = format!("{transport} {} → {to}", self.from);
                let _ = write!(claim, "  seen as {}", list(sources(&outcomes)));
                checks.push((claim, self.judge(&outcomes, to, client)));
                all.extend(outcomes);
            }
        }
        let title = format!("{} from {}, {} requests", self.what, self.from, all.len());
        board.bars(title, histogram(&all));
        for (claim, verdict) in checks {
            board.check(claim, verdict);
        }
        Ok(())
    }

    fn judge(&self, outcomes: &[Outcome], to: SocketAddr, client: IpAddr) -> Result<(), String> {
        let answers: Vec<&Answer> = outcomes.iter().flatten().collect();
        expect(answers.len() == outcomes.len(), || {
            format!("{} of {} failed: {}", outcomes.len() - answers.len(), outcomes.len(), {
                counts(&histogram(outcomes))
            })
        })?;
        expect(answers.iter().all(|answer| answer.intact), || "payloads arrived damaged".into())?;
        let servers: BTreeSet<_> = answers.iter().map(|answer| answer.server.as_str()).collect();
        expect(servers == self.servers.iter().copied().collect(), || {
            format!("answered by {}, not by {}", list(servers), self.servers.join(", "))
        })?;
        // The application must never learn of the translation.
        for told in answers.iter().flat_map(|a| [a.peer_name, a.received_from]).flatten() {
            expect(told == to, || format!("the application was told {told}"))?;
        }
        match self.seen {
            Seen::Any => Ok(()),
            Seen::Client => expect(answers.iter().all(|a| a.seen.ip() == client), || {
                format!("seen as {}, not as {client}", list(sources(outcomes)))
            }),
        }
    }
}

/// One request first: if nobody answers it, waiting for all the others would tell no more.
fn ask(stage: &Stage, from: &str, request: &Request) -> Result<Vec<Outcome>> {
    let peer = stage.lab().peer(from)?;
    let mut outcomes = peer.request(&request.clone().times(1))?;
    if outcomes.iter().all(Result::is_ok) {
        outcomes.extend(peer.request(&request.clone().times(REQUESTS - 1))?);
    }
    Ok(outcomes)
}

/// One request with a peculiar socket; the server and the addresses that the application sees.
pub(super) fn peculiar(
    stage: &Stage,
    board: &mut Board,
    from: &str,
    claim: &str,
    request: &Request,
    told: SocketAddr,
) -> Result<()> {
    let outcome = stage.lab().peer(from)?.ask(&request.clone().patience(PATIENCE))?;
    let verdict = match outcome {
        Ok(answer) => {
            let shown = [answer.peer_name, answer.received_from].into_iter().flatten();
            let wrong = shown.filter(|address| *address != told).collect::<Vec<_>>();
            expect(wrong.is_empty(), || format!("the application was told {}", list(wrong)))
        }
        Err(failure) => Err(failure.to_string()),
    };
    board.check(format!("{claim}: {from} is told {told}"), verdict);
    Ok(())
}

/// Who refuses, which decides what an application can learn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RefusedBy {
    /// The Service: every kind of socket is told.
    Service,
    /// A host without a server on the port: ICMP tells connected sockets only (udp(7)).
    ClosedPort,
}

/// Sockets must be refused at once.
pub(super) fn refused(
    stage: &Stage,
    board: &mut Board,
    from: &str,
    (to, port): (Dual, u16),
    by: RefusedBy,
) -> Result<()> {
    for address in to.both() {
        let udp = Request::udp(address, port);
        let mut kinds =
            vec![("TCP", Request::tcp(address, port)), ("UDP, connected", udp.clone().connected())];
        if by == RefusedBy::Service {
            kinds.push(("UDP, unconnected", udp));
        }
        for (kind, request) in kinds {
            let outcome = stage.lab().peer(from)?.ask(&request.patience(PATIENCE))?;
            let to = SocketAddr::new(address, port);
            let mut claim = format!("{kind} {from} → {to} is refused");
            let verdict = match outcome {
                Ok(answer) => Err(format!("{} answered", answer.server)),
                Err(failure) => {
                    let _ = write!(claim, "  {} µs", failure.micros);
                    let at_once = u128::from(failure.micros) < AT_ONCE.as_micros();
                    expect(failure.errno == "ECONNREFUSED" && at_once, || failure.to_string())
                }
            };
            board.check(claim, verdict);
        }
    }
    Ok(())
}

fn sources(outcomes: &[Outcome]) -> BTreeSet<IpAddr> {
    outcomes.iter().flatten().map(|answer| answer.seen.ip()).collect()
}

/// `pod-a1 12, pod-b1 9`.
pub(super) fn counts(histogram: &BTreeMap<String, u64>) -> String {
    let parts: Vec<_> = histogram.iter().map(|(name, count)| format!("{name} {count}")).collect();
    if parts.is_empty() { "nothing".into() } else { parts.join(", ") }
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let parts: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    if parts.is_empty() { "nothing".into() } else { parts.join(", ") }
}
