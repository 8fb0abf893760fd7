//! When to look at the manifest directory again: inotify, a short debounce, a slow safety net.
//!
//! A file counts when its writer closes it or moves it into place, never half-written. What inotify
//! can't tell (a file changed through a link that leads elsewhere, a directory that was replaced,
//! events on a network file system) is found by looking every [`PATROL`].

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{Event, EventMask, EventStream, Inotify, WatchMask};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::debug;

use super::{Directory, Look};
use crate::cluster::snapshot::Change;

/// Files that are written together should be read together: this long nothing may happen …
const QUIET: Duration = Duration::from_millis(4);
/// … but a directory that never rests is read after this time.
const QUIET_MAX: Duration = Duration::from_millis(40);
/// How often to look without being told.
const PATROL: Duration = Duration::from_secs(10);
/// How often to look for a directory that has vanished.
const PATROL_MISSING: Duration = Duration::from_millis(250);
/// Room for a burst of events (272 bytes at most each).
const EVENT_BUFFER: usize = 16 << 10;

/// The directory can't be followed at all.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It can't be opened.
    #[error("manifest directory {path}: {source}; create it, or give its right name")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel has no inotify instance for us.
    #[error("inotify: {source}; raise the sysctl fs.inotify.max_user_instances")]
    Inotify {
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The directory's state was lost in a panic.
    #[error("reading the manifest directory failed: {source}; please report this as a bug")]
    Scan {
        /// How the reading task ended.
        source: tokio::task::JoinError,
    },
}

/// A manifest directory that can be followed.
pub struct Manifests {
    directory: Directory,
    watch: DirectoryWatch,
}

impl Manifests {
    /// Opens `path`; Node manifests count when they are named `node_name`.
    ///
    /// # Errors
    /// When the directory doesn't exist, isn't one, or can't be watched. Must be called within
    /// a tokio runtime.
    pub fn open(path: &Path, node_name: &str) -> Result<Self, ManifestError> {
        Ok(Self { directory: Directory::new(path, node_name), watch: DirectoryWatch::new(path)? })
    }

    /// Sends everything once, then what changes, until nobody receives any more.
    ///
    /// # Errors
    /// Only for bugs of our own: whatever happens to the files is a problem in the stream.
    pub async fn run(self, sender: mpsc::Sender<Vec<Change>>) -> Result<(), ManifestError> {
        let Self { mut directory, mut watch } = self;
        let mut look = Look::default();
        loop {
            let scan = tokio::task::spawn_blocking(move || {
                let changes = directory.scan(&look);
                (directory, changes)
            });
            let changes;
            (directory, changes) = scan.await.map_err(|source| ManifestError::Scan { source })?;
            if !changes.is_empty() && sender.send(changes).await.is_err() {
                return Ok(());
            }
            look = tokio::select! {
                look = watch.next() => look,
                () = sender.closed() => return Ok(()),
            };
        }
    }
}

/// The inotify watch of one directory.
struct DirectoryWatch {
    path: PathBuf,
    events: EventStream<Vec<u8>>,
    /// Device and inode of the watched directory; `None` while there is none.
    watched: Option<(u64, u64)>,
    /// Files with writes but no close yet.
    being_written: BTreeSet<OsString>,
    next_patrol: Instant,
}

/// What an event asks for.
enum Demand {
    Nothing,
    Look,
    LookAt(OsString),
}

impl DirectoryWatch {
    fn new(path: &Path) -> Result<Self, ManifestError> {
        let inotify = Inotify::init().map_err(|source| ManifestError::Inotify { source })?;
        let events = inotify
            .into_event_stream(vec![0; EVENT_BUFFER])
            .map_err(|source| ManifestError::Inotify { source })?;
        let mut watch = Self {
            path: path.to_owned(),
            events,
            watched: None,
            being_written: BTreeSet::new(),
            next_patrol: Instant::now() + PATROL,
        };
        watch
            .attach()
            .map_err(|source| ManifestError::Directory { path: path.to_owned(), source })?;
        Ok(watch)
    }

    /// Watches whatever directory the path leads to now.
    fn attach(&mut self) -> std::io::Result<()> {
        let metadata = std::fs::metadata(&self.path)?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MODIFY
            | WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        self.events.watches().add(&self.path, mask)?;
        self.watched = Some((metadata.dev(), metadata.ino()));
        Ok(())
    }

    /// Watches the directory that took the place of ours, if one did.
    fn patrol(&mut self) {
        let present =
            std::fs::metadata(&self.path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if present.is_some() && present != self.watched {
            // Failing is no loss: the next patrol tries again.
            if let Err(error) = self.attach() {
                debug!(path = %self.path.display(), %error, "can't watch the manifest directory");
            }
        }
        // Whoever writes for longer than a patrol gets read in between.
        self.being_written.clear();
        self.next_patrol = Instant::now() + PATROL;
    }

    /// Waits until there is something to look at.
    async fn next(&mut self) -> Look {
        let mut at = BTreeSet::new();
        loop {
            let patrol = match self.watched {
                Some(_) => self.next_patrol,
                None => Instant::now() + PATROL_MISSING,
            };
            match timeout_at(patrol, self.events.next()).await {
                Err(_elapsed) => {
                    self.patrol();
                    break;
                }
                // The stream itself has failed (it can't end): don't spin, live by patrols.
                Ok(None | Some(Err(_))) => {
                    sleep(PATROL).await;
                    self.patrol();
                    break;
                }
                Ok(Some(Ok(event))) => {
                    if self.demand(event, &mut at) {
                        self.settle(&mut at).await;
                        break;
                    }
                }
            }
        }
        Look { at, not_at: self.being_written.clone() }
    }

    /// Takes the events of one burst together.
    async fn settle(&mut self, at: &mut BTreeSet<OsString>) {
        let latest = Instant::now() + QUIET_MAX;
        while Instant::now() < latest {
            match timeout(QUIET, self.events.next()).await {
                Ok(Some(Ok(event))) => {
                    self.demand(event, at);
                }
                Ok(None | Some(Err(_))) | Err(_) => break,
            }
        }
    }

    /// Notes what an event asks for; true when it is worth looking.
    fn demand(&mut self, event: Event<OsString>, at: &mut BTreeSet<OsString>) -> bool {
        match self.judge(event) {
            Demand::Nothing => false,
            Demand::Look => true,
            Demand::LookAt(name) => {
                at.insert(name);
                true
            }
        }
    }

    fn judge(&mut self, event: Event<OsString>) -> Demand {
        let mask = event.mask;
        if mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
            self.watched = None;
            return Demand::Look;
        }
        let Some(name) = event.name else {
            // Attributes of the directory itself, or events were lost (Q_OVERFLOW).
            self.being_written.clear();
            return Demand::Look;
        };
        if mask.contains(EventMask::MODIFY) {
            self.being_written.insert(name);
            return Demand::Nothing;
        }
        if mask.contains(EventMask::CREATE) && self.is_new_file(&name) {
            // Its writer will close it. Links and directories have no writer.
            self.being_written.insert(name);
            return Demand::Nothing;
        }
        if mask.contains(EventMask::ATTRIB) {
            return Demand::Look;
        }
        self.being_written.remove(&name);
        Demand::LookAt(name)
    }

    fn is_new_file(&self, name: &OsString) -> bool {
        let metadata = std::fs::symlink_metadata(self.path.join(name));
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
    }
}
