//! What an operator does to an installation: update it, restart a node, remove it, on the cluster of the
//! other tests, with requests that run meanwhile.

use super::agent;
use super::cluster::Cluster;
use super::docker::NAME;
use super::specs::{Ending, Outcome};
use crate::progress::Step;
use crate::{chart, documents, image, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const LOAD: &str = include_str!("../../../tests/e2e/load.yaml");
/// The image that replaces the first one.
const NEXT: &str = "localhost/lb-agent:next";
/// For a node to boot and its Pods to run.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Requests of each client before and after what they are to survive.
const REQUESTS: usize = 40;

type Test = fn(&Cluster) -> Result<()>;

/// Runs the tests one after another: each begins with what the one before it left.
pub fn run(cluster: &Cluster, folder: &Path, step: &mut Step) -> Vec<Outcome> {
    let tests: [(&str, Test); 6] = [
        ("kubectl does what the documents say", documents),
        ("an agent's container removes what kube-proxy left, and nothing else", remove_kube_proxy),
        ("helm refuses the API server's ClusterIP as its address", refuse_cluster_ip),
        ("no request fails while every agent is replaced by another image", update),
        ("a node serves Services again after a reboot", reboot),
        ("helm uninstall leaves nothing on any node", uninstall),
    ];
    let mut outcomes = Vec::new();
    for (name, test) in tests {
        step.update(name);
        let started = Instant::now();
        let ending = match test(cluster) {
            Ok(()) => Ending::Passed,
            Err(error) => Ending::Failed(format!("{error:#}")),
        };
        outcomes.push(Outcome {
            name: format!("installation: {name}"),
            ending,
            seconds: started.elapsed().as_secs(),
        });
        let logs = folder.join("installation.log");
        // Each test's over the one's before: a failed one leaves them for the next to begin with.
        let _ = fs::write(logs, agent::logs(cluster));
    }
    outcomes
}

/// Servers on two nodes and a client on every node, which ask every address of their Service in turn.
struct Load<'a> {
    cluster: &'a Cluster<'a>,
}

impl<'a> Load<'a> {
    fn start(cluster: &'a Cluster<'a>) -> Result<Self> {
        let image = cluster.test_image("agnhost")?;
        let manifest = LOAD.replace("{agnhost}", &image);
        let file = workspace::target_dir().join("e2e/load.yaml");
        fs::write(&file, manifest).with_context(|| format!("write {}", file.display()))?;
        cluster.kubectl(&["apply", "-f", &file.display().to_string()])?;
        cluster.kubectl(&[
            "-n",
            "load",
            "rollout",
            "status",
            "deployment/web",
            "--timeout=120s",
        ])?;
        let load = Self { cluster };
        let urls = load.urls()?;
        let argument = format!("--from-literal=urls={}", urls.join(" "));
        cluster.kubectl(&["-n", "load", "create", "configmap", "urls", &argument])?;
        cluster.kubectl(&[
            "-n",
            "load",
            "rollout",
            "status",
            "daemonset/client",
            "--timeout=120s",
        ])?;
        Ok(load)
    }

    /// The Service at its ClusterIPs and at every node's NodePort.
    fn urls(&self) -> Result<Vec<String>> {
        let get =
            |path: &str| self.cluster.kubectl(&["-n", "load", "get", "service", "web", "-o", path]);
        let port = get("jsonpath={.spec.ports[0].nodePort}")?;
        let cluster_ips = get("jsonpath={.spec.clusterIPs[*]}")?;
        let mut urls: Vec<_> =
            cluster_ips.split_whitespace().map(|address| url(address, "80")).collect();
        ensure!(urls.len() == 2, "the Service has the ClusterIPs {cluster_ips:?}");
        let nodes = self.cluster.node_addresses()?;
        urls.extend(nodes.iter().map(|address| url(&address.to_string(), &port)));
        Ok(urls)
    }

    /// The lines of every client: `ok`, or what failed.
    fn lines(&self) -> Result<Vec<Vec<String>>> {
        let pods = ["-n", "load", "get", "pods", "-l", "app=client", "-o", "name"];
        let pods = self.cluster.kubectl(&pods)?;
        let lines = |pod: &str| -> Result<Vec<String>> {
            let log = self.cluster.kubectl(&["-n", "load", "logs", pod, "--tail=-1"])?;
            Ok(log.lines().map(str::to_owned).collect())
        };
        pods.lines().map(lines).collect()
    }

    /// Waits until every client has made some more requests.
    fn go_on(&self) -> Result<()> {
        let before: Vec<_> = self.lines()?.iter().map(Vec::len).collect();
        wait_until("the clients to make requests", Duration::from_secs(60), || {
            let now = self.lines()?;
            Ok(now.len() == before.len()
                && now.iter().zip(&before).all(|(now, before)| now.len() >= before + REQUESTS))
        })
    }

    fn ensure_none_failed(&self) -> Result<()> {
        let lines = self.lines()?;
        ensure!(!lines.is_empty(), "there was no client");
        let failed: Vec<_> = lines.iter().flatten().filter(|line| *line != "ok").collect();
        ensure!(failed.is_empty(), "{} requests failed: {failed:?}", failed.len());
        Ok(())
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        // The cluster is removed with what stays.
        let _ = self.cluster.kubectl(&["delete", "namespace", "load", "--wait=true"]);
    }
}

fn url(host: &str, port: &str) -> String {
    if host.contains(':') {
        format!("http://[{host}]:{port}/hostname")
    } else {
        format!("http://{host}:{port}/hostname")
    }
}

fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    let mut last = None;
    while started.elapsed() < limit {
        match done() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    match last {
        Some(error) => Err(error.context(format!("waited {} s for {what}", limit.as_secs()))),
        None => bail!("waited {} s for {what}", limit.as_secs()),
    }
}

fn refuse_cluster_ip(cluster: &Cluster) -> Result<()> {
    let get = ["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"];
    let address = format!("https://{}:443", cluster.kubectl(&get)?);
    let set = format!("apiServer.addresses={{{address}}}");
    let chart = chart::folder().join("chart").display().to_string();
    let upgrade = ["upgrade", "lb-agent", &chart, "--namespace", "kube-system", "--set", &set];
    match cluster.helm(&upgrade) {
        Ok(said) => bail!("it was accepted: {said}"),
        Err(error) => {
            let said = format!("{error:#}");
            let expected = format!("{address} is the ClusterIP of the Service default/kubernetes");
            ensure!(said.contains(&expected), "{said}");
            Ok(())
        }
    }
}

/// The name of the first of these Pods.
const FIRST: &str = "jsonpath={.items[0].metadata.name}";

/// What kubectl says of the agents' Pods.
fn agent_pods(cluster: &Cluster, more: &[&str]) -> Result<String> {
    let pods = ["-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=lb-agent"];
    cluster.kubectl(&[&pods[..], more].concat())
}

/// Also what enters a container, which takes a kubelet. What installs and removes is run without one, too
/// (tests/tests/cluster/documents.rs).
fn documents(cluster: &Cluster) -> Result<()> {
    let pod = agent_pods(cluster, &["-o", FIRST])?;
    let shown = documents::commands();
    // What takes a terminal gets one in tests/tests/netns/top.rs.
    let is_ours = |shown: &&documents::Shown| {
        let skipped = ["-it", "apply", "delete"];
        shown.words[0] == "kubectl"
            && !shown.words.iter().any(|word| skipped.contains(&word.as_str()))
    };
    let shown: Vec<_> = shown.iter().filter(is_ours).collect();
    ensure!(shown.iter().any(|shown| shown.words.iter().any(|word| word == "exec")), "{shown:?}");
    for shown in shown {
        let words = shown.words[1..].iter().map(String::as_str);
        let words: Vec<_> = words.map(|word| if word == "POD" { &pod } else { word }).collect();
        let said = cluster.kubectl(&words).with_context(|| shown.to_string())?;
        ensure!(!said.trim().is_empty(), "{shown} prints nothing");
    }
    Ok(())
}

/// With the capabilities that the chart gives it.
fn remove_kube_proxy(cluster: &Cluster) -> Result<()> {
    const LEAVE: &str = "for family in ip ip6; do
            nft add table $family kube-proxy
            nft add chain $family kube-proxy services
        done
        for iptables in iptables ip6tables; do
            $iptables -t nat -N KUBE-SERVICES
            $iptables -t nat -A PREROUTING -j KUBE-SERVICES
            $iptables -t nat -N OTHERS
            $iptables -t nat -A PREROUTING -j OTHERS
        done";
    let node = format!("{NAME}-worker");
    let on_node = |script: &str| cluster.docker(&["exec", &node, "sh", "-euc", script]);
    on_node(LEAVE)?;
    let selector = format!("--field-selector=spec.nodeName={node}");
    let pod = agent_pods(cluster, &[&selector, "-o", FIRST])?;
    let exec = ["-n", "kube-system", "exec", &pod, "--", "/lb-agent", "cleanup", "--kube-proxy"];
    let said = cluster.kubectl(&exec)?;
    let expected = "removed 2 tables (nftables), 2 chains and 2 jumps to them (iptables)";
    ensure!(said.contains(expected), "{said}");
    let left = on_node("nft list ruleset")?;
    ensure!(!left.contains("kube-proxy") && !left.contains("KUBE-SERVICES"), "{left}");
    ensure!(left.matches("jump OTHERS").count() == 2, "{left}");
    on_node(
        "for iptables in iptables ip6tables; do
            $iptables -t nat -D PREROUTING -j OTHERS
            $iptables -t nat -X OTHERS
        done",
    )
    .map(drop)
}

fn update(cluster: &Cluster) -> Result<()> {
    let dockerfile = chart::folder().join("Dockerfile").display().to_string();
    let context = image::folder().display().to_string();
    let build = ["build", "--quiet", "--network", "none", "--label", "next=yes", "--tag", NEXT];
    cluster.docker(&[&build[..], &["--file", &dockerfile, &context]].concat())?;
    cluster.load_from_docker(NEXT)?;
    let load = Load::start(cluster)?;
    load.go_on()?;
    agent::helm(cluster, &["upgrade", "--reuse-values", "--set", "image.tag=next"])?;
    load.go_on()?;
    let images = "jsonpath={.items[*].spec.containers[0].image}";
    let images = agent_pods(cluster, &["-o", images])?;
    let nodes = cluster.node_names()?.len();
    ensure!(images == [NEXT].repeat(nodes).join(" "), "the agents run {images}");
    load.ensure_none_failed()
}

fn reboot(cluster: &Cluster) -> Result<()> {
    let node = format!("{NAME}-worker");
    let load = Load::start(cluster)?;
    load.go_on()?;
    let boot = ["get", "node", &node, "-o", "jsonpath={.status.nodeInfo.bootID}"];
    let agents = || {
        let selector = format!("--field-selector=spec.nodeName={node}");
        let state = "jsonpath={.items[0].status.containerStatuses[0].restartCount} \
                     {.items[0].status.containerStatuses[0].ready}";
        agent_pods(cluster, &[&selector, "-o", state])
    };
    let before = agents()?;
    ensure!(before.ends_with("true"), "before the reboot: {before}; {}", cluster.kubectl(&boot)?);
    cluster.docker(&["restart", &node])?;
    // As the CNI would: routes are gone after a boot.
    wait_until("the node's routes", BOOT_LIMIT, || cluster.join_pods().map(|()| true))?;
    wait_until("the agent to run again", BOOT_LIMIT, || {
        let now = agents()?;
        Ok(now != before && now.ends_with("true"))
    })?;
    for url in load.urls()? {
        let request = ["exec", &node, "curl", "--silent", "--fail", "--max-time", "2", &url];
        wait_until(&format!("{url} from the node"), BOOT_LIMIT, || {
            cluster.docker(&request).map(|_| true)
        })?;
    }
    Ok(())
}

fn uninstall(cluster: &Cluster) -> Result<()> {
    let load = Load::start(cluster)?;
    load.go_on()?;
    load.ensure_none_failed()?;
    let remove = ["uninstall", "lb-agent", "--namespace", "kube-system", "--wait"];
    cluster.helm(&[&remove[..], &["--timeout", "280s"]].concat())?;
    let urls = load.urls()?;
    for node in cluster.node_names()? {
        let on_node = |script: &str| cluster.docker(&["exec", &node, "sh", "-c", script]);
        // Links and maps live by their pins, filters of older kernels and XDP by their device.
        let pins = on_node(
            "findmnt --types bpf --noheadings --output TARGET /sys/fs/bpf && ls /sys/fs/bpf",
        )?;
        ensure!(
            !pins.lines().any(|name| name == "lb") && pins.starts_with("/sys/fs/bpf"),
            "{node} still has pins: {pins}"
        );
        let attached = on_node(
            "for device in $(ls /sys/class/net); do ip -details link show $device; \
             tc filter show dev $device ingress; tc filter show dev $device egress; done",
        )?;
        ensure!(
            !attached.contains("xdp") && !attached.contains("bpf"),
            "{node} still has programs: {attached}"
        );
        for url in &urls {
            let request = ["exec", &node, "curl", "--silent", "--max-time", "2", url];
            ensure!(cluster.docker(&request).is_err(), "{node} still translates {url}");
        }
    }
    let left = ["get", "serviceaccounts,roles,rolebindings,daemonsets,jobs,pods,clusterroles"];
    let left = cluster.kubectl(&[&left[..], &["-n", "kube-system", "-o", "name"]].concat())?;
    let left: Vec<_> = left.lines().filter(|name| name.contains("lb-agent")).collect();
    ensure!(left.is_empty(), "the cluster still has {left:?}");
    // And the way back.
    agent::install_chart(cluster)?;
    load.go_on()
}
