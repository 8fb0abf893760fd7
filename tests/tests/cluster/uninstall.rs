//! `helm uninstall` beside a running kube-proxy, and one that isn't done in time: what the chart's hooks run
//! is run as it stands there, with the rights that it has there.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::api::DynamicObject;
use lb_lab::{Family, topology};
use lb_tests::cluster::confined::{confined_as, objects};
use lb_tests::cluster::control_plane::HOST;
use lb_tests::cluster::credentials::PORT;
use lb_tests::cluster::reach::eventually;
use lb_tests::cluster::requests::{inside, outside, reach_all};
use lb_tests::cluster::test_cluster::NODES;
use lb_tests::cluster::{TestCluster, alone, chart};
use lb_tests::documents::commands;
use serde_json::{Value, json};

use crate::documents::{Cluster, NAMESPACE, REMOVE_LATE, Said, is_of_a_job, starts, with_kubelets};
use crate::kube_proxy::{KubeProxy, Mode, flush};
use crate::takeover::{INSIDE, Loads, MOMENT, NODE_PORT, PODS, SERVICE, cleaned};

/// A UDP flow is over after 35 s of silence, and one run of `cleanup` waits for a minute.
const CLEANUP: Duration = Duration::from_secs(240);
const UNINSTALL: [&str; 5] = ["helm", "uninstall", "lb-agent", "-n", NAMESPACE];

fn strings(list: &Value) -> Vec<String> {
    let strings = list.as_array().into_iter().flatten();
    strings.filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

/// What the container that cleans a node runs, as the chart makes it.
struct Cleaner {
    program: PathBuf,
    arguments: Vec<String>,
}

fn cleaner(cluster: &TestCluster) -> Result<Cleaner> {
    let address = "apiServer.addresses={https://10.0.0.10:6443}";
    let show = ["--set", address, "--show-only", "templates/cleanup-daemon-set.yaml"];
    let rendered = chart::template(&show)?;
    ensure!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let made = objects(&String::from_utf8(rendered.stdout)?)?;
    let set = made.iter().find(|object| object["kind"] == "DaemonSet");
    let container = &set.context("no DaemonSet")?["spec"]["template"]["spec"]["initContainers"][0];
    let program = confined_as(container, &lb_lab::agent_binary()?, cluster.lab().directory())?;
    Ok(Cleaner { program, arguments: strings(&container["args"]) })
}

/// The command of that container on a node, whose BPF file system is elsewhere in a lab.
fn cleanup(cluster: &TestCluster, node: &str, cleaner: &Cleaner) -> Result<Command> {
    let lab = cluster.lab();
    let mut command = lab.command(node, &cleaner.program)?;
    command.args(&cleaner.arguments).env("LB_BPFFS", lab.bpffs(node));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(command)
}

/// As a kubelet does: runs it until it succeeds. How often it was run.
fn clean(cluster: &TestCluster, node: &str, cleaner: &Cleaner) -> Result<u32> {
    let began = Instant::now();
    for run in 1.. {
        let output = cleanup(cluster, node, cleaner)?.output().context("running cleanup")?;
        if output.status.success() {
            return Ok(run);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("still go through lb-agent"), "{node}: {said}");
        ensure!(began.elapsed() < CLEANUP, "{node} isn't clean after {run} runs: {said}");
    }
    bail!("it was never run")
}

fn joined(cleanup: ScopedJoinHandle<Result<u32>>) -> Result<u32> {
    cleanup.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn beside_kube_proxy(cluster: &mut TestCluster, mode: Mode) -> Result<()> {
    let namespace = cluster.namespace(&format!("uninstall-{}", mode.name()))?;
    namespace.apply(SERVICE)?;
    namespace.pods(&json!({"app": "takeover"}), &PODS)?;
    let mut addresses = Vec::new();
    for family in Family::BOTH {
        for pod in PODS {
            addresses.push(cluster.address(pod, family)?);
        }
    }
    namespace.wait_for_endpoints("web", &addresses)?;
    let outside = outside(cluster, NODE_PORT)?;
    let all = [inside(&namespace, "web", &[INSIDE, "node-a"])?, outside.clone()].concat();
    reach_all(cluster, &all, &PODS)?;
    let held = Loads::start(cluster, &outside, true)?;
    let mut proxy = KubeProxy::new(cluster, mode, NODE_PORT)?;
    proxy.start(cluster)?;
    let short = Loads::start(cluster, &all, false)?;
    sleep(MOMENT);

    // The agents go first, then comes the hook.
    for node in NODES {
        cluster.stop_agent(node)?;
    }
    let cleaner = cleaner(cluster)?;
    let has_datapath = |node| cluster.lab().bpffs(node).join("lb").exists();
    thread::scope(|scope| {
        let cleanups = NODES.map(|node| scope.spawn(|| clean(cluster, node, &cleaner)));
        sleep(2 * MOMENT);
        let mut waiting = Vec::new();
        for (node, cleanup) in NODES.into_iter().zip(cleanups) {
            if cleanup.is_finished() {
                let runs = joined(cleanup)?;
                bail!("{node} is clean after {runs} runs, and waited for no flow");
            }
            ensure!(has_datapath(node), "{node} has lost its datapath while flows are waited for");
            waiting.push((node, cleanup));
        }
        held.stop(cluster, "while they are waited for")?;
        short.check(cluster, "while flows are waited for")?;
        for (node, cleanup) in waiting {
            let runs = joined(cleanup)?;
            println!("{node} is clean after {runs} runs");
            ensure!(!has_datapath(node), "{node} still has a datapath");
        }
        anyhow::Ok(())
    })?;
    sleep(MOMENT);
    short.stop(cluster, "with kube-proxy alone")?;
    reach_all(cluster, &all, &PODS)?;
    proxy.stop()?;
    for node in NODES {
        cleaned(cluster, node, &["--kube-proxy", "--force"])?;
        flush(cluster, node)?;
    }
    Ok(())
}

#[test]
fn beside_kube_proxy_the_charts_cleanup_loses_no_connection() -> Result<()> {
    alone(|cluster| beside_kube_proxy(cluster, Mode::Nftables))
}

/// What the container of the chart's Job runs, with what a kubelet gives it.
struct Waiting {
    child: Child,
    log: PathBuf,
}

impl Waiting {
    fn start(cluster: &Cluster) -> Result<Self> {
        let api = cluster.control_plane.api();
        let job = api.get("Job", NAMESPACE, "lb-agent-cleanup")?.context("no Job")?;
        let pod = &job.data["spec"]["template"]["spec"];
        let account = pod["serviceAccountName"].as_str().context("no account")?;
        let words = ["kubectl", "create", "token", account, "-n", NAMESPACE];
        let token = cluster.run(&words.map(str::to_owned))?;
        let authority = fs::read_to_string(cluster.control_plane.certificate())?;
        const AS_IN_A_POD: &str = "
            mount -t tmpfs none \"$(readlink -f /var/run)\"
            mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
            cd /var/run/secrets/kubernetes.io/serviceaccount
            printf %s \"$TOKEN\" > token
            printf %s \"$AUTHORITY\" > ca.crt
            printf kube-system > namespace
            exec \"$@\"";
        let log = cluster.lab.directory().join("wait.log");
        let mut command = cluster.lab.command(HOST, "unshare")?;
        command.args(["--mount", "sh", "-euc", AS_IN_A_POD, "sh"]);
        command.arg(lb_lab::agent_binary()?).args(strings(&pod["containers"][0]["args"]));
        command.env("TOKEN", token.trim()).env("AUTHORITY", authority);
        command.env("KUBERNETES_SERVICE_HOST", "10.96.0.1").env("KUBERNETES_SERVICE_PORT", "443");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let child = command.spawn().context("starting lb-agent wait")?;
        Ok(Self { child, log })
    }

    fn says(&self, words: &str) -> Result<()> {
        eventually(&format!("lb-agent wait says {words:?}"), || {
            let said = fs::read_to_string(&self.log)?;
            ensure!(said.contains(words), "{said}");
            Ok(())
        })
    }

    fn ended(mut self) -> Result<ExitStatus> {
        let mut status = None;
        eventually("lb-agent wait ends", || {
            status = self.child.try_wait()?;
            ensure!(status.is_some(), "{}", fs::read_to_string(&self.log)?);
            Ok(())
        })?;
        status.context("it ended without a status")
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have ended, which is as well.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What is said of Pods in a kubelet's place.
#[derive(Default)]
struct Kubelets {
    /// All of node-b's flows have ended.
    is_clean: AtomicBool,
    /// The Job's container has ended with success.
    is_done: AtomicBool,
}

impl Kubelets {
    fn say(&self, pod: &DynamicObject) -> Said {
        if is_of_a_job(pod) {
            let is_done = self.is_done.load(Ordering::Relaxed);
            return if is_done { ("Succeeded", false) } else { ("Running", true) };
        }
        let cleans = pod.metadata.name.iter().any(|name| name.starts_with("lb-agent-cleanup"));
        let is_on_b = pod.data["spec"]["affinity"].to_string().contains(NODES[1]);
        ("Running", !(cleans && is_on_b) || self.is_clean.load(Ordering::Relaxed))
    }
}

/// Runs `meanwhile` while Helm uninstalls, once its Job is there; what became of Helm.
fn uninstall(
    cluster: &Cluster,
    meanwhile: impl FnOnce(Waiting) -> Result<()>,
) -> Result<Result<String>> {
    thread::scope(|scope| {
        let helm = scope.spawn(|| cluster.run(&UNINSTALL.map(str::to_owned)));
        let api = cluster.control_plane.api();
        eventually("the Job that waits for the cleanup", || {
            api.get("Job", NAMESPACE, "lb-agent-cleanup")?.context("it isn't there").map(drop)
        })?;
        meanwhile(Waiting::start(cluster)?)?;
        Ok(helm.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[test]
fn what_is_not_clean_in_time_is_said_and_goes_on_being_cleaned() -> Result<()> {
    let cluster = Cluster::start()?;
    let api = cluster.control_plane.api();
    let server = SocketAddr::new(topology::FABRIC_ROUTER.v4.into(), PORT);
    let address = format!("apiServer.addresses={{https://{server}}}");
    let install = ["helm", "install", "lb-agent", "deploy/chart", "-n", NAMESPACE, "--wait"];
    let install: Vec<_> =
        install.into_iter().chain(["--set", &address]).map(str::to_owned).collect();
    let kubelets = Kubelets::default();
    with_kubelets(
        api,
        |pod| Ok(kubelets.say(pod)),
        || {
            cluster.run(&install)?;
            let helm = uninstall(&cluster, |waiting| {
                waiting.says("ready on 1 of 2 nodes")?;
                // Four minutes later.
                api.patch(
                    "Job",
                    NAMESPACE,
                    "lb-agent-cleanup",
                    json!({"spec": {"activeDeadlineSeconds": 1}}),
                )
            })?;
            let Err(error) = helm else { bail!("helm says that all is clean") };
            let said = format!("{error:#}");
            ensure!(
                said.contains("lb-agent-cleanup not ready") && said.contains("Failed"),
                "{said}"
            );
            let left = cluster.release()?;
            ensure!(
                left == ["daemonset.apps/lb-agent-cleanup", "job.batch/lb-agent-cleanup"],
                "{left:?}"
            );
            kubelets.is_clean.store(true, Ordering::Relaxed);
            eventually("it is clean everywhere", || {
                let set =
                    api.get("DaemonSet", NAMESPACE, "lb-agent-cleanup")?.context("it is gone")?;
                ensure!(set.data["status"]["numberReady"] == 2, "{}", set.data["status"]);
                Ok(())
            })?;
            let remove = commands().into_iter().find(|shown| starts(shown, &REMOVE_LATE));
            cluster.run(&remove.context("no document says how to remove it")?.words)?;
            cluster.is_clean("not in time")?;

            // In time.
            cluster.run(&install)?;
            let helm = uninstall(&cluster, |waiting| {
                let status = waiting.ended()?;
                ensure!(status.success(), "lb-agent wait: {status}");
                ensure!(api.get("DaemonSet", NAMESPACE, "lb-agent-cleanup")?.is_none(), "it stays");
                kubelets.is_done.store(true, Ordering::Relaxed);
                Ok(())
            })?;
            helm?;
            cluster.is_clean("in time")
        },
    )
}
