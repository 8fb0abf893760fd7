//! `cargo xtask picture`: docs/top.svg, a recording of `lb-agent top` beside real requests.
//!
//! [`traffic`] says who asks whom and when, [`svg`] writes what is on the screen then.

mod svg;
mod traffic;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_lab::{Options, Terminal};

use crate::demo::programs::{ProgramArgs, Programs};
use crate::demo::stage::{self, Stage};
use crate::privilege;
use crate::workspace;

/// Of the terminal, in cells.
const SIZE: (u16, u16) = (32, 128);
/// The node that is looked at.
const NODE: &str = "node-a";
const PATIENCE: Duration = Duration::from_secs(10);

/// Record docs/top.svg: `lb-agent top` on the demo's network under load
///
/// Builds the agent, makes the demo's network (nothing leaves this machine), lets pods and a client send
/// requests for half a minute, and writes what `lb-agent top` shows on a terminal meanwhile.
#[derive(clap::Args)]
pub struct Args {
    /// Where to write the picture [default: docs/top.svg]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    programs: ProgramArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let programs = args.programs.find_or_build()?;
    let output = args.output.clone().unwrap_or_else(|| workspace::root().join("docs/top.svg"));
    let file = || format!("write {}", output.display());
    // Made before sudo, so that it is the caller's.
    File::options().create(true).append(true).open(&output).with_context(file)?;
    if !privilege::is_root() {
        let mut words: Vec<OsString> = vec!["picture".into(), "--output".into()];
        words.push(output.into());
        words.extend(programs.options());
        let mut command = privilege::sudo_self("making network namespaces", words)?;
        let status = command.status().with_context(|| format!("run {command:?}"))?;
        ensure!(status.success(), "no picture was taken (see above)");
        return Ok(());
    }
    let picture = record(&programs)?;
    fs::write(&output, picture).with_context(file)?;
    println!("{}", output.display());
    Ok(())
}

fn record(programs: &Programs) -> Result<String> {
    let interrupts = stage::block_interrupts()?;
    let options = Options { pods_per_node: 3, masquerade: true, ..Options::default() };
    let stage = Stage::up(None, &options, programs)?;
    stage::remove_on_interrupt(interrupts, stage.lab().id());
    stage.start_agents()?;
    let (rows, columns) = SIZE;
    let top = stage.agent_command(NODE, &["top", "--interval", "500ms"])?;
    let mut terminal = Terminal::start(top, rows, columns)?;
    terminal.wait_for("Services", PATIENCE, |text| text.contains("SERVICE"))?;
    traffic::run(stage.lab())?;
    let text = terminal.wait_for("a healthy node", PATIENCE, |text| text.contains("  ok  "))?;
    ensure!(text.contains("nodeport1"), "the busiest Services aren't on the screen:\n{text}");
    let picture = svg::picture(&terminal.screen(), "lb-agent top");
    terminal.press("q")?;
    let status = terminal.wait(PATIENCE)?;
    ensure!(status.success(), "lb-agent top: {status}\n{}", terminal.text());
    stage.down()?;
    Ok(picture)
}
