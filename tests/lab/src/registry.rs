//! The labs of this machine: one directory each below [`ROOT`], which holds what is needed to
//! find, enter and remove a lab from another process, even after a crash of its owner.
//!
//! Decides which lab belongs to whom and takes a lab apart. Does not know how one is wired.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::command::run_with_input;
use crate::topology::{Options, Topology};

/// Where labs are recorded.
const ROOT: &str = "/run/lb-lab";
/// How long processes in a lab's cgroups get to vanish after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// A process, safe against reuse of its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    pid: u32,
    /// Field 22 of /proc/PID/stat, clock ticks since boot.
    started: u64,
}

impl Owner {
    fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // The command name, field 2, may hold spaces and parentheses: count after the last one.
        let started = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(19))
            .and_then(|field| field.parse().ok())
            .with_context(|| format!("{path} has no start time"))?;
        Ok(Self { pid, started })
    }

    fn is_alive(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }
}

/// What is written to a lab's directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    options: Options,
    /// `None`: kept until somebody removes it by hand.
    owner: Option<Owner>,
}

/// One lab's place on the machine.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The lab's id.
    pub id: String,
    /// Its directory: record, logs, bpf mounts.
    pub directory: PathBuf,
    /// Root of its cgroups.
    pub cgroup: PathBuf,
}

impl Entry {
    /// Where the lab called `id` is or would be.
    fn of(id: &str) -> Result<Self> {
        ensure!(
            !id.is_empty() && id.len() <= 16 && id.bytes().all(|b| b.is_ascii_alphanumeric()),
            "a lab's id is 1 to 16 letters and digits, not `{id}`"
        );
        Ok(Self {
            id: id.to_owned(),
            directory: Path::new(ROOT).join(id),
            cgroup: cgroup2_root()?.join(format!("lb-lab-{id}")),
        })
    }

    /// Claims an id: the given one, or a fresh one made from our pid.
    pub fn claim(id: Option<&str>, options: &Options) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(ROOT).with_context(|| format!("create {ROOT} (are you root?)"))?;
        for _ in 0..1000 {
            let fresh = || {
                let number = COUNTER.fetch_add(1, Ordering::Relaxed);
                format!("{:x}n{number}", std::process::id())
            };
            let entry = Self::of(&id.map_or_else(fresh, str::to_owned))?;
            match fs::create_dir(&entry.directory) {
                Ok(()) => {
                    entry.write(&Record {
                        options: options.clone(),
                        owner: Some(Owner::of(std::process::id())?),
                    })?;
                    return Ok(entry);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    ensure!(
                        id.is_none(),
                        "lab `{}` exists already; remove it with `cargo xtask lab down --id {}`",
                        entry.id,
                        entry.id
                    );
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("create {}", entry.directory.display()));
                }
            }
        }
        bail!("no free lab id below {ROOT}")
    }

    /// Finds a lab that is up.
    pub fn find(id: &str) -> Result<(Self, Options)> {
        let entry = Self::of(id)?;
        let record = entry.read().with_context(|| {
            format!("no lab `{id}` is up (those that are: {})", list().join(", "))
        })?;
        Ok((entry, record.options))
    }

    /// Makes the lab outlive its owner: no sweep removes it any more.
    pub fn disown(&self) -> Result<()> {
        let record = self.read()?;
        self.write(&Record { owner: None, ..record })
    }

    fn record_path(&self) -> PathBuf {
        self.directory.join("lab.json")
    }

    fn read(&self) -> Result<Record> {
        let path = self.record_path();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    fn write(&self, record: &Record) -> Result<()> {
        let (path, draft) = (self.record_path(), self.directory.join("lab.json.new"));
        fs::write(&draft, serde_json::to_vec_pretty(record)?)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Name of the namespace of `host`.
    pub fn namespace(&self, host: &str) -> String {
        format!("lblab-{}-{host}", self.id)
    }

    /// Removes everything of the lab: processes, cgroups, mounts, namespaces, its directory. Goes
    /// on after a failure and reports the first.
    pub fn remove(&self) -> Result<()> {
        let _lock = self.lock(FlockArg::LockExclusive);
        self.dismantle()
    }

    /// Two removals at once would each trip over what the other removes. `None`: there is nothing
    /// to lock any more, or somebody else has it.
    fn lock(&self, how: FlockArg) -> Option<Flock<fs::File>> {
        let file = fs::File::open(self.record_path()).ok()?;
        Flock::lock(file, how).ok()
    }

    fn dismantle(&self) -> Result<()> {
        let steps = [
            kill_all(&self.cgroup),
            remove_cgroups(&self.cgroup),
            self.unmount_all(),
            self.remove_namespaces(),
            match fs::remove_dir_all(&self.directory) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("remove {}", self.directory.display()))
                }
                Ok(()) | Err(_) => Ok(()),
            },
        ];
        steps.into_iter().collect::<Result<()>>().with_context(|| format!("remove lab {}", self.id))
    }

    fn unmount_all(&self) -> Result<()> {
        let mut first = Ok(());
        for point in mount_points_below(&self.directory)? {
            let result = umount2(&point, MntFlags::MNT_DETACH)
                .with_context(|| format!("unmount {}", point.display()));
            first = first.and(result);
        }
        first
    }

    fn remove_namespaces(&self) -> Result<()> {
        let prefix = self.namespace("");
        let mut lines = String::new();
        for name in names_in("/run/netns") {
            if name.starts_with(&prefix) {
                lines.push_str(&format!("netns delete {name}\n"));
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        run_with_input(Command::new("ip").args(["-force", "-batch", "-"]), &lines)
    }
}

/// Ids of the labs on this machine.
pub(crate) fn list() -> Vec<String> {
    names_in(ROOT)
}

/// The living process that will remove the lab called `id`; `None` if it is kept or abandoned.
pub(crate) fn owner(id: &str) -> Option<u32> {
    let owner = Entry::of(id).ok()?.read().ok()?.owner?;
    owner.is_alive().then_some(owner.pid)
}

/// Removes the lab called `id`, whoever owns it.
pub(crate) fn clean(id: &str) -> Result<()> {
    Entry::of(id)?.remove()
}

/// Removes every lab whose owner has died without removing it, and says which.
pub(crate) fn sweep() -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for id in list() {
        let Ok(entry) = Entry::of(&id) else { continue };
        // A record that cannot be read may be one that is being written: leave it alone.
        let Ok(record) = entry.read() else { continue };
        if record.owner.is_none_or(|owner| owner.is_alive()) {
            continue;
        }
        let Some(_lock) = entry.lock(FlockArg::LockExclusiveNonblock) else { continue };
        entry.dismantle()?;
        swept.push(id);
    }
    Ok(swept)
}

fn names_in(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The cgroup2 hierarchy, found by the mount table (it is not always at /sys/fs/cgroup).
fn cgroup2_root() -> Result<PathBuf> {
    let mounts = mounts()?;
    let found = mounts.into_iter().find(|(_, kind)| kind == "cgroup2");
    found.map(|(point, _)| point).context(
        "no cgroup2 file system is mounted; remedy: mount -t cgroup2 none /sys/fs/cgroup/unified",
    )
}

fn mounts() -> Result<Vec<(PathBuf, String)>> {
    let table = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let parse = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        Some((PathBuf::from(fields.next()?), fields.next()?.to_owned()))
    };
    Ok(table.lines().filter_map(parse).collect())
}

/// Deepest first.
fn mount_points_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut points: Vec<_> = mounts()?
        .into_iter()
        .map(|(point, _)| point)
        .filter(|point| point.starts_with(directory))
        .collect();
    points.sort();
    points.reverse();
    Ok(points)
}

/// A cgroup and those below it, deepest first; empty if it does not exist.
fn subtree(cgroup: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(subtree(&entry.path()));
        }
    }
    if cgroup.exists() {
        found.push(cgroup.to_owned());
    }
    found
}

/// Kills the processes in `cgroup`, by pid: those and only those that the lab started.
fn kill_all(cgroup: &Path) -> Result<()> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let mut pids = Vec::new();
        for directory in subtree(cgroup) {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        if pids.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "processes {pids:?} survive SIGKILL");
        for pid in pids {
            // It may have ended meanwhile, which is what is wanted.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn remove_cgroups(cgroup: &Path) -> Result<()> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    for directory in subtree(cgroup) {
        loop {
            match fs::remove_dir(&directory) {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                // A killed process leaves its cgroup only when it has ended.
                Err(error)
                    if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("remove cgroup {}", directory.display()));
                }
            }
        }
    }
    Ok(())
}

/// Makes the cgroups of every host: `<lab>/<node>`, `<lab>/<node>/pods/<pod>`, `<lab>/<host>`.
pub(crate) fn make_cgroups(entry: &Entry, topology: &Topology) -> Result<()> {
    for host in &topology.hosts {
        let path = entry.cgroup.join(crate::lab::cgroup_below_root(host));
        fs::create_dir_all(&path).with_context(|| format!("create cgroup {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_alive_only_while_number_and_start_time_agree() {
        let us = Owner::of(std::process::id()).unwrap();
        assert!(us.is_alive());
        assert!(!Owner { started: us.started + 1, ..us }.is_alive());
    }

    #[test]
    fn a_sweep_removes_a_lab_whose_owner_died_and_no_other() {
        let id = format!("t{:x}", std::process::id());
        let entry = Entry::claim(Some(&id), &Options::default()).unwrap();
        fs::create_dir_all(entry.cgroup.join("node-a/pods/pod-a1")).unwrap();
        let namespace = entry.namespace("node-a");
        run_with_input(Command::new("ip").args(["netns", "add", &namespace]), "").unwrap();

        sweep().unwrap();
        assert!(entry.directory.exists(), "its owner, this process, is alive");

        let owner = Owner { started: 0, ..Owner::of(std::process::id()).unwrap() };
        entry.write(&Record { options: Options::default(), owner: Some(owner) }).unwrap();
        let deadline = Instant::now() + KILL_TIMEOUT;
        while entry.directory.exists() && Instant::now() < deadline {
            // Another process' sweep may be at it already.
            sweep().unwrap();
        }
        assert!(!entry.directory.exists());
        assert!(!entry.cgroup.exists());
        assert!(!Path::new("/run/netns").join(namespace).exists());
    }

    #[test]
    fn an_id_that_could_leave_its_directory_is_refused() {
        for id in ["", "../etc", "a/b", "a b", "aaaaaaaaaaaaaaaaa"] {
            assert!(Entry::of(id).is_err(), "{id:?}");
        }
    }
}
