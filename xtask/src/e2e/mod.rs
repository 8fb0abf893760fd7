//! `cargo xtask e2e`: Kubernetes' own tests on a real cluster whose only service proxy is lb-agent.
//!
//! This file puts the pieces in order: [`programs`] builds everything from Go modules, [`debian`] and
//! [`node_image`] make what nodes run, [`docker`] runs them, [`cluster`] joins them, [`agent`] installs
//! what is tested, [`specs`] says which tests run and what came out, [`names`] asks for Services and Pods
//! by name, and [`installation`] updates, reboots and uninstalls. No registry is asked for anything, and nothing that runs has a way out of this machine.

mod agent;
mod cluster;
mod debian;
mod docker;
mod installation;
mod names;
mod node_image;
mod programs;
mod specs;

use crate::Reported;
use crate::progress::Progress;
use crate::setup::{self, Purpose};
use crate::{image, privilege, process, workspace};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use cluster::Cluster;
use docker::Docker;
use nix::sys::signal::{SigSet, Signal};
use programs::Programs;
use regex::Regex;
use specs::Outcome;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Run Kubernetes' own tests on a real cluster with lb-agent as its service proxy
///
/// Makes a kind cluster (one control plane, two workers, IPv4 and IPv6) in a Docker daemon of its own,
/// installs the agent by its Helm chart, and runs e2e.test: all `[sig-network]` conformance tests, and those
/// of Services and DNS that need no special cluster. A Pod also asks for every kind of Service by
/// name. Then come tests of the installation: an update, a node's reboot, an uninstall. Everything is
/// built on this machine from Go
/// modules and Debian packages: the first run takes about half an hour before the cluster is up.
/// Logs and reports are in target/e2e.
#[derive(clap::Args)]
pub struct Args {
    /// What serves the cluster's Services; `both` runs one after the other and compares
    #[arg(long, value_enum, default_value_t = Choice::LbAgent)]
    proxy: Choice,
    /// Only the tests of the selection whose name matches this regular expression
    #[arg(long, value_name = "REGEX")]
    focus: Option<String>,
    /// Only the few tests that tell most (tests/e2e/short.txt), as `cargo xtask test` does
    #[arg(long, conflicts_with_all = ["focus", "cluster_only"])]
    short: bool,
    /// Only the tests of the installation
    #[arg(long, conflicts_with_all = ["focus", "short", "cluster_only", "proxy"])]
    installation: bool,
    /// Tests that run side by side
    #[arg(long, value_name = "N", default_value_t = 4)]
    procs: u32,
    /// Make the cluster and run no test
    #[arg(long, conflicts_with = "focus")]
    cluster_only: bool,
    /// Leave the cluster up and print how to use it
    #[arg(long)]
    keep: bool,
    /// Remove a cluster that was left up, and nothing else
    #[arg(long, exclusive = true)]
    remove: bool,
    /// Use this lb-agent, which `cargo xtask image` left in target/oci, instead of building it
    #[arg(long, value_name = "FILE", env = "LB_AGENT_BIN", hide = true)]
    agent: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Choice {
    /// The agent of this checkout
    LbAgent,
    /// Kubernetes' own kube-proxy, in its nftables mode
    KubeProxy,
    /// Both, one after the other
    Both,
}

/// What serves a cluster's Services.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proxy {
    LbAgent,
    KubeProxy,
}

impl Proxy {
    /// As users type it.
    pub fn name(self) -> &'static str {
        match self {
            Self::LbAgent => "lb-agent",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

impl Choice {
    fn proxies(self) -> &'static [Proxy] {
        match self {
            Self::LbAgent => &[Proxy::LbAgent],
            Self::KubeProxy => &[Proxy::KubeProxy],
            Self::Both => &[Proxy::LbAgent, Proxy::KubeProxy],
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::LbAgent => "lb-agent",
            Self::KubeProxy => "kube-proxy",
            Self::Both => "both",
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    if args.remove {
        return remove(args);
    }
    let agent = match &args.agent {
        Some(built) => built.clone(),
        None => {
            setup::ensure(Purpose::E2e)?;
            image::build()?
        }
    };
    let programs = Programs::ensure()?;
    let focus = Regex::new(args.focus.as_deref().unwrap_or_default()).context("--focus")?;
    let tests = if args.installation {
        Vec::new()
    } else {
        specs::selection(&programs, &focus, args.short)?
    };
    let any = args.installation || !tests.is_empty() || names::any(&focus);
    ensure!(any, "--focus leaves no test");
    if !privilege::is_root() {
        return again_as_root(args, Some(&agent));
    }
    let _lock = lock()?;
    let results =
        Run { args, agent: &agent, programs: &programs, focus: &focus, tests: &tests }.whole()?;
    if args.cluster_only {
        return Ok(());
    }
    report(&results)
}

/// What a run would have to install or build first, in words; `None` if it could start at once.
///
/// # Errors
/// When the pins of the programs can't be read.
pub fn missing() -> Result<Option<String>> {
    let packages = setup::missing(Purpose::E2e);
    if !packages.is_empty() {
        return Ok(Some(format!("Debian's {packages}")));
    }
    let mut parts = programs::missing()?;
    if !debian::is_made()? {
        parts.push("the nodes' Debian");
    }
    Ok(match parts.as_slice() {
        [] => None,
        [one] => Some((*one).to_owned()),
        [first, others @ ..] => Some(format!("{first} and {} others", others.len())),
    })
}

fn remove(args: &Args) -> Result<()> {
    if !privilege::is_root() {
        return again_as_root(args, None);
    }
    let _lock = lock()?;
    docker::clean()
}

/// Two runs would remove each other's cluster.
fn lock() -> Result<File> {
    workspace::lock(&workspace::cache_dir("e2e")?.join("in-use"))
}

/// Containers need root; building does not, and would leave root's files in the user's folders.
fn again_as_root(args: &Args, agent: Option<&Path>) -> Result<()> {
    let mut words: Vec<OsString> = vec!["e2e".into()];
    match agent {
        None => words.push("--remove".into()),
        Some(agent) => {
            words.extend(["--agent".into(), agent.into()]);
            if !args.installation {
                words.extend(["--proxy", args.proxy.word()].map(Into::into));
            }
            words.extend(["--procs".into(), args.procs.to_string().into()]);
        }
    }
    if let Some(focus) = &args.focus {
        words.extend(["--focus".into(), focus.into()]);
    }
    let flags = [
        ("--short", args.short),
        ("--cluster-only", args.cluster_only),
        ("--keep", args.keep),
        ("--installation", args.installation),
    ];
    words.extend(flags.iter().filter(|(_, given)| *given).map(|(flag, _)| flag.into()));
    eprintln!("e2e: containers need root: running itself again under sudo");
    let mut command = privilege::sudo_self("running containers", words)?;
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    if !status.success() {
        bail!(Reported);
    }
    Ok(())
}

/// What a run works with.
struct Run<'a> {
    args: &'a Args,
    agent: &'a Path,
    programs: &'a Programs,
    focus: &'a Regex,
    tests: &'a [String],
}

impl Run<'_> {
    /// Everything, from the leftovers of earlier runs to the removal of this one.
    fn whole(&self) -> Result<Vec<(Proxy, Vec<Outcome>)>> {
        let folder = workspace::target_dir().join("e2e");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        docker::clean().context("remove what an earlier run left")?;
        let interrupts = block_interrupts()?;
        let docker = Docker::start()?;
        remove_on_interrupt(interrupts, docker.process());
        let results = self.on(&docker, &folder);
        stay_if_interrupted();
        if self.args.keep {
            self.print_hints(&folder)?;
            return results;
        }
        docker.remove_containers()?;
        docker.stop()?;
        results
    }

    fn print_hints(&self, folder: &Path) -> Result<()> {
        let inside = format!("nsenter --net=/run/netns/{}", docker::NAME);
        let kubectl = self.programs.path("kubectl")?;
        // The last cluster is the one that is up.
        let proxy = self.args.proxy.proxies().last().copied().context("no proxy")?;
        let kubeconfig = folder.join(proxy.name()).join("kubeconfig");
        println!("the cluster is up; as root:");
        println!(
            "  {inside} {} --kubeconfig {} get pods -A",
            kubectl.display(),
            kubeconfig.display()
        );
        println!(
            "  {inside} docker -H unix:///run/{0}/docker.sock exec -it {0}-worker bash",
            docker::NAME
        );
        println!("remove it with: cargo xtask e2e --remove");
        Ok(())
    }

    fn on(&self, docker: &Docker, folder: &Path) -> Result<Vec<(Proxy, Vec<Outcome>)>> {
        let progress = Progress::new();
        let mut step = progress.step("image", "Debian, from its packages");
        let debian = debian::ensure(&mut step)?;
        step.update("the nodes' image");
        let image = node_image::get(docker, &debian, self.programs)?;
        step.finish(&image);
        let mut results = Vec::new();
        for proxy in self.args.proxy.proxies() {
            // The cluster before this one, if there was one.
            docker.remove_containers()?;
            let folder = folder.join(proxy.name());
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            results.push((*proxy, self.with_proxy(docker, &image, *proxy, &folder, &progress)?));
        }
        Ok(results)
    }

    fn with_proxy(
        &self,
        docker: &Docker,
        image: &str,
        proxy: Proxy,
        folder: &Path,
        progress: &Progress,
    ) -> Result<Vec<Outcome>> {
        let mut step = progress.step(proxy.name(), "creating the cluster");
        let cluster = Cluster::create(docker, self.programs, image, proxy, folder, &mut step)?;
        if proxy == Proxy::LbAgent {
            step.update("installing the agent");
            agent::install(&cluster, self.agent, folder)?;
        }
        cluster.wait_for_dns()?;
        step.finish("the cluster is ready");
        if self.args.cluster_only {
            return Ok(Vec::new());
        }
        let mut step = progress.step(proxy.name(), "names");
        let names = if self.args.installation {
            Vec::new()
        } else {
            names::run(&cluster, self.programs, self.focus, folder, &mut step)?
        };
        step.update(&format!("{} tests", self.tests.len()));
        let procs = self.args.procs;
        let outcomes = specs::run(&cluster, self.programs, self.tests, procs, folder, &mut step);
        let of_the_agent = match proxy {
            Proxy::LbAgent => {
                let logs = folder.join("agents.log");
                fs::write(&logs, agent::logs(&cluster))
                    .with_context(|| format!("write {}", logs.display()))?;
                let mut outcomes = vec![agent::steadiness(&cluster)?];
                if self.args.focus.is_none() && !self.args.short {
                    outcomes.extend(installation::run(&cluster, folder, &mut step));
                }
                outcomes
            }
            Proxy::KubeProxy => Vec::new(),
        };
        let mut outcomes = outcomes?;
        outcomes.extend(names);
        outcomes.extend(of_the_agent);
        let sum = specs::sum(&outcomes);
        step.finish(&format!("{} passed, {} failed", sum.passed, sum.failed));
        Ok(outcomes)
    }
}

fn report(results: &[(Proxy, Vec<Outcome>)]) -> Result<()> {
    let table = specs::table(results);
    print!("{table}");
    let file = workspace::target_dir().join("e2e/summary.txt");
    fs::write(&file, table).with_context(|| format!("write {}", file.display()))?;
    println!("logs and reports: {}", workspace::target_dir().join("e2e").display());
    let mut failed = 0;
    for (proxy, outcomes) in results {
        let sum = specs::sum(outcomes);
        ensure!(sum.passed + sum.failed > 0, "no test ran with {}", proxy.name());
        println!("{}: {} skipped themselves", proxy.name(), sum.skipped);
        println!("{}: {} passed, {} failed", proxy.name(), sum.passed, sum.failed);
        // The other side of a comparison is there to be looked at.
        if results.len() == 1 || *proxy == Proxy::LbAgent {
            failed += sum.failed;
        }
    }
    if failed > 0 {
        bail!(Reported);
    }
    Ok(())
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Does not return after an interrupt: what fails while everything is removed is no finding.
fn stay_if_interrupted() {
    while INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

/// Holds SIGINT and SIGTERM back until [`remove_on_interrupt`] waits for them.
fn block_interrupts() -> Result<SigSet> {
    let set: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    set.thread_block().context("block SIGINT and SIGTERM")?;
    Ok(set)
}

/// From now on SIGINT and SIGTERM remove the cluster and end the program.
fn remove_on_interrupt(interrupts: SigSet, daemon: u32) {
    std::thread::spawn(move || {
        if let Ok(signal) = interrupts.wait() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("\n{signal}: removing the cluster");
            // What would go on using it, or make more of it, first.
            let removed = process::end_children(daemon).and_then(|()| docker::clean());
            if let Err(error) = removed {
                eprintln!("{error:#}");
            }
            // As a shell reports a program that a signal ended.
            std::process::exit(128 + signal as i32);
        }
    });
}
