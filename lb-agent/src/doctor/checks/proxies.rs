//! Other service proxies: whether they are here, and whether they may go.

use super::{finding, from_error, or_fine};
use crate::doctor::facts::Facts;
use crate::doctor::others::KubeProxy;
use crate::doctor::{Finding, Severity};
use Severity::{Info, Warning};

const CHECK: &str = "proxies";
/// How names of programs begin that translate what sockets connect to.
const TRANSLATORS: [&str; 5] = ["cil_sock", "calico_connect", "cali_ctlb", "sock4_", "sock6_"];

pub fn proxies(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    match &facts.kube_proxy {
        Ok(kube_proxy) => found.extend(of_kube_proxy(facts, kube_proxy)),
        Err(reason) => {
            const AS_ROOT: &str = "run it as root, on a kernel with nf_tables and conntrack";
            found.push(from_error(Info, CHECK, reason, AS_ROOT));
        }
    }
    found.extend(programs(facts));
    or_fine(found, CHECK, "no other service proxy, and nothing left of one")
}

/// What it has left, and then whether it may go: it itself, its rules.
fn of_kube_proxy(facts: &Facts, kube_proxy: &KubeProxy) -> Vec<Finding> {
    let mut found = Vec::new();
    let remedy = to_remove(kube_proxy);
    let mut is_here = |text: String| found.push(finding(Warning, CHECK, text, remedy.clone()));
    if !kube_proxy.tables.is_empty() {
        is_here(format!("nftables has kube-proxy's tables ({})", kube_proxy.tables.join(", ")));
    }
    if kube_proxy.chains > 0 {
        let chains = kube_proxy.chains;
        is_here(format!("iptables has {chains} chains of kube-proxy (KUBE-SERVICES, …)"));
    }
    if let Some(ipvs) = &kube_proxy.ipvs {
        is_here(format!("the kernel has {ipvs} of kube-proxy"));
    }
    if let Some(mode) = facts.answers.kube_proxy_mode() {
        let (text, remedy) = if kube_proxy.may_stop {
            (
                "new connections are lb-agent's, and it may be deleted",
                "kubectl -n kube-system delete daemonset kube-proxy, when `lb-agent doctor` says so on \
                 every node",
            )
        } else {
            (
                "it may not be deleted yet: lb-agent doesn't serve this node",
                "start lb-agent on this node first, and wait until it is ready",
            )
        };
        found.push(finding(
            Warning,
            CHECK,
            format!("kube-proxy runs here, in mode {mode}; {text}"),
            remedy,
        ));
    }
    // Whose other translations are isn't known without Services.
    if kube_proxy.carried > 0 && (kube_proxy.has_rules() || kube_proxy.may_stop) {
        found.push(finding(Info, CHECK, carried(kube_proxy), ""));
    }
    found
}

fn to_remove(kube_proxy: &KubeProxy) -> String {
    if !kube_proxy.may_stop {
        "they are needed until lb-agent serves this node: start it first".to_owned()
    } else if kube_proxy.may_remove_rules {
        "they may be removed: stop kube-proxy if it runs, then `lb-agent cleanup --kube-proxy` on the \
         node"
            .to_owned()
    } else {
        format!(
            "they may not be removed yet, as {} flows would break with them: stop kube-proxy if it runs, \
             then `lb-agent cleanup --kube-proxy --wait 10m` waits for their end",
            kube_proxy.would_break
        )
    }
}

fn carried(kube_proxy: &KubeProxy) -> String {
    let KubeProxy { carried, would_break, .. } = kube_proxy;
    let what = format!("{carried} flows that kube-proxy opened are still its");
    if *would_break > 0 {
        format!("{what}; {would_break} of them need its rules")
    } else {
        format!("{what}, and go on without its rules, as others keep NAT going")
    }
}

fn programs(facts: &Facts) -> impl Iterator<Item = Finding> {
    facts.foreign.iter().map(|other| {
        let what =
            format!("a BPF program of somebody else, {}, is at {}", other.program, other.place);
        if TRANSLATORS.iter().any(|prefix| other.program.starts_with(prefix)) {
            finding(
                Warning,
                CHECK,
                format!("{what}: another proxy translates the same connections"),
                "switch it off (Cilium: kubeProxyReplacement=false, Calico: bpfConnectTimeLoadBalancing=\
                 Disabled)",
            )
        } else {
            finding(Info, CHECK, what, "")
        }
    })
}
