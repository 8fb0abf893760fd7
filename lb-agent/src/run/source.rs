//! Opens the source of Services that was chosen: an API server or a directory.
//!
//! What is wrong with a *file* ends the start, with the file's name and the remedy. A *server* that
//! doesn't answer doesn't: the watches go on trying, and what is in the kernel stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::Uri;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use tokio::sync::mpsc;

use crate::cluster::manifests::{ManifestError, Manifests};
use crate::cluster::snapshot::Change;
use crate::cluster::watch::{self, ClientError, WatchHealth};
use crate::config::Source;

/// Batches between a source and the loop. When it is full, the source waits: the server's or the
/// kernel's buffers hold the rest.
const BATCHES: usize = 64;

/// Why there is no source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No kubeconfig, and not in a Pod.
    #[error(
        "no API server is known: {0}; give --kubeconfig FILE, or run in a Pod with a service \
         account, or give --manifests DIR to work without an API server"
    )]
    NotInCluster(kube::config::InClusterError),
    /// The kubeconfig file couldn't be read.
    #[error("--kubeconfig {path}: {source}; check that the file exists and that we may read it")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The kubeconfig file can't be used.
    #[error(
        "--kubeconfig {path}: {source}; `kubectl --kubeconfig {path} version` must work on this node"
    )]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: KubeconfigError,
    },
    /// The address is one that we are to make work.
    #[error(
        "the API server's address {address} is the ClusterIP or cluster name of the Service \
         default/kubernetes, which works only once this agent runs; give --master \
         https://HOST:6443 (in the Helm chart: apiServer.addresses) with the address that the \
         nodes' kubelets use, see `kubectl get endpointslices -n default -l \
         kubernetes.io/service-name=kubernetes`"
    )]
    ClusterIp {
        /// As given, or found in the Pod's environment.
        address: Uri,
    },
    /// Certificates or keys can't be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The directory can't be followed.
    #[error("--manifests: {0}")]
    Manifests(#[from] ManifestError),
}

/// A source that is being followed by a task of the runtime.
pub struct Following {
    /// What it says.
    pub changes: mpsc::Receiver<Vec<Change>>,
    /// The API server, if it is one.
    pub server: Option<Server>,
}

/// An API server.
pub struct Server {
    /// For other requests than the watches.
    pub client: Client,
    /// How the watches are.
    pub watches: Arc<WatchHealth>,
}

/// Follows `source` for the node called `node_name`; must be called within a tokio runtime.
pub async fn follow(source: &Source, node_name: &str) -> Result<Following, SourceError> {
    let (sender, changes) = mpsc::channel(BATCHES);
    let node_name = node_name.to_owned();
    match source {
        Source::Manifests(directory) => {
            let manifests = Manifests::open(directory, &node_name)?;
            tokio::spawn(async move {
                if let Err(error) = manifests.run(sender).await {
                    tracing::error!(%error, "the manifest directory isn't followed any more");
                }
            });
            Ok(Following { changes, server: None })
        }
        Source::ApiServer { kubeconfig, addresses } => {
            let watches = Arc::new(WatchHealth::default());
            let client = connect(kubeconfig.as_deref(), addresses, &watches).await?;
            tracing::info!(node = node_name, "following the API server");
            let (their_client, their_watches) = (client.clone(), watches.clone());
            tokio::spawn(async move {
                watch::run(their_client, &node_name, their_watches, sender).await;
            });
            Ok(Following { changes, server: Some(Server { client, watches }) })
        }
    }
}

/// A client of the API server at `addresses`, or of the one that the kubeconfig or the Pod's environment names.
/// Nothing is asked yet.
pub async fn connect(
    kubeconfig: Option<&Path>,
    addresses: &[Uri],
    watches: &Arc<WatchHealth>,
) -> Result<Client, SourceError> {
    let config = client_config(kubeconfig, addresses).await?;
    let addresses = match addresses {
        [] => vec![config.cluster_url.clone()],
        given => given.to_vec(),
    };
    refuse_cluster_addresses(&addresses, std::env::var(KUBELETS_WORD).ok().as_deref())?;
    tracing::info!(server = watch::list(&addresses), "the API server's address");
    Ok(watch::client(config, addresses, watches)?)
}

/// What a kubelet tells each container of the Service default/kubernetes, such as
/// `tcp://10.96.0.1:443`. Unlike KUBERNETES_SERVICE_HOST nobody sets it to another address.
const KUBELETS_WORD: &str = "KUBERNETES_PORT";

/// An address of the Service default/kubernetes may work at first, by rules that another proxy left,
/// and would fail after the node's next reboot.
fn refuse_cluster_addresses(
    addresses: &[Uri],
    kubelets_word: Option<&str>,
) -> Result<(), SourceError> {
    let cluster_ip = kubelets_word.and_then(|url| url.parse::<Uri>().ok());
    let cluster_ip = cluster_ip.as_ref().and_then(Uri::host);
    let is_of_the_cluster = |host: &str| {
        Some(host) == cluster_ip
            || ["kubernetes.default", "kubernetes.default.svc"].contains(&host)
            || host.starts_with("kubernetes.default.svc.")
    };
    match addresses.iter().find(|address| address.host().is_some_and(is_of_the_cluster)) {
        Some(address) => Err(SourceError::ClusterIp { address: address.clone() }),
        None => Ok(()),
    }
}

async fn client_config(
    kubeconfig: Option<&Path>,
    addresses: &[Uri],
) -> Result<kube::Config, SourceError> {
    match (kubeconfig, addresses.first()) {
        (Some(path), _) => from_file(path).await,
        (None, None) => kube::Config::incluster().map_err(SourceError::NotInCluster),
        // As kube-proxy: a server's address alone will do, for servers that ask for no credentials.
        (None, Some(address)) => {
            Ok(kube::Config::incluster().unwrap_or_else(|_| kube::Config::new(address.clone())))
        }
    }
}

async fn from_file(path: &Path) -> Result<kube::Config, SourceError> {
    // Read here first: kube's error for the same doesn't always say which file it is about.
    std::fs::File::open(path)
        .and_then(|mut file| std::io::Read::read(&mut file, &mut [0]))
        .map_err(|source| SourceError::Unreadable { path: path.to_owned(), source })?;
    let invalid = |source| SourceError::Invalid { path: path.to_owned(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(invalid)?;
    let options = KubeConfigOptions::default();
    kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn error_of(kubeconfig: &Path) -> String {
        let source =
            Source::ApiServer { kubeconfig: Some(kubeconfig.to_owned()), addresses: Vec::new() };
        match follow(&source, "node-a").await {
            Ok(_) => unreachable!("{} was accepted", kubeconfig.display()),
            Err(error) => error.to_string(),
        }
    }

    const GOOD: &str = "
apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: 'http://127.0.0.1:1'}}]
users: [{name: test, user: {token: secret}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
";

    #[tokio::test]
    async fn a_kubeconfig_that_cannot_be_used_is_named_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("empty"), "").unwrap();
        std::fs::write(path("garbage"), "{ this is: not [yaml").unwrap();
        std::fs::write(path("no-context"), GOOD.replace("current-context: test", "")).unwrap();
        std::fs::write(
            path("no-file"),
            GOOD.replace("server:", "certificate-authority: /absent/ca, server:"),
        )
        .unwrap();
        for name in ["absent", "", "empty", "garbage", "no-context", "no-file"] {
            let error = error_of(&path(name)).await;
            let file = path(name).display().to_string();
            assert!(error.contains(&format!("--kubeconfig {file}: ")), "{name}: {error}");
            assert!(error.contains("; check that") || error.contains("must work"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_down_does_not_end_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        std::fs::write(&path, GOOD).unwrap();
        let source = Source::ApiServer { kubeconfig: Some(path), addresses: Vec::new() };
        let mut following = follow(&source, "node-a").await.unwrap();
        let wait =
            tokio::time::timeout(std::time::Duration::from_millis(200), following.changes.recv());
        assert!(wait.await.is_err(), "nothing is heard of a server that is down");
    }

    #[tokio::test]
    async fn a_servers_address_will_do_without_a_kubeconfig() {
        let address: Uri = "https://192.0.2.1:6443".parse().unwrap();
        let config = client_config(None, std::slice::from_ref(&address)).await.unwrap();
        assert_eq!(config.cluster_url, address);
    }

    #[test]
    fn an_address_that_works_only_through_the_agent_is_refused_with_the_remedy() {
        let check = |address: &str, kubelets_word: Option<&str>| {
            let good: Uri = "https://192.0.2.1:6443".parse().unwrap();
            refuse_cluster_addresses(&[good, address.parse().unwrap()], kubelets_word)
        };
        for (address, kubelets_word) in [
            ("https://10.96.0.1:443", Some("tcp://10.96.0.1:443")),
            ("https://10.96.0.1", Some("tcp://10.96.0.1:443")),
            ("https://[fd00:96::1]:443", Some("tcp://[fd00:96::1]:443")),
            ("https://kubernetes.default.svc", None),
            ("https://kubernetes.default.svc.cluster.local:443", None),
        ] {
            let error = check(address, kubelets_word).unwrap_err().to_string();
            assert!(error.contains(address) && error.contains("--master https://"), "{error}");
        }
        for (address, kubelets_word) in [
            ("https://192.0.2.7:6443", Some("tcp://10.96.0.1:443")),
            ("https://10.96.0.1:443", None),
            ("https://kubernetes.example:6443", Some("garbage")),
        ] {
            assert!(check(address, kubelets_word).is_ok(), "{address}");
        }
    }

    #[tokio::test]
    async fn a_manifest_directory_that_is_missing_is_named() {
        let source = Source::Manifests("/absent/manifests".into());
        let error = follow(&source, "node-a").await.err().expect("refused").to_string();
        assert!(error.contains("--manifests: ") && error.contains("/absent/manifests"), "{error}");
    }
}
