//! Running other programs: output to a log, a time limit, nothing left behind.

use crate::progress::Step;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How long a program may take to end after SIGTERM, and so to clean up.
const GRACE: Duration = Duration::from_secs(10);

/// How a program ended.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    /// By itself.
    Exited(ExitStatus),
    /// By us, because it took longer than its limit.
    TimedOut(Duration),
}

impl Ending {
    /// Whether it exited with status 0.
    pub fn success(self) -> bool {
        match self {
            Self::Exited(status) => status.success(),
            Self::TimedOut(_) => false,
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "{status}"),
            Self::TimedOut(limit) => {
                write!(f, "ended after its time limit of {} s", limit.as_secs())
            }
        }
    }
}

/// Runs `command` with both outputs in `log` and shows its last line in `step`.
///
/// # Errors
/// When the log can't be written or the program can't be started; how it ended is no error here.
pub fn run_logged(
    command: &mut Command,
    log: &Path,
    limit: Duration,
    step: &mut Step,
) -> Result<Ending> {
    let create = || format!("create the log {}", log.display());
    let output = File::create(log).with_context(create)?;
    let errors = output.try_clone().with_context(create)?;
    let mut follow = File::open(log).with_context(create)?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    let mut child = command.spawn().with_context(|| format!("run {command:?}"))?;
    let mut fresh = Vec::new();
    wait(&mut child, limit, || {
        fresh.clear();
        if follow.read_to_end(&mut fresh).is_ok()
            && let Some(line) =
                String::from_utf8_lossy(&fresh).lines().rev().find(|l| !l.is_empty())
        {
            step.update(line.trim());
        }
    })
}

/// Waits for `child` up to `limit`, calling `tick` meanwhile; then ends it and all that it started.
fn wait(child: &mut Child, limit: Duration, mut tick: impl FnMut()) -> Result<Ending> {
    let started = Instant::now();
    loop {
        tick();
        if let Some(status) = child.try_wait().context("wait for a program")? {
            return Ok(Ending::Exited(status));
        }
        if started.elapsed() >= limit {
            end_tree(child)?;
            return Ok(Ending::TimedOut(limit));
        }
        std::thread::sleep(POLL);
    }
}

/// Ends a program and its descendants.
fn end_tree(child: &mut Child) -> Result<()> {
    let tree = tree_of(i32::try_from(child.id()).context("a process id beyond i32")?);
    // Reaped at once, or it would stay in /proc and seem alive.
    end(&tree, || child.try_wait().context("wait for a program that was ended").map(drop))?;
    child.wait().context("wait for a program that was killed")?;
    Ok(())
}

/// Ends every program that we started, but the one with the id `except`, with their descendants. Another
/// thread waits for them.
///
/// # Errors
/// When a process id is beyond i32.
pub fn end_children(except: u32) -> Result<()> {
    let own = i32::try_from(std::process::id()).context("a process id beyond i32")?;
    let except = i32::try_from(except).context("a process id beyond i32")?;
    let spared = tree_of(except);
    let mut tree = tree_of(own);
    tree.retain(|process| process.id != own && !spared.contains(process));
    end(&tree, || Ok(()))
}

/// Ends processes: SIGTERM, so that tests remove their namespaces, then SIGKILL.
fn end(processes: &[Process], mut tick: impl FnMut() -> Result<()>) -> Result<()> {
    let signal = |signal| {
        for process in processes.iter().filter(|process| process.is_alive()) {
            // A process that ended meanwhile is what we want.
            let _ = kill(Pid::from_raw(process.id), signal);
        }
    };
    signal(Signal::SIGTERM);
    let started = Instant::now();
    while started.elapsed() < GRACE && processes.iter().any(Process::is_alive) {
        tick()?;
        std::thread::sleep(POLL);
    }
    signal(Signal::SIGKILL);
    Ok(())
}

/// A process as /proc shows it. The start time tells it from a later one with the same number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Process {
    id: i32,
    parent: i32,
    /// In clock ticks since boot.
    started: u64,
}

impl Process {
    fn read(id: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The command in parentheses may hold anything, so fields count from the last parenthesis:
        // state is the third of proc_pid_stat(5), the parent the fourth, the start time the 22nd.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let started = fields.nth(17)?.parse().ok()?;
        Some(Self { id, parent, started })
    }

    fn is_alive(&self) -> bool {
        Self::read(self.id).is_some_and(|now| now.started == self.started)
    }
}

/// Process `root` and every process below it.
fn tree_of(root: i32) -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<_> = entries
        .filter_map(|entry| Process::read(entry.file_name().to_str()?.parse().ok()?))
        .collect();
    let mut tree: Vec<_> = all.iter().filter(|process| process.id == root).copied().collect();
    let mut next = 0;
    while let Some(parent) = tree.get(next).map(|process| process.id) {
        tree.extend(all.iter().filter(|process| process.parent == parent));
        next += 1;
    }
    tree
}

/// Standard output of a program that must succeed.
///
/// # Errors
/// Names the command and what it wrote to stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program that talks to the reader, up to `limit`.
///
/// # Errors
/// When it can't be started, fails, or takes longer.
pub fn run_shown(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child =
        command.stdin(Stdio::null()).spawn().with_context(|| format!("run {command:?}"))?;
    let ending = wait(&mut child, limit, || {})?;
    if !ending.success() {
        bail!("{command:?} failed ({ending})");
    }
    Ok(())
}

/// The path of `program`, looked for on PATH and where distributions keep the administrator's tools.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<_> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.into_iter().map(|dir| dir.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;

    fn run(script: &str, limit: Duration) -> (Ending, String) {
        let name = std::thread::current().name().unwrap_or_default().replace("::", "-");
        let log = std::env::temp_dir().join(format!("lb-xtask-{}-{name}", std::process::id()));
        let mut step = Progress::new().step("test", script);
        let mut shell = Command::new("sh");
        let ending = run_logged(shell.args(["-c", script]), &log, limit, &mut step).expect("a run");
        let text = std::fs::read_to_string(&log).expect("the log");
        std::fs::remove_file(&log).expect("the log is ours to remove");
        (ending, text)
    }

    #[test]
    fn both_outputs_and_the_exit_status_are_kept() {
        let (ending, text) = run("echo out; echo err >&2; exit 3", Duration::from_secs(30));
        assert_eq!(text, "out\nerr\n");
        assert!(matches!(ending, Ending::Exited(status) if status.code() == Some(3)));
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended_with_all_it_started() {
        let script = "sleep 300 & echo $!; (sleep 301 & echo $!; wait) & wait";
        let (ending, text) = run(script, Duration::from_millis(500));
        assert!(matches!(ending, Ending::TimedOut(_)), "{ending}");
        let pids: Vec<i32> = text.lines().map(|line| line.parse().expect("a pid")).collect();
        assert_eq!(pids.len(), 2);
        for pid in pids {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            assert!(!command.is_ok_and(|command| command.starts_with("sleep")), "{pid} still runs");
        }
    }
}
