//! etcd, kube-apiserver and kube-controller-manager as one thing that starts, breaks and ends.
//!
//! Everything runs on the router of a lab's fabric, which every node reaches directly, and keeps its
//! files in the lab's directory, so any number of control planes can exist side by side with the
//! same ports.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lb_lab::{Lab, topology};

use super::api::ApiClient;
use super::binaries::Binaries;
use super::credentials::{self, Identity, PORT};
use super::etcd::{self, CLIENT_PORT, PEER_PORT};
use super::process::{Namespace, Process};

/// The lab's host that the control plane runs on.
pub const HOST: &str = "fabric";

/// What of kube-controller-manager runs: what makes endpoints and Pods, what cleans up after deleted
/// objects, and what gives a namespace its accounts. Node controllers would find no kubelet and give up
/// the nodes.
const CONTROLLERS: &str = "daemonset-controller,job-controller,endpoints-controller,endpointslice-controller,\
    endpointslice-mirroring-controller,garbage-collector-controller,namespace-controller,\
    serviceaccount-controller,serviceaccount-token-controller,\
    root-ca-certificate-publisher-controller,service-cidr-controller";

/// How long the API server may take until it is ready. Two busy cores need a few seconds.
const START: Duration = Duration::from_secs(60);

/// A running control plane. Dropping it kills its processes; its files go with the lab.
pub struct ControlPlane {
    // Processes come first: they are killed before the namespace's thread ends.
    controller_manager: Process,
    apiserver: Process,
    etcd: Process,
    api: ApiClient,
    place: Place,
}

/// What the programs are started with.
struct Place {
    lab: Arc<Lab>,
    namespace: Arc<Namespace>,
    binaries: Binaries,
    files: PathBuf,
    address: IpAddr,
}

impl ControlPlane {
    /// Starts a control plane on the fabric of `lab`; ready when this returns.
    ///
    /// # Errors
    /// The programs can't be built or started, or one of them ended; the error carries its words.
    pub fn start(lab: &Arc<Lab>) -> Result<Self> {
        let binaries = Binaries::ensure()?;
        let files = lab.directory().join("control-plane");
        fs::create_dir_all(&files).with_context(|| format!("creating {}", files.display()))?;
        let namespace = Arc::new(Namespace::open(&lab.namespace(HOST)?)?);
        let address = topology::FABRIC_ROUTER.v4.into();
        let place = Place { lab: Arc::clone(lab), namespace, binaries, files, address };
        credentials::write_tokens(&place.file("tokens.csv"))?;
        let authority = place.certificate();
        for identity in Identity::ALL {
            credentials::write_kubeconfig(
                &place.kubeconfig(identity),
                identity,
                address,
                &authority,
            )?;
        }
        let mut etcd = place.start_etcd()?;
        let mut apiserver = place.start_apiserver()?;
        wait_for("kube-apiserver's certificate", || {
            etcd.expect_running()?;
            apiserver.expect_running()?;
            Ok(authority.exists() && place.key().exists())
        })?;
        let controller_manager = place.start_controller_manager()?;
        let api = ApiClient::new(Arc::clone(&place.namespace), &place.kubeconfig(Identity::Admin))?;
        let mut this = Self { controller_manager, apiserver, etcd, api, place };
        this.wait_until_ready()?;
        Ok(this)
    }

    /// The client with every right.
    #[must_use]
    pub fn api(&self) -> &ApiClient {
        &self.api
    }

    /// A client with the rights of `identity`.
    ///
    /// # Errors
    /// The kubeconfig can't be used.
    pub fn api_as(&self, identity: Identity) -> Result<ApiClient> {
        ApiClient::new(Arc::clone(&self.place.namespace), &self.place.kubeconfig(identity))
    }

    /// A kubeconfig file; stays valid across restarts.
    #[must_use]
    pub fn kubeconfig(&self, identity: Identity) -> PathBuf {
        self.place.kubeconfig(identity)
    }

    /// The API server's certificate, which is its own authority.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.place.certificate()
    }

    /// Kills the API server as a crash would. Clients see their connections reset.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill_apiserver(&mut self) -> Result<()> {
        self.apiserver.kill()
    }

    /// Starts the API server after [`Self::kill_apiserver`] and waits until it is ready.
    ///
    /// The controllers begin anew with it: after several outages in a row their clients ask again
    /// only a minute later (client-go's backoff), which isn't what the tests are about.
    ///
    /// # Errors
    /// It does not start; the error carries its words.
    pub fn start_apiserver(&mut self) -> Result<()> {
        self.controller_manager.kill()?;
        self.apiserver = self.place.start_apiserver()?;
        self.wait_until_ready()
    }

    /// Kills etcd and starts it anew with what it had stored.
    ///
    /// # Errors
    /// It does not start; the error carries its words.
    pub fn restart_etcd(&mut self) -> Result<()> {
        self.etcd.kill()?;
        self.etcd = self.place.start_etcd()?;
        self.wait_until_ready()
    }

    /// Discards old versions in etcd, so that watches which resume from one get `410 Gone` once
    /// the API server's own cache has been emptied by a restart.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn compact(&self) -> Result<i64> {
        etcd::compact(&self.place.namespace)
    }

    /// Starts again whatever a test left dead.
    ///
    /// # Errors
    /// It does not start; the error carries its words.
    pub fn repair(&mut self) -> Result<()> {
        if self.etcd.expect_running().is_err() {
            self.restart_etcd()?;
        }
        if self.apiserver.expect_running().is_err() {
            self.start_apiserver()?;
        }
        self.ensure_controllers()
    }

    /// Ends everything, whatever the state.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.controller_manager.kill()?;
        self.apiserver.kill()?;
        self.etcd.kill()
    }

    /// What the programs said last, for a failed test's report.
    #[must_use]
    pub fn last_words(&self) -> String {
        [&self.apiserver, &self.controller_manager, &self.etcd].map(Process::last_words).join("\n")
    }

    /// The controller manager ends by itself when the API server is away for too long at its start.
    fn ensure_controllers(&mut self) -> Result<()> {
        if self.controller_manager.expect_running().is_err() {
            self.controller_manager = self.place.start_controller_manager()?;
        }
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let api = self.api.clone();
        wait_for("kube-apiserver to be ready", || {
            self.etcd.expect_running()?;
            self.apiserver.expect_running()?;
            Ok(api.is_ready())
        })
        .with_context(|| self.last_words())?;
        self.ensure_controllers()
    }
}

fn wait_for(what: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < START {
        if ready()? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("waited {START:?} in vain for {what}")
}

impl Place {
    fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    /// The API server makes its certificate here at its first start and keeps it.
    fn certificate(&self) -> PathBuf {
        self.file("apiserver.crt")
    }

    /// The certificate's key; it signs the tokens of ServiceAccounts as well.
    fn key(&self) -> PathBuf {
        self.file("apiserver.key")
    }

    fn kubeconfig(&self, identity: Identity) -> PathBuf {
        self.file(match identity {
            Identity::Admin => "admin.kubeconfig",
            Identity::Agent => "agent.kubeconfig",
        })
    }

    fn start(&self, program: &Path, arguments: &[String]) -> Result<Process> {
        let name = program.file_name().unwrap_or_default();
        let log = self.files.join(name).with_extension("log");
        Process::start(&self.namespace, (&self.lab, HOST), program, arguments, &log)
    }

    fn start_etcd(&self) -> Result<Process> {
        let (client, peer) =
            (format!("http://127.0.0.1:{CLIENT_PORT}"), format!("http://127.0.0.1:{PEER_PORT}"));
        let arguments = [
            "--name=test".into(),
            format!("--data-dir={}", self.file("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=test={peer}"),
            "--log-level=warn".into(),
            // The files live as long as the test: nothing is lost with a power cut.
            "--unsafe-no-fsync".into(),
        ];
        self.start(&self.binaries.etcd, &arguments)
    }

    fn start_apiserver(&self) -> Result<Process> {
        let (address, key) = (self.address, self.key());
        let arguments = [
            format!("--etcd-servers=http://127.0.0.1:{CLIENT_PORT}"),
            format!("--advertise-address={address}"),
            format!("--bind-address={address}"),
            format!("--secure-port={PORT}"),
            format!("--cert-dir={}", self.files.display()),
            format!("--token-auth-file={}", self.file("tokens.csv").display()),
            "--authorization-mode=Node,RBAC".into(),
            format!("--service-cluster-ip-range={}", topology::SERVICE_RANGES.join(",")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", key.display()),
            format!("--service-account-signing-key-file={}", key.display()),
            // A Pod may be created before its namespace has a default account.
            "--disable-admission-plugins=ServiceAccount".into(),
            "--allow-privileged=true".into(),
            "--profiling=false".into(),
        ];
        self.start(&self.binaries.apiserver, &arguments)
    }

    fn start_controller_manager(&self) -> Result<Process> {
        let arguments = [
            format!("--kubeconfig={}", self.kubeconfig(Identity::Admin).display()),
            format!("--controllers={CONTROLLERS}"),
            "--use-service-account-credentials".into(),
            format!("--service-account-private-key-file={}", self.key().display()),
            format!("--root-ca-file={}", self.certificate().display()),
            "--leader-elect=false".into(),
            "--bind-address=127.0.0.1".into(),
            "--profiling=false".into(),
        ];
        self.start(&self.binaries.controller_manager, &arguments)
    }
}
