//! `cargo xtask demo`: the main job on a network of namespaces, step by step.
//!
//! [`programs`] builds what runs, [`stage`] sets it up, [`steps`] says what is shown and checked,
//! [`board`] collects what came out and [`screen`] prints it. This file only puts them in order.

mod board;
mod change;
mod probe;
pub(crate) mod programs;
pub(crate) mod screen;
pub(crate) mod stage;
mod steps;

use anyhow::{Context, Result, ensure};
use lb_lab::Options;

use self::programs::{ProgramArgs, Programs};
use self::screen::Screen;
use self::stage::Stage;
use crate::privilege;

/// Show the main job on a network of namespaces, step by step
///
/// Builds the agent, makes two nodes with pods, a client outside and a site on the Internet on this
/// machine (nothing leaves it), runs one agent per node with the manifests of deploy/examples, and
/// shows what every kind of Service does. The exit status says whether all of it was right.
#[derive(clap::Args)]
pub struct Args {
    /// Leave the network up and print how to look around
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    programs: ProgramArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let programs = args.programs.find_or_build()?;
    if !privilege::is_root() {
        return again_as_root(args, &programs);
    }
    let failed = show(args, &programs)?;
    ensure!(failed == 0, "{failed} of the demo's checks failed (see above)");
    Ok(())
}

/// Namespaces need root; building does not, and would leave root's files in the target directory.
fn again_as_root(args: &Args, programs: &Programs) -> Result<()> {
    let mut words = vec!["demo".into()];
    words.extend(programs.options());
    if args.keep {
        words.push("--keep".into());
    }
    eprintln!("demo: network namespaces need root: running itself again under sudo");
    let mut command = privilege::sudo_self("making network namespaces", words)?;
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "the demo failed (see above)");
    Ok(())
}

/// Shows everything; the number of failed checks.
fn show(args: &Args, programs: &Programs) -> Result<usize> {
    let mut screen = Screen::new();
    screen.introduce();
    let working = screen.working("making the network, starting servers and agents");
    let interrupts = stage::block_interrupts()?;
    let options = Options { pods_per_node: 3, masquerade: true, ..Options::default() };
    let stage = Stage::up(None, &options, programs)?;
    stage::remove_on_interrupt(interrupts, stage.lab().id());
    let started = stage.start_agents();
    drop(working);
    if let Err(error) = started {
        // Without agents every step would fail for this one reason.
        return Err(error.context("the agents did not start"));
    }
    for (index, step) in steps::STEPS.iter().enumerate() {
        screen.open(index + 1, steps::STEPS.len(), step.title, step.why);
        let working = screen.working(step.title);
        let board = steps::run(step, &stage);
        drop(working);
        stage::stay_if_interrupted();
        screen.close(&board);
    }
    let failed = screen.failed();
    if failed > 0 {
        screen.logs(&stage.agent_logs());
    }
    screen.result();
    if args.keep {
        screen.look_around(&stage.keep()?);
    } else {
        stage.down()?;
    }
    Ok(failed)
}
