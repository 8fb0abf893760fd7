//! kube-proxy's configuration file for `lb-agent run --config`: what it says becomes flags that weren't
//! given, and what can't be honoured is said, field by field.
//!
//! A flag or an environment variable comes before the file. (kube-proxy ignores most flags beside a file;
//! here the file is often another program's, and what this agent needs beyond it has to stand somewhere.)

pub mod fields;
pub mod flags;
mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_yaml_ng::Value;

use crate::args::{PodPath, RunArgs};
use crate::config::{Config, ConfigError};
use fields::{Importance, Treatment};
use values::{Fault, Values};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";
/// Between two looks at the file. A ConfigMap's volume is up to a minute behind the API anyway, and
/// it is changed by links of links, which a watch of the file wouldn't see.
const LOOK: Duration = Duration::from_secs(10);

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It couldn't be read.
    #[error("--config {path}: {source}; check that the file exists and that we may read it")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// It isn't YAML.
    #[error("--config {path}: {source}; write one YAML or JSON document")]
    NotYaml {
        /// The file.
        path: PathBuf,
        /// Cause, with line and column.
        source: serde_yaml_ng::Error,
    },
    /// It is something else.
    #[error("--config {path}: {found}, not {API_VERSION} {KIND}; {remedy}")]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// What it says it is.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A field has a value that it can't have.
    #[error("--config {path}: {field}: {reason}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's path.
        field: String,
        /// What is wrong, and the remedy.
        reason: String,
    },
    /// A flag has.
    #[error(transparent)]
    Flag(#[from] ConfigError),
}

/// One line for the log about a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The field's path.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What becomes of it.
    pub text: String,
    /// Whoever wrote the file gets something else than with kube-proxy.
    pub is_warning: bool,
}

/// What the agent was told, all sources together.
#[derive(Debug)]
pub struct Told {
    /// Checked.
    pub config: Config,
    /// What became of the file's fields.
    pub notes: Vec<Note>,
    /// The file, to be followed.
    pub file: Option<ConfigFile>,
}

/// The configuration of flags and environment, and of the file that they name. `hostname` is this
/// machine's name.
pub fn configure(args: RunArgs, hostname: &str) -> Result<Told, FileError> {
    let Some(path) = args.config.clone() else {
        let config = Config::new(args, hostname)?;
        return Ok(Told { config, notes: Vec::new(), file: None });
    };
    let (config, notes) = read(&path, args.clone(), hostname)?;
    let file = ConfigFile { path, args, hostname: hostname.to_owned(), config: config.clone() };
    Ok(Told { config, notes, file: Some(file) })
}

/// A file that the agent works with.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    args: RunArgs,
    hostname: String,
    config: Config,
}

impl ConfigFile {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns once the file says something else. What can't be used doesn't count: an agent that is
    /// started with it would end at once.
    pub async fn changed(&self) {
        self.changed_within(LOOK).await;
    }

    async fn changed_within(&self, look: Duration) {
        let mut said = String::new();
        loop {
            tokio::time::sleep(look).await;
            match read(&self.path, self.args.clone(), &self.hostname) {
                Ok((config, _)) if config != self.config => return,
                Ok(_) => said.clear(),
                Err(error) => {
                    let error = error.to_string();
                    if error != said {
                        tracing::warn!(%error, "the changed file can't be used; the agent goes on as before");
                        said = error;
                    }
                }
            }
        }
    }
}

fn read(path: &Path, args: RunArgs, hostname: &str) -> Result<(Config, Vec<Note>), FileError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| FileError::Unreadable { path: path.to_owned(), source })?;
    let document: Value = serde_yaml_ng::from_str(&text)
        .map_err(|source| FileError::NotYaml { path: path.to_owned(), source })?;
    check_kind(path, &document)?;
    let values = values::values(&document).map_err(|Fault { field, reason }| FileError::Field {
        path: path.to_owned(),
        field,
        reason,
    })?;
    let mut filled = Filled { args, from: BTreeMap::new(), notes: Vec::new() };
    filled.fill(&values);
    filled.note_ignored(&values);
    let Filled { args, from, notes } = filled;
    let config = Config::new(args, hostname).map_err(|error| match from.get(error.flag) {
        None => FileError::Flag(error),
        Some(field) => FileError::Field {
            path: path.to_owned(),
            field: (*field).to_owned(),
            reason: format!("{:?}: {}; {}", error.value, error.reason, error.remedy),
        },
    })?;
    Ok((config, notes))
}

fn check_kind(path: &Path, document: &Value) -> Result<(), FileError> {
    let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let remedy = match (version, kind) {
        (API_VERSION, KIND) => return Ok(()),
        (_, "ConfigMap") => {
            "give what its key config.conf holds (kubectl -n kube-system get configmap kube-proxy -o \
             jsonpath='{.data.config\\.conf}'), or mount it: the key becomes a file"
        }
        (_, KIND) => "no other version is known: write the fields of v1alpha1",
        _ => "give kube-proxy's configuration file; other settings are flags of `lb-agent run`",
    };
    let found = match (version, kind) {
        ("", "") => "it says no apiVersion and no kind".to_owned(),
        _ => format!("it is {version:?} {kind:?}"),
    };
    Err(FileError::OtherKind { path: path.to_owned(), found, remedy })
}

/// Flags, as far as they were given, and what the file adds.
struct Filled {
    args: RunArgs,
    /// Flags whose value is the file's, and the field that says it.
    from: BTreeMap<&'static str, &'static str>,
    notes: Vec<Note>,
}

impl Filled {
    fn fill(&mut self, values: &Values) {
        let Self { args, .. } = self;
        let is_given = |list: &[String]| list.iter().any(|item| !item.trim().is_empty());
        let given = [
            ("clientConnection.kubeconfig", "kubeconfig", args.source.kubeconfig.is_some()),
            ("hostnameOverride", "hostname-override", args.node.hostname_override.is_some()),
            ("clusterCIDR", "cluster-cidr", is_given(&args.node.cluster_cidr)),
            ("nodePortAddresses", "nodeport-addresses", is_given(&args.node.nodeport_addresses)),
            (
                "healthzBindAddress",
                "healthz-bind-address",
                args.serving.healthz_bind_address.is_some(),
            ),
            (
                "metricsBindAddress",
                "metrics-bind-address",
                args.serving.metrics_bind_address.is_some(),
            ),
        ];
        for (field, flag, is_given) in given {
            match values.get(field) {
                Some(value) if is_given => {
                    self.note(field, value, format!("--{flag} comes first"), false)
                }
                Some(value) if flag == "kubeconfig" && self.args.source.manifests.is_some() => {
                    self.note(field, value, "--manifests comes first".to_owned(), false);
                }
                Some(value) => {
                    self.from.insert(flag, field);
                    self.set(flag, value);
                    self.note(field, value, format!("used as --{flag}"), false);
                }
                None => {}
            }
        }
        self.fill_masquerade_all(values);
        self.fill_pod_devices(values);
        self.fill_defaults(values);
    }

    /// That of the mode; `ipvs` has none of its own.
    fn fill_masquerade_all(&mut self, values: &Values) {
        const FIELDS: [&str; 2] = ["iptables.masqueradeAll", "nftables.masqueradeAll"];
        let is_nftables = values.get("mode").is_some_and(|mode| mode == "nftables");
        for (field, is_its) in FIELDS.into_iter().zip([!is_nftables, is_nftables]) {
            let Some(value) = values.get(field).filter(|value| *value == "true") else {
                continue;
            };
            let kernel = &mut self.args.kernel;
            let (text, is_warning) = if !is_its {
                ("ignored: it is for another mode", false)
            } else if kernel.masquerade_all.is_some() {
                ("--masquerade-all comes first", false)
            } else if kernel.pod_path == PodPath::Packet {
                kernel.masquerade_all = Some(true);
                ("used as --masquerade-all", false)
            } else {
                let ignored = "ignored: the sockets of pods are led to an endpoint before there is a packet \
                    whose source could be replaced; give --pod-path packet if endpoints must not see pods";
                (ignored, true)
            };
            self.note(field, value, text.to_owned(), is_warning);
        }
    }

    /// Pods are told by their devices anyway; a prefix says which those are.
    fn fill_pod_devices(&mut self, values: &Values) {
        const PREFIX: &str = "detectLocal.interfaceNamePrefix";
        let mode = values.get("detectLocalMode").map(String::as_str).unwrap_or_default();
        if !matches!(mode, "" | "ClusterCIDR") {
            let text = "pods are told from other sources by device and socket, in every mode";
            self.note("detectLocalMode", mode, text.to_owned(), false);
        }
        let Some(prefix) = values.get(PREFIX) else {
            return;
        };
        let text = if mode != "InterfaceNamePrefix" {
            "ignored: it is for another detectLocalMode"
        } else if self.args.node.pod_devices.iter().any(|name| !name.trim().is_empty()) {
            "--pod-devices comes first"
        } else {
            self.from.insert("pod-devices", PREFIX);
            self.args.node.pod_devices = vec![format!("{prefix}*")];
            "used as --pod-devices"
        };
        self.note(PREFIX, prefix, text.to_owned(), false);
    }

    /// Defaults that depend on other fields, as in kube-proxy.
    fn fill_defaults(&mut self, values: &Values) {
        let says = |field| values.get(field).map(String::as_str).unwrap_or_default();
        if says("mode") == "nftables"
            && !self.args.node.nodeport_addresses.iter().any(|a| !a.is_empty())
        {
            self.from.insert("nodeport-addresses", "mode");
            self.set("nodeport-addresses", "primary");
            let text = "NodePorts are on the node's primary addresses alone, as with kube-proxy in this \
                mode; --nodeport-addresses 0.0.0.0/0,::/0 serves them on all";
            self.note("mode", "nftables", text.to_owned(), false);
        } else if !says("mode").is_empty() {
            self.note("mode", says("mode"), "there is one mode, eBPF".to_owned(), false);
        }
        let address = says("bindAddress");
        let metrics = &mut self.args.serving.metrics_bind_address;
        if address.contains(':') && metrics.is_none() {
            *metrics = Some("[::1]:10249".to_owned());
            self.note("bindAddress", address, "/metrics is on [::1]:10249".to_owned(), false);
        }
        if !matches!(address, "" | "0.0.0.0" | "::") {
            let text =
                "ignored: the node's primary address is the one that its Node object names first";
            self.note("bindAddress", address, text.to_owned(), true);
        }
    }

    fn set(&mut self, flag: &str, value: &str) {
        let list = |value: &str| value.split(',').map(str::to_owned).collect();
        let args = &mut self.args;
        match flag {
            "kubeconfig" => args.source.kubeconfig = Some(value.into()),
            "hostname-override" => args.node.hostname_override = Some(value.to_owned()),
            "cluster-cidr" => args.node.cluster_cidr = list(value),
            "nodeport-addresses" => args.node.nodeport_addresses = list(value),
            "healthz-bind-address" => args.serving.healthz_bind_address = Some(value.to_owned()),
            _ => args.serving.metrics_bind_address = Some(value.to_owned()),
        }
    }

    fn note_ignored(&mut self, values: &Values) {
        for (path, value) in values {
            if let Some(field) = fields::at(path)
                && let Treatment::Ignored(importance, why) = field.treatment
            {
                let is_warning = importance == Importance::Changes;
                self.note(field.path, value, format!("ignored: {why}"), is_warning);
            }
        }
    }

    fn note(&mut self, field: &'static str, value: &str, text: String, is_warning: bool) {
        self.notes.push(Note { field, value: value.to_owned(), text, is_warning });
    }
}

/// Says in the log what became of the file.
pub fn log(notes: &[Note], file: &Path) {
    let file = file.display();
    for Note { field, value, text, is_warning } in notes {
        if *is_warning {
            tracing::warn!(%file, field, value, "{text}");
        } else {
            tracing::info!(%file, field, value, "{text}");
        }
    }
}

#[cfg(test)]
mod tests;
