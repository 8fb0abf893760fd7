//! The real kube-proxy is taken over from, removed, and comes back, while connections that are held
//! and connections that come and go use every way to a Service: none is lost.

use std::process::Output;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use lb_lab::{Family, Lab, Load, LoadReport, Request, Transport};
use lb_tests::cluster::TestCluster;
use lb_tests::cluster::requests::{inside, outside, reach_all};
use lb_tests::cluster::shared::alone_without_agents;
use lb_tests::cluster::test_cluster::NODES;
use serde_json::{Value, json};

use crate::kube_proxy::{KubeProxy, Mode, flush, ruleset};

pub const PODS: [&str; 2] = ["pod-a1", "pod-b1"];
pub const INSIDE: &str = "pod-b2";
pub const NODE_PORT: u16 = 31_558;
/// Enough for a request or two of every load.
pub const MOMENT: Duration = Duration::from_millis(1_500);

pub const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: takeover}
  ports:
  - {name: tcp, protocol: TCP, port: 80, targetPort: 8080, nodePort: 31558}
  - {name: udp, protocol: UDP, port: 80, targetPort: 8080, nodePort: 31558}
";

/// Others' rules, which stay: NAT of a CNI, in both families.
const OTHERS: &str = "
table ip cni {
    chain post {
        type nat hook postrouting priority 100; policy accept;
        ip saddr 192.0.2.0/24 masquerade
    }
}
table ip6 cni {
    chain post {
        type nat hook postrouting priority 100; policy accept;
        ip6 saddr 2001:db8:77::/64 masquerade
    }
}
";

struct Running {
    from: &'static str,
    request: Request,
    number: u64,
    may_move: bool,
}

impl Running {
    /// Nothing of it was lost, and a held connection has had one server.
    fn check(
        &self,
        cluster: &TestCluster,
        report: &LoadReport,
        held: bool,
        when: &str,
    ) -> Result<()> {
        let name = format!("{when}: {} → {:?}", self.from, self.request);
        if report.lost() > 0 {
            println!("what the kernel lost:\n{}", cluster.lab().losses()?);
        }
        ensure!(report.lost() == 0 && report.ok > 0, "{name}: {report:?}");
        let has_moved = held && !self.may_move && report.servers.len() != 1;
        ensure!(!has_moved, "{name} has met another server: {report:?}");
        Ok(())
    }
}

/// A set of requests by every way to the Service. They end with it: those of a test that failed would hold
/// flows that the next test waits for.
pub struct Loads {
    lab: Arc<Lab>,
    held: bool,
    running: Vec<Running>,
}

impl Drop for Loads {
    fn drop(&mut self) {
        for load in self.running.drain(..) {
            let stopped = self.lab.peer(load.from).and_then(|peer| peer.stop_load(load.number));
            if let Err(error) = stopped {
                println!("stopping {:?}: {error:#}", load.request);
            }
        }
    }
}

impl Loads {
    pub fn start(
        cluster: &TestCluster,
        requests: &[(&'static str, Request)],
        held: bool,
    ) -> Result<Self> {
        let lab = Arc::clone(cluster.lab());
        let mut loads = Self { lab, held, running: Vec::new() };
        for (from, request) in requests {
            let load = Load {
                persistent: held,
                pause: Duration::from_millis(if held { 100 } else { 50 }),
                at_most: Duration::from_secs(300),
                ..Load::new(request.clone())
            };
            let number = cluster.lab().peer(from)?.start_load(load)?;
            let running = Running { from, request: request.clone(), number, may_move: false };
            loads.running.push(running);
        }
        Ok(loads)
    }

    pub fn check(&self, cluster: &TestCluster, when: &str) -> Result<()> {
        for load in &self.running {
            let report = cluster.lab().peer(load.from)?.read_load(load.number)?;
            load.check(cluster, &report, self.held, when)?;
        }
        Ok(())
    }

    pub fn stop(mut self, cluster: &TestCluster, when: &str) -> Result<()> {
        while let Some(load) = self.running.pop() {
            let report = cluster.lab().peer(load.from)?.stop_load(load.number)?;
            load.check(cluster, &report, self.held, when)?;
        }
        Ok(())
    }
}

fn cleanup(cluster: &TestCluster, node: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = cluster.lab().command(node, lb_lab::agent_binary()?)?;
    command.arg("cleanup").arg("--bpffs").arg(cluster.lab().bpffs(node)).args(arguments);
    command.output().context("starting lb-agent cleanup")
}

/// `cleanup` does its work.
pub fn cleaned(cluster: &TestCluster, node: &str, arguments: &[&str]) -> Result<()> {
    let output = cleanup(cluster, node, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cleanup {arguments:?} on {node}: {said}");
    Ok(())
}

/// `cleanup` refuses, and says why.
fn refused(cluster: &TestCluster, node: &str, arguments: &[&str], why: &str) -> Result<()> {
    let output = cleanup(cluster, node, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "cleanup {arguments:?} on {node} has not refused");
    ensure!(said.contains(why), "cleanup {arguments:?} on {node}: {said}");
    Ok(())
}

/// What `lb-agent doctor` finds of kube-proxy on each node, and what it says to do.
fn expect_advice(cluster: &TestCluster, severity: &str, words: &str) -> Result<()> {
    for node in NODES {
        let mut command = cluster.lab().command(node, lb_lab::agent_binary()?)?;
        command.args(["doctor", "-o", "json", "--bpffs"]).arg(cluster.lab().bpffs(node));
        let output = command.output().context("starting lb-agent doctor")?;
        let findings: Vec<Value> = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let of_proxies: Vec<_> =
            findings.iter().filter(|finding| finding["check"] == "proxies").collect();
        let says = |finding: &&Value| {
            let text = format!("{} {}", finding["finding"], finding["remedy"]);
            finding["severity"] == severity && text.contains(words)
        };
        ensure!(of_proxies.iter().any(says), "{node}: no {severity} {words:?}: {of_proxies:#?}");
    }
    Ok(())
}

/// When a failure's request began is told by the clock.
fn say(phase: &str) {
    println!("{} {phase}", humantime::format_rfc3339_micros(SystemTime::now()));
}

fn there_and_back(cluster: &mut TestCluster, mode: Mode) -> Result<()> {
    for node in NODES {
        cluster.kill_agent(node);
        cleaned(cluster, node, &["--force"])?;
        flush(cluster, node)?;
    }
    let namespace = cluster.namespace(&format!("takeover-{}", mode.name()))?;
    namespace.apply(SERVICE)?;
    namespace.pods(&json!({"app": "takeover"}), &PODS)?;
    let addresses: Vec<_> =
        PODS.iter().map(|pod| cluster.address(pod, Family::V4)).collect::<Result<_>>()?;
    let addresses_v6: Vec<_> =
        PODS.iter().map(|pod| cluster.address(pod, Family::V6)).collect::<Result<_>>()?;
    namespace.wait_for_endpoints("web", &[addresses, addresses_v6].concat())?;

    let mut proxy = KubeProxy::new(cluster, mode, NODE_PORT)?;
    proxy.start(cluster)?;
    let inside = inside(&namespace, "web", &[INSIDE, "node-a"])?;
    let outside = outside(cluster, NODE_PORT)?;
    let all = [inside.clone(), outside.clone()].concat();
    reach_all(cluster, &all, &PODS)?;

    // There.
    say("there");
    expect_advice(cluster, "warning", "they are needed until lb-agent serves this node")?;
    let old = Loads::start(cluster, &all, true)?;
    let short = Loads::start(cluster, &all, false)?;
    sleep(MOMENT);
    old.check(cluster, "before")?;
    cluster.ensure_agents()?;
    sleep(MOMENT);
    old.check(cluster, "beside")?;
    short.check(cluster, "beside")?;
    // Tables of iptables stay, but with kube-proxy's rules goes what needs conntrack, for IPv6 at least.
    expect_advice(cluster, "warning", "may not be removed yet, as ")?;
    let mut new_inside = Loads::start(cluster, &inside, true)?;
    let new_outside = Loads::start(cluster, &outside, true)?;
    sleep(MOMENT);
    new_outside.check(cluster, "beside")?;

    // kube-proxy goes, and then its rules.
    say("kube-proxy goes");
    proxy.stop()?;
    for node in NODES {
        refused(cluster, node, &["--kube-proxy", "--wait", "0s"], "which would break")?;
        cluster.lab().nft(node, OTHERS)?;
    }
    expect_advice(cluster, "warning", "they may be removed: ")?;
    for node in NODES {
        cleaned(cluster, node, &["--kube-proxy", "--wait", "0s"])?;
        let rules = ruleset(cluster, node, None)?;
        // kube-proxy shares this one with the kubelet.
        let others = rules.replace("KUBE-FIREWALL", "");
        ensure!(!others.contains("KUBE-") && !others.contains("kube-proxy"), "{rules}");
        ensure!(rules.matches("table ip cni").count() == 1, "{rules}");
        ensure!(rules.matches("table ip6 cni").count() == 1, "{rules}");
    }
    expect_advice(cluster, "info", "go on without its rules")?;
    sleep(MOMENT);
    for (loads, name) in [(&old, "old"), (&short, "short"), (&new_inside, "inside")] {
        loads.check(cluster, &format!("without kube-proxy, {name}"))?;
    }
    new_outside.check(cluster, "without kube-proxy")?;

    // And back.
    say("kube-proxy comes back");
    proxy.start(cluster)?;
    for node in NODES {
        say("an agent goes");
        cluster.stop_agent(node)?;
        refused(cluster, node, &["--wait", "0s"], "still go through lb-agent")?;
    }
    sleep(MOMENT);
    new_outside.stop(cluster, "while flows are waited for")?;
    // An unconnected socket has no connection to lose: kube-proxy chooses for it anew.
    for load in &mut new_inside.running {
        load.may_move = load.request.transport == Transport::Udp && !load.request.connected;
    }
    say("flows of ours are waited for");
    std::thread::scope(|scope| {
        let cluster = &*cluster;
        let cleanups =
            NODES.map(|node| scope.spawn(move || cleaned(cluster, node, &["--wait", "4m"])));
        cleanups.into_iter().try_for_each(|cleanup| match cleanup.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    say("no datapath is left");
    sleep(MOMENT);
    old.stop(cluster, "back, old")?;
    short.stop(cluster, "back, short")?;
    new_inside.stop(cluster, "back, inside")?;
    proxy.stop()?;
    for node in NODES {
        cleaned(cluster, node, &["--kube-proxy", "--force"])?;
        let rules = ruleset(cluster, node, None)?;
        ensure!(rules.contains("table ip cni") && rules.contains("table ip6 cni"), "{rules}");
        flush(cluster, node)?;
    }
    Ok(())
}

#[test]
fn kube_proxy_in_mode_nftables_is_replaced_and_comes_back_and_no_connection_is_lost() -> Result<()>
{
    alone_without_agents(|cluster| there_and_back(cluster, Mode::Nftables))
}

#[test]
fn kube_proxy_in_mode_iptables_is_replaced_and_comes_back_and_no_connection_is_lost() -> Result<()>
{
    alone_without_agents(|cluster| there_and_back(cluster, Mode::Iptables))
}

#[test]
fn kube_proxy_in_mode_iptables_of_old_is_replaced_and_comes_back_and_no_connection_is_lost()
-> Result<()> {
    alone_without_agents(|cluster| there_and_back(cluster, Mode::LegacyIptables))
}
