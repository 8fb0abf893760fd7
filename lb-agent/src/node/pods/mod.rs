//! The network namespaces of this node's pods: which there are, their cookies, their addresses.
//!
//! Container runtimes mount a pod's namespace as a file in a directory ([`sources`]), before the CNI
//! gives it an address. So two things are followed: the mounts, by the kernel's word that the mount
//! table changed, and, while a namespace is young, its addresses, by a netlink socket inside
//! ([`look`]). What nobody tells of (processes, which are no mounts; lost notifications) is found by
//! looking again. All of this happens on a thread of its own, because entering a namespace is a
//! property of the thread.
//!
//! It knows neither pods nor Services: whatever namespace is there may be a pod's.

mod look;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::namespace::Visitor;
use look::{Look, News};
use sources::Own;

/// Without any notification, what is there is listed this often.
const LISTING: Duration = Duration::from_secs(2);
/// All known namespaces are entered again this often.
const REFRESH: Duration = Duration::from_secs(10);
/// Every change of the mount table wakes us, and a node that starts containers changes it all the
/// time: changes that follow each other this quickly are looked at together.
const PAUSE: Duration = Duration::from_millis(5);
/// An open socket keeps a namespace alive after its pod. So the addresses of a namespace are followed
/// for this long after it has got one (the second family's comes right after) …
const SETTLED: Duration = Duration::from_secs(2);
/// … or after this time without any; [`REFRESH`] finds what comes later.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pod's network namespace, or another one of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNamespace {
    /// A file that leads to it, to be entered.
    pub path: PathBuf,
    /// Its first IPv4 address that others can reach.
    pub v4: Option<Ipv4Addr>,
    /// Its first IPv6 address that others can reach.
    pub v6: Option<Ipv6Addr>,
}

/// Namespaces by cookie: what `bpf_get_netns_cookie` returns for sockets in them. Our own is not
/// among them.
pub type PodNamespaces = BTreeMap<u64, PodNamespace>;

/// Follows the namespaces whose files are in `directories` (of `/proc`: those of its processes); the
/// receiver holds the ones of this moment. What can't be followed is said in the log, once.
pub fn follow(directories: Vec<PathBuf>) -> watch::Receiver<PodNamespaces> {
    let (sender, receiver) = watch::channel(PodNamespaces::new());
    let (looked, first_look) = std::sync::mpsc::channel();
    let work = move || match Follower::new(directories, sender) {
        Ok(mut follower) => {
            follower.update(&Occasion { all: true, told: BTreeSet::new() });
            follower.say_what_is_missing();
            // Whoever waits may have ended.
            let _ = looked.send(());
            follower.run();
        }
        Err(error) => blind("/proc/thread-self/ns/net", &error),
    };
    let thread = std::thread::Builder::new().name("pod-namespaces".into()).spawn(work);
    match thread {
        // An error: it ended, and has said why.
        Ok(_) => drop(first_look.recv()),
        Err(error) => blind("a thread of its own", &error),
    }
    receiver
}

fn blind(what: &str, error: &std::io::Error) {
    warn!(
        "the network namespaces of pods can't be followed ({what}: {error}): connected UDP sockets of \
         pods are not ended when their endpoint leaves; run lb-agent with CAP_SYS_ADMIN"
    );
}

/// The thread's state.
struct Follower {
    directories: Vec<PathBuf>,
    sender: watch::Sender<PodNamespaces>,
    visitor: Visitor,
    own: Own,
    /// Readable (`POLLPRI`) when the mount table has changed; `None` where /proc doesn't have it.
    mounts: Option<File>,
    /// By inode.
    known: BTreeMap<u64, Known>,
    has_failed: bool,
}

/// A namespace that is there.
struct Known {
    path: PathBuf,
    found: Instant,
    /// When it was seen to have other addresses than before.
    changed: Instant,
    /// What was seen inside; `None` if it couldn't be entered.
    seen: Option<(u64, look::Addresses)>,
    /// Says when its addresses change, while it is young.
    news: Option<News>,
}

/// Why to look again, beside what is new.
struct Occasion {
    /// It is time for everything.
    all: bool,
    /// Namespaces whose addresses changed, by inode.
    told: BTreeSet<u64>,
}

impl Follower {
    fn new(
        directories: Vec<PathBuf>,
        sender: watch::Sender<PodNamespaces>,
    ) -> std::io::Result<Self> {
        let visitor = Visitor::new()?;
        let own = Own::of(visitor.home())?;
        let mounts = File::open("/proc/thread-self/mountinfo").ok();
        let known = BTreeMap::new();
        Ok(Self { directories, sender, visitor, own, mounts, known, has_failed: false })
    }

    fn say_what_is_missing(&self) {
        if !self.directories.iter().any(|directory| directory.is_dir()) {
            info!(
                directories = ?self.directories,
                "no directory of network namespaces is there (yet): if pods run on this node, name \
                 the one where the container runtime mounts theirs with --netns-dirs"
            );
        }
    }

    /// Works until nobody listens any more.
    fn run(mut self) {
        let mut refreshed = Instant::now();
        while !self.sender.is_closed() {
            let told = self.wait();
            std::thread::sleep(PAUSE);
            let all = refreshed.elapsed() >= REFRESH;
            if all {
                refreshed = Instant::now();
            }
            self.update(&Occasion { all, told });
        }
    }

    /// Waits for something to look at; which namespaces' addresses have changed.
    fn wait(&self) -> BTreeSet<u64> {
        let young: Vec<(u64, &News)> = self
            .known
            .iter()
            .filter_map(|(inode, known)| Some((*inode, known.news.as_ref()?)))
            .collect();
        let mut polled: Vec<PollFd<'_>> =
            young.iter().map(|(_, news)| PollFd::new(news.as_fd(), PollFlags::POLLIN)).collect();
        polled.extend(
            self.mounts.iter().map(|mounts| PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)),
        );
        let timeout = PollTimeout::try_from(LISTING).unwrap_or(PollTimeout::MAX);
        if let Err(error) = poll(&mut polled, timeout) {
            // Interrupted, or short of memory: look, but don't spin.
            debug!(%error, "poll");
            std::thread::sleep(PAUSE);
        }
        let ready = polled.iter().map(|fd| fd.any().unwrap_or_default());
        let told = young.iter().zip(ready).filter(|(_, is_ready)| *is_ready);
        told.map(|((inode, news), _)| {
            news.drain();
            *inode
        })
        .collect()
    }

    /// Makes `known` true and tells.
    fn update(&mut self, occasion: &Occasion) {
        let there = sources::find(&self.directories, &self.own);
        // An inode number may be another namespace's by now, even under the same path: a refresh tells.
        self.known.retain(|inode, known| there.get(inode) == Some(&known.path));
        for (inode, path) in there {
            let now = Instant::now();
            let known = self.known.entry(inode).or_insert_with(|| Known::new(path, now));
            let is_new = known.found == now;
            if is_new || occasion.all || occasion.told.contains(&inode) {
                let looked = known.look(&self.visitor, now);
                self.has_failed |= report(&known.path, looked, self.has_failed);
            }
            known.grow_old(now);
        }
        let namespaces: PodNamespaces =
            self.known.values().filter_map(Known::as_namespace).collect();
        self.sender.send_if_modified(|current| {
            let differs = *current != namespaces;
            *current = namespaces;
            differs
        });
    }
}

/// Says once why a namespace can't be entered; whether it is a reason that holds for all of them.
fn report(path: &std::path::Path, looked: std::io::Result<()>, has_failed: bool) -> bool {
    match looked {
        Ok(()) => false,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            if !has_failed {
                blind(&format!("enter {}", path.display()), &error);
            }
            true
        }
        // It went away meanwhile, or is no network namespace.
        Err(error) => {
            debug!(path = %path.display(), %error, "can't look into a network namespace");
            false
        }
    }
}

impl Known {
    fn new(path: PathBuf, now: Instant) -> Self {
        Self { path, found: now, changed: now, seen: None, news: None }
    }

    fn look(&mut self, visitor: &Visitor, now: Instant) -> std::io::Result<()> {
        let is_new = self.found == now;
        let looked = visitor.visit(&self.path, || Look::here(is_new)).and_then(|look| look);
        let (seen, result) = match looked {
            Ok(Look { cookie, addresses, news }) => {
                if is_new {
                    self.news = news;
                }
                (Some((cookie, addresses)), Ok(()))
            }
            Err(error) => (None, Err(error)),
        };
        if self.seen != seen {
            self.seen = seen;
            self.changed = now;
        }
        result
    }

    fn grow_old(&mut self, now: Instant) {
        let has_address = self.seen.as_ref().is_some_and(|(_, addresses)| addresses.any());
        let is_settled = has_address && now - self.changed > SETTLED;
        if is_settled || now - self.found > PATIENCE {
            self.news = None;
        }
    }

    fn as_namespace(&self) -> Option<(u64, PodNamespace)> {
        let (cookie, addresses) = self.seen.as_ref()?;
        let namespace =
            PodNamespace { path: self.path.clone(), v4: addresses.v4, v6: addresses.v6 };
        Some((*cookie, namespace))
    }
}
