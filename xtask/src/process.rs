//! Running other programs: output to a log, a time limit, nothing left behind.

use crate::progress::Step;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
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

/// Ends a program and its descendants: SIGTERM, so that tests remove their namespaces, then SIGKILL.
fn end_tree(child: &mut Child) -> Result<()> {
    let root = Pid::from_raw(i32::try_from(child.id()).context("a process id beyond i32")?);
    let tree = descendants(root);
    for pid in &tree {
        // A process that ended meanwhile is what we want.
        let _ = kill(*pid, Signal::SIGTERM);
    }
    let started = Instant::now();
    while started.elapsed() < GRACE && child.try_wait()?.is_none() {
        std::thread::sleep(POLL);
    }
    for pid in descendants(root) {
        let _ = kill(pid, Signal::SIGKILL);
    }
    child.wait().context("wait for a program that was killed")?;
    Ok(())
}

/// `root` and every process below it, by the parents that /proc names.
fn descendants(root: Pid) -> Vec<Pid> {
    let mut children = BTreeMap::<i32, Vec<i32>>::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The command in parentheses may hold anything, so fields count from the last parenthesis.
        let after = stat.rsplit_once(')').map(|(_, after)| after);
        if let Some(parent) = after.and_then(|a| a.split_whitespace().nth(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root.as_raw()];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.get(pid).into_iter().flatten().copied().collect::<Vec<_>>());
        next += 1;
    }
    found.into_iter().map(Pid::from_raw).collect()
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
