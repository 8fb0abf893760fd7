//! Entry point: the command line, and an exit status.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use lb_agent::args::{Args, Command, PinArgs};
use lb_agent::bpf::Kernel;
use lb_agent::bpf::cleanup::cleanup;
use lb_agent::bpf::expiry::FlowTables;
use lb_agent::bpf::pins::mount_bpffs;
use lb_agent::bpf::read::Reader;
use lb_agent::bpf::sockets::RememberedSockets;
use lb_agent::config::Config;
use lb_agent::datapath::NodeDatapath;
use lb_agent::run::datapath::{Opened, Setup};
use lb_agent::{inspect, logging, run};

fn main() -> ExitCode {
    let args = Args::parse();
    match dispatch(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lb-agent: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: Args) -> anyhow::Result<()> {
    logging::start(&args.logging)?;
    match args.command {
        Command::Run(args) => {
            let hostname = nix::unistd::gethostname().context("read this machine's name")?;
            let config = Config::new(*args, &hostname.to_string_lossy())?;
            run::run(config, open)
        }
        Command::Cleanup(PinArgs { bpffs }) => {
            let removed = cleanup(&bpffs)?;
            print(&match removed.directory {
                None => "nothing to remove: lb-agent has no datapath here".to_owned(),
                Some(directory) => format!(
                    "removed {} attachments and {} maps ({})",
                    removed.attachments,
                    removed.maps,
                    directory.display()
                ),
            })
        }
        Command::MountBpffs(PinArgs { bpffs }) => {
            let said = if mount_bpffs(&bpffs)? { "mounted" } else { "there is already" };
            print(&format!("{said} a BPF file system on {}", bpffs.display()))
        }
        Command::Services(args) => {
            let rows = Reader::open(&args.pins.bpffs)?.services()?;
            print(&inspect::services::render(rows, &args)?)
        }
        Command::Flows(args) => {
            let rows = Reader::open(&args.pins.bpffs)?.flows()?;
            print(&inspect::flows::render(rows, &args)?)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "lb-agent", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// The error and its causes. Most of ours name their cause with the remedy after it: those that have
/// been said are not said again.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let separator = if text.is_empty() { "" } else { ": " };
            text.extend([separator, &cause]);
        }
    }
    text
}

/// Opens the kernel's side.
fn open(setup: &Setup) -> anyhow::Result<Opened<NodeDatapath, FlowTables, RememberedSockets>> {
    let kernel = Kernel::open(setup)?;
    let (flows, sockets) = (kernel.flows()?, kernel.sockets()?);
    let counters = Arc::new(kernel.counters()?);
    Ok(Opened { datapath: NodeDatapath::new(kernel), flows, sockets, counters })
}

/// Prints to standard output. A reader that had enough (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
