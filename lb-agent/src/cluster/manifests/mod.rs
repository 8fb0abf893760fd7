//! `--manifests DIR`: a directory of Kubernetes objects in place of an API server.
//!
//! Every `*.yaml`, `*.yml` and `*.json` file counts, in the order of names, except those whose
//! name begins with a dot (a ConfigMap volume's `..data`, editors' files). This module decides
//! which object of which file counts; `file` reads one file, `follow` says when to look again.
//!
//! - A file that can't be read or isn't valid keeps its last good objects, and is a problem.
//! - The same object twice: the first file by name, and in a file the first document, wins.
//! - Nobody allocates addresses: clusterIP and nodePort are what the manifest says.
//! - Endpoints are mirrored into slices, as a controller would do for a Service without
//!   selector. With a selector a controller would make both from the same pods, so Endpoints count
//!   then too, but only as long as no EndpointSlice manifest names the Service.

mod file;
mod follow;

pub use follow::{ManifestError, Manifests};

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::debug;

use super::problems::Ledger;
use super::snapshot::{Change, Node, ObjectName, Problem, Service, ServiceCidr, Slice};
use file::{Content, Format, Manifest};

/// A bigger file is a mistake, and reading it could exhaust the node's memory.
const FILE_SIZE_MAX: u64 = 256 << 20;

/// The directory's files and what they came to.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    node_name: String,
    files: BTreeMap<OsString, FileState>,
    /// What the receiver has been told; `None` before the first time.
    told: Option<Merged>,
    ledger: Ledger,
}

/// One file.
#[derive(Debug, Default)]
struct FileState {
    signature: Option<Signature>,
    /// The last good content.
    manifests: Vec<Manifest>,
    /// Why the present content is not the last good one.
    problem: Option<Problem>,
}

/// Differs when a file's content may differ.
#[derive(Debug, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What all files say together.
#[derive(Debug, Default)]
struct Merged {
    services: BTreeMap<ObjectName, Arc<Service>>,
    slices: BTreeMap<ObjectName, Arc<Slice>>,
    node: Option<Arc<Node>>,
    cidrs: BTreeMap<ObjectName, ServiceCidr>,
}

/// Which files to read.
#[derive(Debug, Default)]
struct Look {
    /// Read these even if they look the same (written twice within one tick of the clock).
    at: BTreeSet<OsString>,
    /// Leave these alone: somebody is writing them.
    not_at: BTreeSet<OsString>,
}

impl Directory {
    fn new(path: &Path, node_name: &str) -> Self {
        Self {
            path: path.to_owned(),
            node_name: node_name.to_owned(),
            files: BTreeMap::new(),
            told: None,
            ledger: Ledger::default(),
        }
    }

    /// Reads what may have changed; returns what did. The first time: everything.
    fn scan(&mut self, look: &Look) -> Vec<Change> {
        let mut problems = Vec::new();
        match self.names() {
            Ok(names) => {
                self.files.retain(|name, _| names.contains(name) || look.not_at.contains(name));
                for name in names.difference(&look.not_at) {
                    self.read(name, look.at.contains(name));
                }
            }
            Err(error) => problems.push(Problem {
                object: format!("manifest directory {}", self.path.display()),
                reason: format!(
                    "can't be listed: {error}; its objects stay as they were until it can be"
                ),
            }),
        }
        let merged = self.merge(&mut problems);
        let mut changes = match &self.told {
            None => merged.all(),
            Some(told) => merged.difference(told),
        };
        self.told = Some(merged);
        changes.extend(self.ledger.report_all(problems));
        changes
    }

    fn names(&self) -> std::io::Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if format_of(&name).is_some() {
                names.insert(name);
            }
        }
        Ok(names)
    }

    /// Brings one file up to date; one that has vanished meanwhile is forgotten.
    fn read(&mut self, name: &OsStr, even_if_same: bool) {
        let Some(format) = format_of(name) else { return };
        let path = self.path.join(name);
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata,
            // A directory or a FIFO (opening one would block); nothing is lost.
            Ok(_) => {
                self.files.remove(name);
                return;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.files.remove(name);
                return;
            }
            Err(error) => {
                self.files.entry(name.to_owned()).or_default().problem =
                    Some(unreadable(name, &error.to_string()));
                return;
            }
        };
        let state = self.files.entry(name.to_owned()).or_default();
        let signature = Signature::of(&metadata);
        if state.signature.as_ref() == Some(&signature) && !even_if_same {
            return;
        }
        match load(&path, name, format, metadata.len()) {
            Ok(manifests) => {
                debug!(file = %name.display(), objects = manifests.len(), "manifest file read");
                *state = FileState { signature: Some(signature), manifests, problem: None };
            }
            Err(problem) => {
                state.signature = Some(signature);
                state.problem = Some(problem);
            }
        }
    }

    /// Decides which object of which file counts.
    fn merge(&self, problems: &mut Vec<Problem>) -> Merged {
        let mut merged = Merged::default();
        let mut owners: BTreeMap<&str, &OsStr> = BTreeMap::new();
        let mut with_selector: BTreeSet<&ObjectName> = BTreeSet::new();
        let mut with_slices: BTreeSet<&ObjectName> = BTreeSet::new();
        let mut endpoints: Vec<(&ObjectName, &[Arc<Slice>])> = Vec::new();
        for (file, state) in &self.files {
            problems.extend(state.problem.clone());
            for manifest in &state.manifests {
                if let Some(owner) = owners.get(manifest.object.as_str()) {
                    problems.push(duplicate(file, owner, manifest));
                    continue;
                }
                owners.insert(&manifest.object, file);
                problems.extend(manifest.problems.iter().cloned());
                match &manifest.content {
                    Content::Service { value, has_selector } => {
                        if *has_selector {
                            with_selector.insert(&manifest.name);
                        }
                        let value = value.iter().cloned();
                        merged.services.extend(value.map(|value| (manifest.name.clone(), value)));
                    }
                    Content::Slice(Some(slice)) => {
                        with_slices.insert(&slice.service);
                        merged.slices.insert(manifest.name.clone(), slice.clone());
                    }
                    Content::Endpoints(Some(slices)) => {
                        endpoints.push((&manifest.name, slices));
                    }
                    Content::Node(Some(node)) if *node.name == *self.node_name => {
                        merged.node = Some(node.clone());
                    }
                    Content::Node(Some(node)) => debug!(node = %node.name, "not our node, ignored"),
                    Content::Cidr(cidr) => {
                        merged.cidrs.extend(cidr.clone().map(|cidr| (cidr.name.clone(), cidr)));
                    }
                    Content::Slice(None) | Content::Endpoints(None) | Content::Node(None) => {}
                }
            }
        }
        for (service, slices) in endpoints {
            if !(with_selector.contains(service) && with_slices.contains(service)) {
                let slices = slices.iter().map(|slice| (slice.name.clone(), slice.clone()));
                merged.slices.extend(slices);
            }
        }
        merged
    }
}

impl Signature {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Merged {
    fn all(&self) -> Vec<Change> {
        vec![
            Change::Node(self.node.as_deref().cloned()),
            Change::AllServices(self.services.values().map(|value| (**value).clone()).collect()),
            Change::AllSlices(self.slices.values().map(|value| (**value).clone()).collect()),
            Change::AllCidrs(self.cidrs.values().cloned().collect()),
        ]
    }

    fn difference(&self, told: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.node != told.node {
            changes.push(Change::Node(self.node.as_deref().cloned()));
        }
        if self.cidrs != told.cidrs {
            changes.push(Change::AllCidrs(self.cidrs.values().cloned().collect()));
        }
        difference(
            &self.services,
            &told.services,
            Change::Service,
            Change::ServiceGone,
            &mut changes,
        );
        difference(&self.slices, &told.slices, Change::Slice, Change::SliceGone, &mut changes);
        changes
    }
}

/// Objects of files that were not read again are the same allocation: cheap to compare.
fn difference<T: Clone + PartialEq>(
    now: &BTreeMap<ObjectName, Arc<T>>,
    told: &BTreeMap<ObjectName, Arc<T>>,
    changed: fn(T) -> Change,
    gone: fn(ObjectName) -> Change,
    changes: &mut Vec<Change>,
) {
    for (name, value) in now {
        let same = told.get(name).is_some_and(|old| Arc::ptr_eq(old, value) || old == value);
        if !same {
            changes.push(changed((**value).clone()));
        }
    }
    changes.extend(told.keys().filter(|name| !now.contains_key(*name)).cloned().map(gone));
}

/// How a file is written, by its name; `None` when it isn't ours.
fn format_of(name: &OsStr) -> Option<Format> {
    if name.as_encoded_bytes().starts_with(b".") {
        return None;
    }
    match Path::new(name).extension()?.to_str()? {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

fn load(path: &Path, name: &OsStr, format: Format, size: u64) -> Result<Vec<Manifest>, Problem> {
    if size > FILE_SIZE_MAX {
        return Err(unreadable(name, &format!("it has {size} bytes, more than {FILE_SIZE_MAX}")));
    }
    let bytes = std::fs::read(path).map_err(|error| unreadable(name, &error.to_string()))?;
    let invalid = |line: usize, reason: &str| Problem {
        object: format!("{}:{line}", name.display()),
        reason: format!("{reason} (the file's last good objects stay)"),
    };
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + good.iter().filter(|&&byte| byte == b'\n').count();
        invalid(line, "is not UTF-8 text; save it as such")
    })?;
    file::parse(text, format).map_err(|error| invalid(error.line, &error.reason))
}

fn unreadable(name: &OsStr, reason: &str) -> Problem {
    Problem {
        object: name.display().to_string(),
        reason: format!(
            "can't be read: {reason}; correct the file or its permissions (its last good objects \
             stay)"
        ),
    }
}

fn duplicate(file: &OsStr, owner: &OsStr, manifest: &Manifest) -> Problem {
    Problem {
        object: format!("{}:{}", file.display(), manifest.line),
        reason: format!(
            "{} is in {} too, which wins; remove one of the two",
            manifest.object,
            owner.display()
        ),
    }
}

#[cfg(test)]
mod tests;
