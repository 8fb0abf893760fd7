//! What the traffic counters cost: programs with them and the same without, in turns, so that what else
//! the machine does slows both alike.

use std::path::Path;

use anyhow::{Context, Result};
use lb_common::abi::{Config, ConfigFlags};
use lb_lab::{Agent, AgentOptions, Family, Lab, Xdp};

use super::peer::{CONNECTS, Found, Plan, Way};
use super::pods::{CLIENT, PAIRS, Pair, carry_out, start_server, write_manifests};
use super::programs::{Case, Hook, Programs, Side, arp, cases, neighbours};
use super::report::Report;
use super::sample::{Samples, excess, time};

/// Rounds; what is said is their median and what lies between the lowest and the highest.
const ROUNDS: u16 = 9;
/// Packets of each kind in a round.
const RUNS: u16 = 500;
/// First client whose flow nobody has opened.
const FRESH: u16 = 3_000;
/// Percent of connects that are faster than the figure of a way: what else the machine does only makes
/// connects slower, so the fast ones tell what they cost.
const FAST: usize = 10;
/// Rounds of connects.
const CONNECT_ROUNDS: usize = 60;

/// Packets, on the maps that the other packets are measured on.
pub(super) fn packets(
    lab: &Lab,
    bpffs: &Path,
    config: &Config,
    uplink: u32,
    report: &mut Report,
) -> Result<()> {
    eprintln!("bench: the packet programs with and without traffic counters");
    neighbours(lab)?;
    let load = |flags| -> Result<Programs> {
        let mut programs = Programs::load(bpffs, &Config { flags, ..*config }, uplink)?;
        programs.allow_xdp()?;
        Ok(programs)
    };
    let both =
        [load(config.flags & !ConfigFlags::TRAFFIC)?, load(config.flags | ConfigFlags::TRAFFIC)?];
    report.section(
        "Traffic counters: per packet",
        &format!(
            "The same frames as above through programs with and without the counters (--traffic-counters), \
             packet by packet in turns: {ROUNDS} rounds of {RUNS} packets for either. A round's figure is the \
             ratio of the two medians, both less the floor; the ratio is the median of the rounds, the \
             spread their lowest and highest. What a counted packet does more is one lookup in a per-CPU hash and two \
             additions; the first one of an endpoint inserts."
        ),
    );
    let mut rows = Vec::new();
    for hook in Hook::ALL {
        let floor = Case {
            name: String::new(),
            frame: Box::new(|_| arp()),
            action: hook.next(),
            opens: false,
        };
        let [floor, _] = round(&both, hook, &floor, 0)?.map(|samples| samples.median());
        for family in Family::BOTH {
            for side in Side::BOTH {
                for case in cases(lab, hook, family, side)? {
                    let name = format!("{}, {family}: {}", hook.name(), case.name);
                    rows.push(ratio(name, &both, hook, &case, floor)?);
                }
            }
        }
    }
    report.table(["Program", "without", "with", "with / without", "spread"], &rows);
    Ok(())
}

/// A case's row: medians over all rounds, and the ratios of the rounds.
fn ratio(
    name: String,
    both: &[Programs; 2],
    hook: Hook,
    case: &Case,
    floor: u64,
) -> Result<[String; 5]> {
    let (mut all, mut ratios) = ([Samples::default(), Samples::default()], Samples::default());
    for number in 0..ROUNDS {
        let [without, with] =
            round(both, hook, case, number)?.map(|samples| samples.median().saturating_sub(floor));
        all.iter_mut().zip([without, with]).for_each(|(all, one)| all.0.push(one));
        // In thousandths.
        ratios.0.push(with * 1_000 / without.max(1));
    }
    let [without, with] = all.map(|samples| time(samples.median()));
    let show = |percent| format!("{:.2}", ratios.percentile(percent) as f64 / 1_000.0);
    Ok([name, without, with, show(50), format!("{} to {}", show(0), show(100))])
}

/// One round of a case: packets without counters, and with.
fn round(both: &[Programs; 2], hook: Hook, case: &Case, number: u16) -> Result<[Samples; 2]> {
    let mut samples = [Samples::default(), Samples::default()];
    for run in 0..RUNS {
        for turn in 0..2 {
            // Either is first equally often.
            let which = (turn + run) % 2;
            let client = if case.opens { FRESH + (number * RUNS + run) * 2 + which } else { run };
            let (Some(programs), Some(samples)) =
                (both.get(usize::from(which)), samples.get_mut(usize::from(which)))
            else {
                continue;
            };
            samples.0.push(programs.run(hook, &(case.frame)(client), 1, case.action)?);
        }
    }
    Ok(samples)
}

/// Connects of sockets: node-a's agent counts, node-b's doesn't, and the client's sockets are made now in
/// the cgroup of a pod of the one and now in that of the other.
pub(super) fn connects(lab: &Lab, agent: &Path, report: &mut Report) -> Result<()> {
    eprintln!("bench: connects with and without traffic counters");
    let [pair, _] = &PAIRS;
    let manifests = lab.directory().join("bench-counted");
    write_manifests(lab, pair, &manifests)?;
    let _server = start_server(lab, pair.pod)?;
    let start = |node: &str, counters: &str| {
        let arguments = ["--traffic-counters", counters].map(str::to_owned).into();
        let options =
            AgentOptions { xdp: Xdp::Off, arguments, ..AgentOptions::manifests(agent, &manifests) };
        Agent::start(lab, node, &options).with_context(|| format!("start the agent of {node}"))
    };
    let _agents = [start("node-a", "on")?, start("node-b", "off")?];
    report.section(
        "Traffic counters: per connect",
        &format!(
            "Connects to a ClusterIP in a row, closed by a reset, from one pod to another of its node: {CONNECT_ROUNDS} \
             rounds in which each way has its turn of 100. Counted sockets are made in a cgroup whose agent \
             counts, the others in one whose agent doesn't; \"again\" is the latter a second time: its \
             difference is the noise. A way's figure is the connect than which a tenth are faster; the spread is \
             from the lowest tenth to the highest tenth of the rounds' ratios."
        ),
    );
    let mut rows = Vec::new();
    for family in Family::BOTH {
        let [without, with, again] = measure_connects(lab, pair, family)?;
        let base = without.connect.percentile(FAST);
        let percent =
            |found: &Found| format!("{:+.1} %", excess(found.connect.percentile(FAST), base));
        rows.push([
            family.to_string(),
            time(base),
            percent(&with),
            spread(&with, &without),
            percent(&again),
            spread(&again, &without),
        ]);
    }
    report.table(["", "without", "with", "spread", "again", "spread"], &rows);
    Ok(())
}

/// The figure of each round.
fn by_round(found: &Found) -> Samples {
    let rounds = found.connect.0.chunks(CONNECTS);
    Samples(rounds.map(|round| Samples(round.to_vec()).percentile(FAST)).collect())
}

fn measure_connects(lab: &Lab, pair: &Pair, family: Family) -> Result<[Found; 3]> {
    let address = pair.cluster_ip(family).parse().context("the address of a Service")?;
    let way = |pod| -> Result<Way> { Ok(Way { address, cgroup: lab.cgroup(pod)? }) };
    let ways = vec![way("pod-b1")?, way(CLIENT)?, way("pod-b1")?];
    carry_out(lab, &Plan { ways, rounds: CONNECT_ROUNDS })
}

/// Of the ratios of the rounds, as percentages.
fn spread(found: &Found, base: &Found) -> String {
    let (found, base) = (by_round(found), by_round(base));
    // In thousandths.
    let ratios = found.0.iter().zip(&base.0);
    let ratios = Samples(ratios.map(|(found, base)| found * 1_000 / (*base).max(1)).collect());
    let show = |percent| format!("{:+.1}", ratios.percentile(percent) as f64 / 10.0 - 100.0);
    format!("{} to {} %", show(10), show(90))
}
