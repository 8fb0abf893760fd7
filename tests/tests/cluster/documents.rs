//! What the documents say to do with Helm and kubectl is done, word by word, at a real API server. What
//! kubelets would do is said to it in their place: Pods are ready, or have succeeded, as soon as they are
//! there. What needs a container to be entered is run on a cluster with kubelets (`cargo xtask e2e
//! --installation`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::api::DynamicObject;
use lb_lab::{Lab, Options};
use lb_tests::cluster::ControlPlane;
use lb_tests::cluster::api::ApiClient;
use lb_tests::cluster::control_plane::HOST;
use lb_tests::cluster::credentials::Identity;
use lb_tests::cluster::go::{HELM, KUBERNETES};
use lb_tests::cluster::reach::eventually;
use lb_tests::cluster::test_cluster::{NODES, add_nodes};
use lb_tests::documents::{Shown, commands};
use lb_tests::mentions::mentions;
use serde_json::{Value, json};

pub const NAMESPACE: &str = "kube-system";
/// How the command begins that removes what an uninstall leaves that isn't done in time.
pub const REMOVE_LATE: [&str; 5] = ["kubectl", "-n", NAMESPACE, "delete", "daemonset,job"];
/// Longest time of one command, seconds; Helm itself waits for five minutes.
const LIMIT: &str = "240";

/// A control plane that no test shares: the release brings the rights that others' agents have.
pub struct Cluster {
    pub control_plane: ControlPlane,
    programs: [(&'static str, PathBuf); 2],
    pub lab: Arc<Lab>,
}

impl Cluster {
    pub fn start() -> Result<Self> {
        let helm = HELM.ensure(&["helm"])?.join("helm");
        let kubectl = KUBERNETES.ensure(&["kubectl"])?.join("kubectl");
        let lab = Arc::new(Lab::up(&Options { pods_per_node: 0, ..Options::default() })?);
        let control_plane = ControlPlane::start(&lab)?;
        add_nodes(control_plane.api(), &lab)?;
        Ok(Self { control_plane, programs: [("helm", helm), ("kubectl", kubectl)], lab })
    }

    /// Runs a command from the folder in which the documents are; what it prints.
    pub fn run(&self, words: &[String]) -> Result<String> {
        let line = words.join(" ");
        let (name, arguments) = words.split_first().context("no command")?;
        let program = self.programs.iter().find(|(program, _)| program == name);
        let (_, program) = program.with_context(|| format!("no program for {line}"))?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
        let mut command = self.lab.command(HOST, "timeout")?;
        command.arg(LIMIT).arg(program).args(arguments).current_dir(root);
        command.env("KUBECONFIG", self.control_plane.kubeconfig(Identity::Admin));
        // Where both keep what they have learned of API servers.
        command.env("HOME", self.lab.directory());
        let output = command.output().with_context(|| format!("starting {line}"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{line}: {}\n{said}\n{errors}", output.status);
        ensure!(!said.trim().is_empty(), "{line} prints nothing");
        Ok(said)
    }

    /// What kubectl prints of the release's objects, by name.
    pub fn release(&self) -> Result<Vec<String>> {
        let kinds = "daemonsets,jobs,serviceaccounts,roles,rolebindings,clusterroles,\
            clusterrolebindings";
        let words = ["kubectl", "get", kinds, "-n", NAMESPACE, "-o", "name"].map(str::to_owned);
        let said = self.run(&words)?;
        Ok(said.lines().filter(|name| name.contains("lb-agent")).map(str::to_owned).collect())
    }

    /// Nobody waits for the end of what is deleted.
    pub fn is_clean(&self, after: &str) -> Result<()> {
        eventually(&format!("{after}, and uninstalled: nothing is left"), || {
            let left = self.release()?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
    }

    /// The flags of the installed agents.
    fn flags(&self) -> Result<Vec<String>> {
        let words = ["kubectl", "get", "daemonset", "lb-agent", "-n", NAMESPACE, "-o", "json"];
        let object: Value = serde_json::from_str(&self.run(&words.map(str::to_owned))?)?;
        let arguments = &object["spec"]["template"]["spec"]["containers"][0]["args"];
        let ready = object["status"]["numberReady"].as_u64();
        ensure!(ready == Some(NODES.len() as u64), "{}", object["status"]);
        serde_json::from_value(arguments.clone()).context("no list of flags")
    }
}

/// What a kubelet says of a Pod: its phase, and whether it is ready.
pub type Said = (&'static str, bool);

/// Says of every Pod what a kubelet would.
fn say_of_pods(api: &ApiClient, said: impl Fn(&DynamicObject) -> Result<Said>) -> Result<()> {
    for pod in api.list("Pod", NAMESPACE, "")? {
        let (phase, is_ready) = said(&pod)?;
        let name = pod.metadata.name.context("a Pod without a name")?;
        let status = if is_ready { "True" } else { "False" };
        let conditions = ["Initialized", "ContainersReady", "Ready"]
            .map(|kind| json!({"type": kind, "status": status}));
        let before = &pod.data["status"];
        if before["phase"] != phase || before["conditions"][2]["status"] != status {
            let status = json!({"phase": phase, "conditions": conditions});
            // It may have been deleted meanwhile.
            drop(api.patch_status("Pod", NAMESPACE, &name, status));
        }
    }
    Ok(())
}

/// Whether a Pod is the Job's that waits for the cleanup.
pub fn is_of_a_job(pod: &DynamicObject) -> bool {
    pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "Job")
}

/// All goes well: Pods of DaemonSets are ready at once, and the Job has done its work.
fn all_is_well(api: &ApiClient, pod: &DynamicObject) -> Result<Said> {
    if !is_of_a_job(pod) {
        return Ok(("Running", true));
    }
    api.delete("DaemonSet", NAMESPACE, "lb-agent-cleanup")?;
    Ok(("Succeeded", false))
}

/// Runs `work` while somebody does what kubelets would.
pub fn with_kubelets<T>(
    api: &ApiClient,
    said: impl Fn(&DynamicObject) -> Result<Said> + Sync,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let kubelets = scope.spawn(|| -> Result<()> {
            while !is_over.load(Ordering::Relaxed) {
                say_of_pods(api, &said)?;
                thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        });
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        let kubelets = kubelets.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        done.and_then(|done| kubelets.map(|()| done))
    })
}

/// What the documents say to delete.
fn add_kube_proxy(api: &ApiClient) -> Result<()> {
    let labels = json!({"k8s-app": "kube-proxy"});
    let containers = json!([{"name": "kube-proxy", "image": "kube-proxy"}]);
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": containers}});
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy"},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    });
    api.create(NAMESPACE, object)
}

pub fn starts(shown: &Shown, words: &[&str]) -> bool {
    shown.words.len() >= words.len() && shown.words.iter().zip(words).all(|(a, b)| a == b)
}

/// Each way to install with Helm, then whatever else is shown, then the way to uninstall; and the way
/// without Helm, as it is shown.
#[test]
fn helm_and_kubectl_do_what_the_documents_say() -> Result<()> {
    let cluster = Cluster::start()?;
    let is_ours = |shown: &Shown| {
        (starts(shown, &["helm"]) || starts(shown, &["kubectl"]))
            && !shown.words.iter().any(|word| word == "exec")
            // Another test's.
            && !starts(shown, &REMOVE_LATE)
    };
    let all: Vec<Shown> = commands().into_iter().filter(is_ours).collect();
    let (plain, all): (Vec<_>, Vec<_>) =
        all.iter().partition(|shown| shown.words.iter().any(|word| word.ends_with(".yaml")));
    let mentioned = mentions().into_iter().filter(|shown| starts(shown, &["kubectl", "get"]));
    // A Service that every API server has.
    let named = |word: String| word.replace("=NAME", "=kubernetes");
    let mentioned: Vec<_> = mentioned
        .map(|shown| Shown { words: shown.words.into_iter().map(named).collect(), ..shown })
        .collect();
    ensure!(!mentioned.is_empty(), "none is mentioned");
    let (installs, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|shown| starts(shown, &["helm", "install"]));
    let (uninstalls, others): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|shown| starts(shown, &["helm", "uninstall"]));
    ensure!(installs.len() > 1 && others.len() > 2 && !uninstalls.is_empty(), "{others:#?}");
    ensure!(plain.len() > 3, "{plain:#?}");
    let run = |shown: &Shown| cluster.run(&shown.words).with_context(|| shown.to_string());
    let api = cluster.control_plane.api();
    with_kubelets(
        api,
        |pod| all_is_well(api, pod),
        || {
            for install in installs {
                run(install)?;
                add_kube_proxy(cluster.control_plane.api())?;
                for other in others.iter().copied().chain(&mentioned) {
                    run(other)?;
                }
                let flags = cluster.flags()?;
                let has_file = flags.iter().any(|flag| flag.starts_with("--config="));
                let is_told =
                    install.words.iter().any(|word| word.starts_with("kubeProxyConfigMap="));
                ensure!(has_file == is_told, "{install}: {flags:?}");
                for uninstall in &uninstalls {
                    run(uninstall)?;
                }
                cluster.is_clean(&install.to_string())?;
            }
            for shown in &plain {
                run(shown)?;
            }
            cluster.is_clean(&plain.last().context("nothing without Helm")?.to_string())
        },
    )
}
