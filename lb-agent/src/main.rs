//! Entry point: the command line, and an exit status.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use lb_agent::args::{Args, CleanupArgs, Command, PinArgs};
use lb_agent::bpf::Kernel;
use lb_agent::bpf::cleanup::cleanup;
use lb_agent::bpf::expiry::FlowTables;
use lb_agent::bpf::read::Reader;
use lb_agent::bpf::sockets::RememberedSockets;
use lb_agent::datapath::NodeDatapath;
use lb_agent::run::datapath::{Opened, Setup};
use lb_agent::{
    config_file, doctor, inspect, logging, monitor, run, status, takeover, top, trace, wait,
};

fn main() -> ExitCode {
    let mut args =
        Args::try_parse().unwrap_or_else(|error| config_file::flags::explain(error).exit());
    if matches!(args.command, Command::Doctor(_) | Command::Top(_))
        && args.logging.log_level == "info"
    {
        // What they do is in what they print.
        args.logging.log_level = "warn".to_owned();
    }
    match dispatch(args) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("lb-agent: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: Args) -> anyhow::Result<ExitCode> {
    logging::start(&args.logging)?;
    // Of commands that looked and found something wrong.
    let mut exit = ExitCode::SUCCESS;
    let done = match args.command {
        Command::Run(args) => {
            let hostname = nix::unistd::gethostname().context("read this machine's name")?;
            let told = config_file::configure(*args, &hostname.to_string_lossy())?;
            if let Some(file) = &told.file {
                config_file::log(&told.notes, file.path());
            }
            run::run(told.config, told.file, open)
        }
        Command::Cleanup(args) => clean_up(&args),
        Command::Wait(args) => wait::wait(&args),
        Command::Status(args) => {
            let found = status::look(&args.serving, &args.pins)?;
            exit = found.state.exit_status().into();
            print(&inspect::status::render(&found, args.output)?)
        }
        Command::Services(args) => {
            let rows = Reader::open(&args.pins.bpffs)?.services()?;
            print(&inspect::services::render(rows, &args)?)
        }
        Command::Backends(args) => {
            let rows = Reader::open(&args.pins.bpffs)?.backends()?;
            print(&inspect::backends::render(rows, &args)?)
        }
        Command::Flows(args) => {
            let rows = Reader::open(&args.pins.bpffs)?.flows()?;
            print(&inspect::flows::render(rows, &args)?)
        }
        Command::Top(args) => top::top(&args),
        Command::Monitor(args) => monitor::monitor(&args),
        Command::Doctor(args) => {
            let hostname = nix::unistd::gethostname().context("read this machine's name")?;
            let findings = doctor::examine(&args, &hostname.to_string_lossy())?;
            exit = doctor::worst(&findings).exit_status().into();
            print(&doctor::render(&findings, args.output)?)
        }
        Command::Trace(args) => {
            let explanation = trace::trace(&args)?;
            print(&inspect::trace::render(&explanation, args.output)?)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "lb-agent", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    };
    done.map(|()| exit)
}

/// Removes what is ours, or kube-proxy's, and says what it was.
fn clean_up(args: &CleanupArgs) -> anyhow::Result<()> {
    let CleanupArgs { kube_proxy, wait, force, pins: PinArgs { bpffs } } = args;
    if *kube_proxy {
        let removed = takeover::remove_kube_proxy(bpffs, **wait, *force)?;
        return print(&if removed.any() {
            format!("removed {removed} of kube-proxy")
        } else {
            "nothing to remove: kube-proxy has left nothing here".to_owned()
        });
    }
    if !force {
        takeover::hand_back(bpffs, **wait)?;
    }
    let removed = cleanup(bpffs)?;
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
