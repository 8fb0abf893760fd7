//! What is set wrong on the node, and who else is there. Where the remedy is a command, it is run.

use aya::programs::TcAttachType;
use lb_lab::Options;
use serde_json::Value;

use super::report::{NODE, Report, broken, in_order, obey};
use super::services;
use crate::foreign::Foreign;
use crate::manifest::Service;
use crate::stage::{Stage, eventually};

const OVERLAP: &str = "
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, 'fd00:96::/112']}
---
apiVersion: v1
kind: Node
metadata: {name: node-a}
spec: {podCIDRs: [10.96.0.0/17]}
";

/// A NodePort that the kernel may give to sockets.
const ODD_PORT: &str = "
apiVersion: v1
kind: Service
metadata: {name: odd}
spec:
  type: NodePort
  clusterIP: 10.96.1.200
  clusterIPs: [10.96.1.200]
  ports: [{port: 80, nodePort: 40080}]
";

fn stage() -> Stage {
    Stage::with(&Options::default(), &services(), |agent| {
        // Overlays that come later.
        agent.arguments.extend(["--devices", "vx*"].map(str::to_owned));
    })
}

fn remove(stage: &Stage, file: &str) {
    std::fs::remove_file(stage.manifests().join(file)).unwrap();
}

#[test]
fn settings_of_the_kernel_are_named_and_the_remedy_heals() {
    let mut stage = stage();
    in_order(&stage, "the node as it is");
    let set = |path: &str, value: &str| stage.lab().sysctl(NODE, path, value).unwrap();
    for family in ["ipv4", "ipv6"] {
        for device in ["eth0", "all"] {
            let words = format!("net/{family}/conf/eth0/forwarding is 0");
            broken(
                &stage,
                &format!("{family} isn't forwarded by {device}"),
                || set(&format!("{family}/conf/{device}/forwarding"), "0"),
                &[("error", "forwarding", &words)],
                |report| obey(&stage, report, "forwarding"),
            );
        }
    }
    let second = "link add up1 type veth peer name up1p\nlink set up1 up\nlink set up1p up\n\
        address add 198.18.0.1/24 dev up1\nroute add default via 198.18.0.2 dev up1 metric 900";
    broken(
        &stage,
        "a strict check with two ways out",
        || stage.lab().ip(NODE, second).unwrap(),
        &[("warning", "rp_filter", "eth0 is strict")],
        |report| obey(&stage, report, "rp_filter"),
    );
    stage.lab().ip(NODE, "link del up1").unwrap();
    set("ipv4/conf/eth0/rp_filter", "1");

    set("ipv4/ip_local_reserved_ports", "8080");
    broken(
        &stage,
        "local sockets may get NodePorts",
        || set("ipv4/ip_local_port_range", "30000 60999"),
        &[("warning", "ports", "holds NodePorts (30000-32767)")],
        |report| obey(&stage, report, "ports"),
    );
    set("ipv4/ip_local_port_range", "32768 60999");
    set("ipv4/ip_local_reserved_ports", "");
    broken(
        &stage,
        "a NodePort among local ports",
        || stage.write("odd.yaml", ODD_PORT),
        &[("warning", "ports", "holds NodePorts (40080)")],
        |report| obey(&stage, report, "ports"),
    );
    remove(&stage, "odd.yaml");
    set("ipv4/ip_local_reserved_ports", "");

    // The agent has chosen its source ports when it started.
    set("ipv4/ip_local_port_range", "20000 29000");
    let overlap = ("warning", "ports", "source ports for clients outside (1024-29999) overlap");
    Report::of_running(&stage).expect("source ports", &[overlap]);
    stage.stop_agent(NODE);
    stage.start_agent(NODE);
    in_order(&stage, "other source ports");
}

#[test]
fn other_proxies_and_addresses_and_devices_that_do_not_fit_are_named() {
    let stage = stage();
    in_order(&stage, "the node as it is");
    let cluster_ip = services()[0].cluster_ip().both()[0];
    let words = format!("{cluster_ip} of Service default/s1 is also on the device eth0");
    let ip = |batch: &str| stage.lab().ip(NODE, batch).unwrap();
    broken(
        &stage,
        "a ClusterIP on a device",
        || ip(&format!("address add {cluster_ip}/32 dev eth0")),
        &[("warning", "addresses", &words)],
        |report| obey(&stage, report, "addresses"),
    );
    let rules = "table ip kube-proxy {\nchain services {\n}\n}\n\
        table ip6 nat {\nchain KUBE-SERVICES {\n}\nchain KUBE-MARK-MASQ {\n}\n}\n";
    broken(
        &stage,
        "rules of kube-proxy",
        || stage.lab().nft(NODE, rules).unwrap(),
        &[("warning", "proxies", "(ip kube-proxy)"), ("warning", "proxies", "has 2 chains")],
        |report| obey(&stage, report, "proxies"),
    );
    broken(
        &stage,
        "what mode ipvs leaves",
        || {
            ip("link add kube-ipvs0 type bridge");
            ip(&format!("address add {cluster_ip}/32 dev kube-ipvs0"));
        },
        &[("warning", "proxies", "kube-ipvs0")],
        |report| obey(&stage, report, "proxies"),
    );
    programs_of_others(&stage);
    broken(
        &stage,
        "an overlay whose packets don't fit",
        || {
            ip("link add vx9 type vxlan id 9 dstport 8472\nlink set vx9 up mtu 1500");
            // It is new: the agent attaches its programs.
            eventually("vx9 has programs", || {
                let words = [("warning", "mtu", "vx9 (vxlan) has an MTU of 1500")];
                Report::of_running(&stage).is(&words)
            });
        },
        &[("warning", "mtu", "vx9 (vxlan) has an MTU of 1500")],
        |_| ip("link set vx9 mtu 1450"),
    );
    ip("link del vx9");
    let in_pods =
        ["s1", "s2"].map(|name| format!("of Service default/{name} is in the pods' range"));
    broken(
        &stage,
        "pods in the range of ClusterIPs",
        || stage.write("overlap.yaml", OVERLAP),
        &[
            ("error", "addresses", &in_pods[0]),
            ("error", "addresses", &in_pods[1]),
            ("error", "addresses", "10.96.0.0/16 overlaps the pods' range 10.96.0.0/17"),
        ],
        |_| stage.write("overlap.yaml", &OVERLAP.replace("10.96.0.0/17", "10.244.1.0/24")),
    );
    // Both have the load balancer's and the external addresses.
    broken(
        &stage,
        "two Services with one address",
        || stage.publish(&[services()[0].clone(), Service::new(2, &["pod-b1"])]),
        &[("warning", "addresses", "Service default/s2")],
        |_| stage.publish(&services()),
    );
}

/// They are named; whether they translate isn't known of a name that nobody's proxy has.
fn programs_of_others(stage: &Stage) {
    let _socket = Foreign::at_sockets(stage, NODE);
    let _packet = Foreign::tcx(stage, NODE, "eth0", TcAttachType::Ingress);
    let report = Report::of_running(stage);
    report.expect("others' programs", &[]);
    let proxies = report.of_check("proxies");
    for words in ["connect4, is at the socket hook connect4", "tc_egress, is at ingress of eth0"] {
        let is_it = |finding: &&Value| finding["finding"].as_str().unwrap().contains(words);
        let finding = proxies.iter().copied().find(is_it);
        let finding = finding.unwrap_or_else(|| panic!("no {words}: {proxies:#?}"));
        assert_eq!(finding["severity"], "info", "{finding}");
    }
}
