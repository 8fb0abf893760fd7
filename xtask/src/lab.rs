//! `cargo xtask lab`: the demo's network for developers, left up until it is taken down.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, ensure};
use clap::{Subcommand, ValueEnum};
use lb_lab::{Cni, Lab, Options, PodNetwork, ReversePath};

use crate::demo::programs::Programs;
use crate::demo::screen::print_hints;
use crate::demo::stage::Stage;
use crate::privilege;
use crate::setup::{self, Purpose};

/// The demo's network for developers: up, down, exec, list
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a network: nodes, pods with servers, a client outside, a site on the Internet
    Up(Box<Up>),
    /// Remove a network and everything that runs in it
    Down {
        #[command(flatten)]
        which: Which,
        /// Remove every network but those of tests and demos that are running
        #[arg(long)]
        all: bool,
    },
    /// Run a command inside a host: its network namespace, its cgroup, its name
    Exec {
        #[command(flatten)]
        which: Which,
        /// node-a, pod-a1, client, site, …
        host: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Print the networks that are up, with their hosts and addresses
    List,
}

#[derive(clap::Args)]
struct Which {
    /// Name of the network, 1 to 16 letters and digits
    #[arg(long, default_value = "dev")]
    id: String,
}

#[derive(clap::Args)]
struct Up {
    #[command(flatten)]
    which: Which,
    /// Run an agent on every node, with a copy of deploy/examples
    #[arg(long)]
    agents: bool,
    /// Number of nodes
    #[arg(long, value_name = "N", default_value_t = 2)]
    nodes: u8,
    /// Pods on each node
    #[arg(long, value_name = "N", default_value_t = 3)]
    pods: u8,
    /// How pods are joined to their node
    #[arg(long, value_enum, default_value_t)]
    cni: CniChoice,
    /// Pods of different nodes reach each other through a VXLAN overlay (MTU 1450)
    #[arg(long)]
    overlay: bool,
    /// No strict reverse path check on the nodes
    #[arg(long)]
    no_rp_filter: bool,
    /// Pods keep their own address towards everything outside the pod network
    #[arg(long)]
    no_masquerade: bool,
    /// A router with this path MTU between the client and the nodes
    #[arg(long, value_name = "BYTES")]
    client_path_mtu: Option<u16>,
    /// Switch transmit checksum offload off everywhere (needed for XDP on veth)
    #[arg(long)]
    no_offload: bool,
    /// Use this lb-agent instead of building one
    #[arg(long, value_name = "FILE", env = "LB_AGENT_BIN", hide = true)]
    agent: Option<PathBuf>,
    /// Use this lab-peer instead of building one
    #[arg(long, value_name = "FILE", env = "LB_LAB_PEER", hide = true)]
    peer: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum CniChoice {
    /// A veth and a host route per pod
    #[default]
    Ptp,
    /// All pods of a node on a bridge
    Bridge,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    match &args.action {
        Action::Up(up) => bring_up(up),
        Action::List => list(),
        Action::Down { .. } | Action::Exec { .. } if !privilege::is_root() => again_as_root(&[]),
        Action::Down { which: _, all: true } => {
            let unowned = Lab::list().into_iter().filter(|id| Lab::owner(id).is_none());
            unowned.into_iter().try_for_each(|id| Lab::clean(&id))
        }
        Action::Down { which, all: false } => Lab::clean(&which.id),
        Action::Exec { which, host, command } => exec(&which.id, host, command),
    }
}

fn bring_up(up: &Up) -> Result<()> {
    let programs = match (&up.agent, &up.peer) {
        (agent, Some(peer)) if agent.is_some() || !up.agents => {
            Programs { agent: agent.clone(), peer: peer.clone() }
        }
        (_, _) => {
            setup::ensure(Purpose::Demo)?;
            Programs::build(up.agents)?
        }
    };
    if !privilege::is_root() {
        // Building is done as the caller; the rest needs root.
        return again_as_root(&programs.options());
    }
    let stage = Stage::up(Some(&up.which.id), &options(up), &programs)?;
    if up.agents {
        stage.start_agents()?;
    }
    print_hosts(stage.lab());
    print_hints(&stage.keep()?);
    Ok(())
}

fn options(up: &Up) -> Options {
    Options {
        nodes: up.nodes,
        pods_per_node: up.pods,
        cni: match up.cni {
            CniChoice::Ptp => Cni::PointToPoint,
            CniChoice::Bridge => Cni::Bridge,
        },
        pod_network: if up.overlay { PodNetwork::Vxlan } else { PodNetwork::Routed },
        reverse_path: if up.no_rp_filter { ReversePath::Off } else { ReversePath::Strict },
        masquerade: !up.no_masquerade,
        client_path_mtu: up.client_path_mtu,
        checksum_offload: !up.no_offload,
    }
}

/// This same command under sudo, with `more` arguments.
fn again_as_root(more: &[std::ffi::OsString]) -> Result<()> {
    let words = std::env::args_os().skip(1).chain(more.iter().cloned());
    let mut command = privilege::sudo_self("entering network namespaces", words)?;
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    leave_with(status)
}

fn exec(id: &str, host: &str, words: &[String]) -> Result<()> {
    let lab = Lab::attach(id)?;
    let (program, arguments) = words.split_first().context("no command")?;
    let mut command: Command = lab.command(host, program)?;
    let status = command.args(arguments).status();
    leave_with(status.with_context(|| format!("run {program} in {host}"))?)
}

/// Hands the command's exit status on.
fn leave_with(status: ExitStatus) -> Result<()> {
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => {
            ensure!(status.success(), "the command was ended by a signal ({status})");
            Ok(())
        }
    }
}

fn list() -> Result<()> {
    let ids = Lab::list();
    if ids.is_empty() {
        println!("no network is up; make one with: cargo xtask lab up");
    }
    ids.iter().try_for_each(|id| Lab::attach(id).map(|lab| print_hosts(&lab)))
}

fn print_hosts(lab: &Lab) {
    match Lab::owner(lab.id()).filter(|pid| *pid != std::process::id()) {
        Some(pid) => println!("network {} of process {pid}", lab.id()),
        None => println!("network {}", lab.id()),
    }
    for host in &lab.topology().hosts {
        println!("  {:8} {:15} {}", host.name, host.address.v4.to_string(), host.address.v6);
    }
}
