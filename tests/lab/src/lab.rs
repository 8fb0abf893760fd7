//! A lab that is up: makes it, gets commands into its hosts, takes it down.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::command::{output, run_with_input};
use crate::losses;
use crate::peer::Peer;
use crate::peer::protocol::{Far, Tunnel};
use crate::registry::{self, Entry};
use crate::sys;
use crate::topology::{self, Host, Options, PodNetwork, Role, Topology};
use crate::wiring::{TUNNEL, Wiring, wire};

/// Where nodes take each other's packets ([`PodNetwork::Tunnel`]).
const TUNNEL_PORT: u16 = 4790;

/// A network of namespaces. Dropping it removes everything it made, unless it was kept or attached.
pub struct Lab {
    entry: Entry,
    topology: Topology,
    peers: Mutex<BTreeMap<String, Arc<Peer>>>,
    remove_on_drop: bool,
}

impl Lab {
    /// Makes a lab with an id of its own, so that several can be up at the same time. Needs root.
    /// Labs that a crashed owner left behind are removed first.
    pub fn up(options: &Options) -> Result<Self> {
        Self::up_as(None, options)
    }

    /// Like [`Lab::up`] with a chosen id (1 to 16 letters and digits).
    pub fn up_as(id: Option<&str>, options: &Options) -> Result<Self> {
        let topology = Topology::new(options)?;
        // Somebody else's leftovers must not keep us from working.
        let _ = registry::sweep();
        let entry = Entry::claim(id, options)?;
        let lab = Self { entry, topology, peers: Mutex::default(), remove_on_drop: true };
        lab.build().with_context(|| format!("set up lab {}", lab.entry.id))?;
        Ok(lab)
    }

    /// Finds a lab that another process left up ([`Lab::keep`]); dropping this does not remove it.
    pub fn attach(id: &str) -> Result<Self> {
        let (entry, options) = Entry::find(id)?;
        let topology = Topology::new(&options)?;
        Ok(Self { entry, topology, peers: Mutex::default(), remove_on_drop: false })
    }

    /// Removes the lab called `id` with everything in it; fine if there is none.
    pub fn clean(id: &str) -> Result<()> {
        registry::clean(id)
    }

    /// Removes the labs whose owner died without removing them; their ids.
    pub fn sweep() -> Result<Vec<String>> {
        registry::sweep()
    }

    /// Ids of the labs on this machine.
    pub fn list() -> Vec<String> {
        registry::list()
    }

    /// The living process that will remove the lab called `id`; `None` if it is kept or abandoned.
    pub fn owner(id: &str) -> Option<u32> {
        registry::owner(id)
    }

    /// Leaves the lab up for people: its servers and whatever else runs in it go on.
    pub fn keep(mut self) -> Result<()> {
        for peer in self.lock_peers().values() {
            peer.detach()?;
        }
        self.entry.disown()?;
        self.remove_on_drop = false;
        Ok(())
    }

    /// Removes the lab now, with an error if something of it could not be removed.
    pub fn down(mut self) -> Result<()> {
        self.remove_on_drop = false;
        self.remove()
    }

    /// The lab's id.
    pub fn id(&self) -> &str {
        &self.entry.id
    }

    /// Its hosts and their addresses.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The host called `name`.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.topology.host(name)
    }

    /// A directory for files of this lab (logs, manifests); removed with it.
    pub fn directory(&self) -> &Path {
        &self.entry.directory
    }

    /// The bpf file system of the node called `node`, for `lb-agent --bpffs`.
    pub fn bpffs(&self, node: &str) -> PathBuf {
        self.entry.directory.join("bpffs").join(node)
    }

    /// Root of the cgroups of the host called `name`; a node's holds those of its pods too, so it
    /// is what `lb-agent --cgroup-root` wants.
    pub fn cgroup(&self, name: &str) -> Result<PathBuf> {
        Ok(self.entry.cgroup.join(cgroup_below_root(self.host(name)?)))
    }

    /// Path of the network namespace of the host called `name`.
    pub fn namespace(&self, name: &str) -> Result<PathBuf> {
        let host = self.host(name)?;
        Ok(Path::new("/run/netns").join(self.entry.namespace(&host.name)))
    }

    /// A directory that leads to the network namespaces of a node's pods alone, for `lb-agent
    /// --netns-dirs`: those of all hosts, and of other labs, are in one directory of the machine.
    pub fn pod_namespaces(&self, node: &str) -> Result<PathBuf> {
        let directory = self.entry.directory.join("netns").join(node);
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        for pod in self.topology.pods_of(node) {
            let link = directory.join(&pod.name);
            if !link.is_symlink() {
                std::os::unix::fs::symlink(self.namespace(&pod.name)?, &link)
                    .with_context(|| format!("create {}", link.display()))?;
            }
        }
        Ok(directory)
    }

    /// A command that will run inside the host called `name`: its namespace, cgroup and host name.
    pub fn command(&self, name: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        self.prepared(name, program, false)
    }

    /// Like [`Lab::command`], in a session of its own: signals of our terminal do not reach it.
    pub fn daemon(&self, name: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        self.prepared(name, program, true)
    }

    fn prepared(
        &self,
        name: &str,
        program: impl AsRef<std::ffi::OsStr>,
        session: bool,
    ) -> Result<Command> {
        let mut command = Command::new(program);
        let cgroup = self.cgroup(name)?;
        sys::enter(&mut command, &self.namespace(name)?, &cgroup, name, session)?;
        Ok(command)
    }

    /// Runs a command inside the host called `name` to its end.
    pub fn exec(&self, name: &str, command: &[&str]) -> Result<Output> {
        let (program, arguments) = command.split_first().context("no command to run")?;
        output(self.command(name, program)?.args(arguments))
    }

    /// Runs `ip` batch lines inside the host called `name`, for example
    /// `route replace 198.51.100.80 via 10.240.0.11`.
    pub fn ip(&self, name: &str, lines: &str) -> Result<()> {
        run_with_input(self.command(name, "ip")?.args(["-batch", "-"]), lines)
    }

    /// Runs nftables text inside the host called `name`.
    pub fn nft(&self, name: &str, text: &str) -> Result<()> {
        run_with_input(self.command(name, "nft")?.args(["-f", "-"]), text)
    }

    /// Writes `/proc/sys/net/<path>` of the host called `name`.
    pub fn sysctl(&self, name: &str, path: &str, value: &str) -> Result<()> {
        sys::inside(&self.namespace(name)?, || write_sysctl(path, value))
    }

    /// What each host's kernel counts as lost: datagrams, fragments, packets that found no room. For a test
    /// that has failed.
    pub fn losses(&self) -> Result<String> {
        let mut text = String::new();
        for host in &self.topology().hosts {
            let counted = sys::inside(&self.namespace(&host.name)?, || Ok(losses::counted()))?;
            for (counter, count) in counted {
                writeln!(text, "{}: {counter} {count}", host.name)?;
            }
        }
        Ok(text)
    }

    /// Switches transmit checksum offload of one device (see [`Options::checksum_offload`]).
    pub fn checksum_offload(&self, name: &str, device: &str, on: bool) -> Result<()> {
        let mut command = self.command(name, "ethtool")?;
        let state = if on { "on" } else { "off" };
        run_with_input(command.args(["-K", device, "tx", state]), "")
    }

    /// The helper process inside the host called `name`; started at first use.
    pub fn peer(&self, name: &str) -> Result<Arc<Peer>> {
        let mut peers = self.lock_peers();
        if let Some(peer) = peers.get(name) {
            return Ok(Arc::clone(peer));
        }
        let peer = Arc::new(Peer::start(self, name)?);
        peers.insert(name.to_owned(), Arc::clone(&peer));
        Ok(peer)
    }

    fn lock_peers(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn build(&self) -> Result<()> {
        registry::make_cgroups(&self.entry, &self.topology)?;
        let mut names = String::new();
        for host in &self.topology.hosts {
            names.push_str(&format!("netns add {}\n", self.entry.namespace(&host.name)));
        }
        run_with_input(Command::new("ip").args(["-batch", "-"]), &names)?;
        let wirings = wire(&self.topology, &|host| self.entry.namespace(host))?;
        // Before any device exists: new devices take their settings from `default`.
        for (host, wiring) in &wirings {
            sys::inside(&self.namespace(host)?, || {
                wiring.sysctls.iter().try_for_each(|(path, value)| write_sysctl(path, value))
            })?;
        }
        for (host, wiring) in &wirings {
            self.apply(host, wiring).with_context(|| format!("wire {host}"))?;
        }
        for (node, _) in self.topology.nodes() {
            let point = self.bpffs(&node.name);
            fs::create_dir_all(&point).with_context(|| format!("create {}", point.display()))?;
            mount(Some("bpf"), &point, Some("bpf"), MsFlags::empty(), None::<&str>)
                .with_context(|| format!("mount a bpf file system at {}", point.display()))?;
        }
        if self.topology.options.pod_network == PodNetwork::Tunnel {
            self.dig_tunnels()?;
        }
        Ok(())
    }

    fn dig_tunnels(&self) -> Result<()> {
        let end = |host: &Host| SocketAddr::new(host.address.v4.into(), TUNNEL_PORT);
        for (node, number) in self.topology.nodes() {
            let others = self.topology.nodes().filter(|(_, other)| *other != number);
            let far = others.map(|(other, number)| {
                Ok(Far { pods: topology::pod_range(number, 0)?, node: end(other) })
            });
            let far = far.collect::<Result<_>>()?;
            let tunnel = Tunnel { device: TUNNEL.to_owned(), local: end(node), far };
            self.peer(&node.name)?.tunnel(tunnel)?;
        }
        Ok(())
    }

    fn apply(&self, host: &str, wiring: &Wiring) -> Result<()> {
        self.ip(host, &wiring.ip.join("\n"))?;
        if !wiring.bridge.is_empty() {
            let mut bridge = self.command(host, "bridge")?;
            run_with_input(bridge.args(["-batch", "-"]), &wiring.bridge.join("\n"))?;
        }
        if !wiring.nft.is_empty() {
            self.nft(host, &wiring.nft)?;
        }
        wiring.no_offload.iter().try_for_each(|dev| self.checksum_offload(host, dev, false))
    }

    fn remove(&self) -> Result<()> {
        // Peers end by themselves when their input closes; the rest of the lab's processes are
        // killed with its cgroups.
        self.lock_peers().clear();
        self.entry.remove()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.remove_on_drop
            && let Err(error) = self.remove()
        {
            eprintln!("lab {}: {error:#}", self.entry.id);
        }
    }
}

fn write_sysctl(path: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(path);
    fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
}

/// Pods live below their node, as with every container runtime.
pub(crate) fn cgroup_below_root(host: &Host) -> PathBuf {
    match &host.role {
        Role::Pod { node, .. } => Path::new(node).join("pods").join(&host.name),
        Role::Fabric | Role::Node { .. } | Role::Client | Role::Site | Role::Edge => {
            PathBuf::from(&host.name)
        }
    }
}
