//! The measurements of `cargo xtask bench`, each against what it competes with in the same run.
//!
//! One lab of three nodes holds everything: agents on `node-a` and `node-b` for the traffic
//! ([`pods`]), `node-c` for ten thousand Services ([`scale`] in this process, [`process`] in a real
//! agent). This file decides the order; [`report`] what the reader sees. The program starts itself
//! again inside pods and nodes ([`peer`], [`api`]). Built with optimisation only.

mod api;
mod counters;
mod objects;
mod peer;
mod pods;
mod process;
mod programs;
mod quiet;
mod report;
mod sample;
mod scale;
mod top;
mod visible;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use lb_lab::{Lab, Options};
use nix::sys::signal::{SigSet, Signal};
use report::Report;

/// Number of Services at scale.
const SERVICES: u32 = 10_000;
/// Endpoints of each.
const ENDPOINTS: u32 = 10;

#[derive(Parser)]
#[command(name = "lb-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure everything (needs root)
    Run(RunArgs),
    /// Inside a pod: serve the measurements' requests
    Serve,
    /// Inside a pod: measure what the plan on standard input says
    Measure,
    /// Inside a node: the API server of ten thousand Services
    Api,
}

#[derive(clap::Args)]
struct RunArgs {
    /// The lb-agent to measure
    #[arg(long)]
    agent: PathBuf,
    /// The lab's helper program
    #[arg(long)]
    peer: PathBuf,
    /// Where the report is written, as Markdown
    #[arg(long)]
    report: PathBuf,
    /// What the report says of the source
    #[arg(long)]
    commit: String,
    /// What the report says of the compiler
    #[arg(long)]
    rustc: String,
    /// Measure this part alone
    #[arg(long, value_enum)]
    only: Option<Part>,
}

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Traffic from pods
    Connections,
    /// Plan, tables and packet programs in this process
    Scale,
    /// A real agent
    Process,
    /// The traffic counters
    Counters,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Serve => peer::serve(),
        Command::Measure => peer::measure(),
        Command::Api => api::serve(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lb-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &RunArgs) -> Result<()> {
    let interrupts: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    interrupts.thread_block().context("block SIGINT and SIGTERM")?;
    lb_lab::use_peer_binary(&args.peer);
    let mut report = Report::new(&args.commit, &args.rustc);
    quiet::wait(&mut report)?;
    eprintln!("bench: a lab of three nodes");
    let lab = Lab::up(&Options { nodes: 3, pods_per_node: 2, ..Options::default() })?;
    remove_on_interrupt(interrupts, lab.id());
    let wanted = |part| args.only.is_none_or(|only| only == part);
    if wanted(Part::Connections) {
        pods::measure(&lab, &args.agent, &mut report).context("measure connections")?;
    }
    if wanted(Part::Scale) || wanted(Part::Counters) {
        scale::measure(&lab, &wanted, &mut report).context("measure plan and apply")?;
    }
    if wanted(Part::Counters) {
        counters::connects(&lab, &args.agent, &mut report).context("measure counted connects")?;
    }
    if wanted(Part::Process) {
        process::measure(&lab, &args.agent, &mut report).context("measure the agent's process")?;
    }
    lab.down()?;
    std::fs::write(&args.report, report.markdown())
        .with_context(|| format!("write {}", args.report.display()))
}

/// From now on SIGINT and SIGTERM remove the lab, with all that runs in it, and end the program.
fn remove_on_interrupt(interrupts: SigSet, id: &str) {
    let id = id.to_owned();
    std::thread::spawn(move || {
        if let Ok(signal) = interrupts.wait() {
            if let Err(error) = Lab::clean(&id) {
                eprintln!("{error:#}");
            }
            // As a shell reports a program that a signal ended.
            std::process::exit(128 + signal as i32);
        }
    });
}
