//! A Docker daemon of our own, in a network namespace of its own.
//!
//! Its bridges, firewall rules and published ports stay in that namespace, which has no uplink. The
//! machine's own Docker, if there is one, is neither used nor disturbed: folders, cgroup and
//! namespaces have other names. All that lives in the daemon is ours, so leftovers of a run that
//! was killed are everything it holds.

use crate::{process, workspace};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Names everything of ours: network namespace, cgroup, containerd's namespace, folder in /run.
pub const NAME: &str = "lb-e2e";
/// Short, because a socket's path may have 107 bytes only.
const RUN: &str = "/run/lb-e2e";
const RUNTIME: &str = include_str!("../../../tests/e2e/runc-without-sys-resource");
/// Bit of `CAP_SYS_RESOURCE` in the sets of /proc/self/status.
const CAP_SYS_RESOURCE: u32 = 24;
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// The running daemon.
pub struct Docker {
    process: u32,
}

impl Docker {
    /// Starts the daemon, or finds the one that an earlier run left.
    ///
    /// # Errors
    /// When it doesn't answer: its log is named.
    pub fn start() -> Result<Self> {
        if let Some(process) = running() {
            return Ok(Self { process });
        }
        make_namespace()?;
        let config = configure()?;
        let log = workspace::target_dir().join("e2e/dockerd.log");
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let daemon = process::find("dockerd").context("no dockerd: run `cargo xtask setup`")?;
        // Not `ip netns exec`, which mounts another /sys, without cgroups.
        let mut command = inside();
        command.arg(daemon).arg("--config-file").arg(&config);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Ctrl-C is for us, who then remove what the daemon runs.
        let mut child = command.process_group(0).spawn().context("start dockerd")?;
        let docker = Self { process: child.id() };
        let started = Instant::now();
        while docker.call(&["version"]).is_err() {
            if let Some(status) = child.try_wait()? {
                remove_traces()?;
                bail!("dockerd ended ({status}): see {}", log.display());
            }
            if started.elapsed() > START_LIMIT {
                let _ = docker.stop();
                bail!("dockerd doesn't answer: see {}", log.display());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(docker)
    }

    /// The daemon's process id.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// A command in the daemon's network namespace that finds the daemon.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = inside();
        command.arg(program).env("DOCKER_HOST", format!("unix://{RUN}/docker.sock"));
        command
    }

    /// Standard output of `docker` with `arguments`.
    ///
    /// # Errors
    /// Carries what it wrote to standard error.
    pub fn call(&self, arguments: &[&str]) -> Result<String> {
        process::output(self.command("docker").args(arguments))
    }

    /// Builds an image from the folder `context`, which holds a Dockerfile, without any
    /// network; `values` are the Dockerfile's arguments.
    ///
    /// # Errors
    /// Carries the log of the build.
    pub fn build(&self, context: &Path, values: &[(&str, &str)], name: &str) -> Result<()> {
        let mut build = self.command("docker");
        // The builder in the daemon: the other one is a plugin that many installations lack.
        build.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--network", "none"]);
        for (variable, value) in values {
            build.arg("--build-arg").arg(format!("{variable}={value}"));
        }
        build.args(["--tag", name]).arg(context);
        process::output(&mut build).map(drop)
    }

    /// Whether the daemon has the image `name`.
    pub fn has_image(&self, name: &str) -> bool {
        self.call(&["image", "inspect", "--format", "{{.Id}}", name]).is_ok()
    }

    /// Removes every container and network, and the volumes with the nodes' state; images stay.
    ///
    /// # Errors
    /// When the daemon fails to.
    pub fn remove_containers(&self) -> Result<()> {
        let containers = self.call(&["ps", "--all", "--quiet"])?;
        let containers: Vec<_> = containers.split_whitespace().collect();
        if !containers.is_empty() {
            self.call(&[&["rm", "--force", "--volumes"], containers.as_slice()].concat())?;
        }
        self.call(&["volume", "prune", "--force"])?;
        self.call(&["network", "prune", "--force"]).map(drop)
    }

    /// Ends the daemon and removes what it leaves: namespace, cgroups, folder in /run.
    ///
    /// # Errors
    /// Names what could not be removed.
    pub fn stop(self) -> Result<()> {
        let process = Pid::from_raw(i32::try_from(self.process).context("a process id")?);
        // It may have ended by itself, which is what we want.
        let _ = kill(process, Signal::SIGTERM);
        let started = Instant::now();
        while running() == Some(self.process) {
            ensure!(started.elapsed() < STOP_LIMIT, "dockerd ({process}) ignores SIGTERM");
            std::thread::sleep(Duration::from_millis(100));
        }
        // Not where an earlier run has started it: then it is no child of ours.
        let _ = waitpid(process, None);
        remove_traces()
    }
}

/// Removes everything that a run leaves but images and caches.
///
/// # Errors
/// Names what could not be removed.
pub fn clean() -> Result<()> {
    if !Path::new(RUN).exists() && !namespace().exists() {
        return Ok(());
    }
    // Also where the daemon is gone but its containers are not: it finds them again.
    let docker = Docker::start()?;
    docker.remove_containers()?;
    docker.stop()
}

fn namespace() -> PathBuf {
    Path::new("/run/netns").join(NAME)
}

fn inside() -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace().display()));
    command
}

fn make_namespace() -> Result<()> {
    if !namespace().exists() {
        process::output(Command::new("ip").args(["netns", "add", NAME]))?;
    }
    // The daemon turns forwarding on for IPv4 only.
    let script = "ip link set lo up && echo 1 > /proc/sys/net/ipv4/ip_forward \
                  && echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    process::output(inside().args(["sh", "-c", script])).map(drop)
}

/// The daemon that serves our socket, if it runs.
fn running() -> Option<u32> {
    let process = fs::read_to_string(format!("{RUN}/dockerd.pid")).ok()?.trim().parse().ok()?;
    // Numbers are given again; a program with our configuration is ours. Empty for one that ended.
    let words = fs::read_to_string(format!("/proc/{process}/cmdline")).ok()?;
    words.contains(&format!("{RUN}/daemon.json")).then_some(process)
}

/// Writes the daemon's configuration; the machine's /etc/docker is not read then.
fn configure() -> Result<PathBuf> {
    let data = workspace::cache_dir("e2e/docker")?;
    fs::create_dir_all(RUN).with_context(|| format!("create {RUN}"))?;
    let mut config = json!({
        "hosts": [format!("unix://{RUN}/docker.sock")],
        "data-root": data,
        "exec-root": format!("{RUN}/exec"),
        "pidfile": format!("{RUN}/dockerd.pid"),
        // The same on every host, whether systemd owns the cgroups or not.
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "cgroup-parent": format!("/{NAME}"),
        // Where the machine has a containerd, the daemon uses it.
        "containerd-namespace": NAME,
    });
    if !may_use(CAP_SYS_RESOURCE)? {
        let wrapper = Path::new(RUN).join("runc");
        fs::write(&wrapper, RUNTIME).with_context(|| format!("write {}", wrapper.display()))?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        config["runtimes"] = json!({ NAME: { "path": wrapper } });
        config["default-runtime"] = NAME.into();
    }
    let path = Path::new(RUN).join("daemon.json");
    fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Whether the programs that we start can ever have a capability.
fn may_use(capability: u32) -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let set = u64::from_str_radix(set.context("/proc/self/status names no CapBnd")?.trim(), 16)?;
    Ok(set >> capability & 1 == 1)
}

fn remove_traces() -> Result<()> {
    if namespace().exists() {
        process::output(Command::new("ip").args(["netns", "delete", NAME]))?;
    }
    let root = Path::new("/sys/fs/cgroup");
    // cgroup2 alone, or one hierarchy for each controller.
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        remove_cgroup(&hierarchy.join(NAME));
    }
    if Path::new(RUN).exists() {
        fs::remove_dir_all(RUN).with_context(|| format!("remove {RUN}"))?;
    }
    Ok(())
}

/// Removes a cgroup with those below it; one that still has processes stays.
fn remove_cgroup(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}
