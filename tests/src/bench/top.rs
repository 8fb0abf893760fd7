//! What `lb-agent top` costs where there are ten thousand Services.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_agent::bpf::read::Reader;
use lb_lab::{Lab, Terminal};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

use super::SERVICES;
use super::report::Report;
use super::sample::{Samples, nanos, time};
use super::scale::NODE;

/// Looks that are measured.
const LOOKS: u32 = 50;
/// Lines and columns of the terminal.
const SIZE: (u16, u16) = (50, 160);
/// How long the program is watched.
const WATCHED: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures and reports, beside the agent of [`NODE`].
pub(super) fn measure(lab: &Lab, agent: &Path, report: &mut Report) -> Result<()> {
    eprintln!("bench: lb-agent top with {SERVICES} Services");
    report.section(
        "`lb-agent top` with ten thousand Services",
        &format!(
            "Beside the agent of the last section. A look, by the modules that the program uses: pins \
             opened, every Service port with its endpoints and counters and the drops read, names sorted; {LOOKS} \
             looks. The program itself: `lb-agent top` on a terminal of {} lines for {} s, a look a second, its \
             questions to the agent and its drawing included.",
            SIZE.0,
            WATCHED.as_secs(),
        ),
    );
    let bpffs = lab.bpffs(NODE);
    let [mut took, mut busy] = [Samples::default(), Samples::default()];
    for _ in 0..LOOKS {
        let (started, begin) = (Instant::now(), used(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
        let reader = Reader::open(&bpffs)?;
        let services = reader.services()?;
        reader.drops_by_reason()?;
        took.0.push(nanos(started.elapsed()));
        busy.0.push(nanos(used(ClockId::CLOCK_THREAD_CPUTIME_ID)?.saturating_sub(begin)));
        ensure!(services.len() >= SERVICES as usize, "{} Services were seen", services.len());
    }
    let mut command = lab.command(NODE, agent)?;
    command.arg("top").env("LB_BPFFS", &bpffs);
    let mut terminal = Terminal::start(command, SIZE.0, SIZE.1)?;
    terminal.wait_for("Services", PATIENCE, |text| text.contains("CONN/S"))?;
    let pid = Pid::from_raw(i32::try_from(terminal.pid())?);
    let clock = clock_getcpuclockid(pid).context("find the clock of lb-agent top")?;
    let begin = used(clock)?;
    std::thread::sleep(WATCHED);
    let share = used(clock)?.saturating_sub(begin).div_f64(WATCHED.as_secs_f64());
    terminal.press("q")?;
    ensure!(terminal.wait(PATIENCE)?.success(), "lb-agent top did not end well");
    report.table(
        ["`lb-agent top`", ""],
        &[
            ["one look, p50".to_owned(), time(took.median())],
            ["one look, p99".to_owned(), time(took.percentile(99))],
            ["processor time of one look, p50".to_owned(), time(busy.median())],
            ["processor time of the program in a second".to_owned(), time(nanos(share))],
        ],
    );
    Ok(())
}

/// Processor time so far.
fn used(clock: ClockId) -> Result<Duration> {
    Ok(clock.now().context("read processor time")?.into())
}
