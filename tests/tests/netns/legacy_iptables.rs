//! What kube-proxy leaves in the tables of the old iptables goes, once no flow needs it; whatever else is
//! there stays as it is.

use lb_lab::{Family, Options, Request};

use crate::manifest::{POD_PORT, Service};
use crate::stage::Stage;

const NODE: &str = "node-a";
/// What a line of `iptables-legacy-save` names when it belongs to kube-proxy.
const KUBE_PROXYS: [&str; 7] = [
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-SVC-",
    "KUBE-SEP-",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-PROXY-CANARY",
];

/// kube-proxy's chains between those of others, which come before, behind, and from within.
fn rules(family: Family) -> String {
    let (pod, other, reject, set) = match family {
        Family::V4 => ("10.244.7.1", "192.0.2.7", "icmp-port-unreachable", "others4"),
        Family::V6 => ("fd00:244::7", "2001:db8::7", "icmp6-port-unreachable", "others6"),
    };
    let to = if family == Family::V4 { format!("{pod}:8080") } else { format!("[{pod}]:8080") };
    format!(
        "*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:OWN - [0:0]
:ZZZ-LAST - [0:0]
[1:101] -A PREROUTING -p tcp -m tcp --dport 9991 -m comment --comment \"before KUBE\" -j OWN
[2:202] -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
[3:303] -A PREROUTING -p tcp -m tcp --dport 9992 -g CNI-HOSTPORT-DNAT
[4:404] -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
[5:505] -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
[6:606] -A POSTROUTING -s {other} -m set --match-set {set} dst -j MASQUERADE
[7:707] -A POSTROUTING -s {other}
[8:808] -A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 9993 -j DNAT --to-destination {to}
[9:909] -A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 9994 -j KUBE-MARK-MASQ
[10:1010] -A KUBE-MARK-DROP -p tcp -m tcp --dport 9995 -j MARK --set-xmark 0x8000/0x8000
[11:1111] -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
[12:1212] -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
[13:1313] -A KUBE-POSTROUTING -j MASQUERADE --random-fully
[14:1414] -A KUBE-SEP-AAAAAAAAAAAAAAAA -s {pod} -j KUBE-MARK-MASQ
[15:1515] -A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m tcp -j DNAT --to-destination {to}
[16:1616] -A KUBE-SERVICES -d {pod} -p tcp -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA
[17:1717] -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
[18:1818] -A KUBE-SVC-AAAAAAAAAAAAAAAA -m statistic --mode random --probability 0.5 -j KUBE-SEP-AAAAAAAAAAAAAAAA
[19:1919] -A OWN -p tcp -m tcp --dport 9996 -j KUBE-MARK-DROP
[20:2020] -A OWN -p tcp -m tcp --dport 9997 -j ZZZ-LAST
[21:2121] -A ZZZ-LAST -p tcp -m tcp --dport 9998 -j RETURN
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
:MINE - [0:0]
[22:2222] -A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
[23:2323] -A INPUT -s {other} -p tcp -j KUBE-FIREWALL
[24:2424] -A FORWARD -s {other} -m conntrack --ctstate RELATED,ESTABLISHED -j MINE
[25:2525] -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
[26:2626] -A KUBE-SERVICES -d {other} -p tcp -m tcp --dport 80 -j REJECT --reject-with {reject}
[27:2727] -A MINE -p udp -m udp --dport 53
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
[28:2828] -A FORWARD -s {other} -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
[29:2929] -A OUTPUT -d {other} -j KUBE-SERVICES
COMMIT
"
    )
}

fn program(family: Family, what: &str) -> String {
    let prefix = if family == Family::V4 { "iptables" } else { "ip6tables" };
    format!("{prefix}-legacy{what}")
}

fn restore(stage: &Stage, family: Family, rules: &str) {
    let file = stage.lab().directory().join("rules");
    std::fs::write(&file, rules).unwrap();
    let file = file.to_str().unwrap();
    stage.run(NODE, &[&program(family, "-restore"), "--counters", "--noflush", file]);
}

/// All tables with the counters of rules. Those of policies count what the lab itself sends.
fn saved(stage: &Stage, family: Family) -> Vec<String> {
    let text = stage.run(NODE, &[&program(family, "-save"), "--counters"]);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let plain = |line: &str| match line.starts_with(':') {
        true => line.split(" [").next().unwrap_or(line).to_owned(),
        false => line.to_owned(),
    };
    lines.map(plain).collect()
}

fn without_kube_proxys(lines: &[String]) -> Vec<String> {
    let mut table = "";
    let mut kept = Vec::new();
    for line in lines {
        table = line.strip_prefix('*').unwrap_or(table);
        // kube-proxy has nothing in other tables.
        let is_its = table != "raw" && KUBE_PROXYS.iter().any(|name| line.contains(name));
        if !is_its {
            kept.push(line.clone());
        }
    }
    kept
}

#[test]
fn kube_proxys_chains_go_and_every_other_rule_stays_with_its_counters() {
    let stage = Stage::up(&Options::default(), &[Service::new(1, &["pod-a1"])]);
    stage.run(NODE, &["ipset", "create", "others4", "hash:net"]);
    stage.run(NODE, &["ipset", "create", "others6", "hash:net", "family", "inet6"]);
    let mut expected = Vec::new();
    for family in Family::BOTH {
        restore(&stage, family, &rules(family));
        let before = saved(&stage, family);
        assert_eq!(before.iter().filter(|line| line.starts_with('[')).count(), 29, "{before:#?}");
        expected.push(without_kube_proxys(&before));
    }
    let said = stage.agent_says(NODE, &["cleanup", "--kube-proxy", "--wait", "0s"]);
    // Three tables of two families.
    assert!(said.contains("20 chains and 10 jumps to them"), "{said}");
    for (family, expected) in Family::BOTH.into_iter().zip(expected) {
        assert_eq!(saved(&stage, family), expected);
    }
    let said = stage.agent_says(NODE, &["cleanup", "--kube-proxy", "--wait", "0s"]);
    assert!(said.contains("kube-proxy has left nothing here"), "{said}");
}

#[test]
fn tables_that_nobody_has_made_are_not_made_by_looking() {
    let stage = Stage::up(&Options::default(), &[Service::new(1, &["pod-a1"])]);
    stage.agent_says(NODE, &["cleanup", "--kube-proxy", "--wait", "0s"]);
    for list in ["ip_tables_names", "ip6_tables_names"] {
        let path = format!("/proc/thread-self/net/{list}");
        assert_eq!(stage.run(NODE, &["cat", &path]), "");
    }
}

#[test]
fn flows_of_legacy_rules_go_on_where_others_need_nat_and_are_waited_for_elsewhere() {
    let service = Service::node_port(1, &["pod-a1"]);
    let mut stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    stage.stop_agent(NODE);
    stage.agent_says(NODE, &["cleanup"]);
    let port = service.node_port_number();
    for family in Family::BOTH {
        let pod = stage.address("pod-a1", family);
        let to = std::net::SocketAddr::new(pod, POD_PORT);
        let rules = format!(
            "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n\
             -A KUBE-SERVICES -p tcp -m tcp --dport {port} -j DNAT --to-destination {to}\nCOMMIT\n"
        );
        restore(&stage, family, &rules);
    }
    let held = Family::BOTH.map(|family| {
        let to = stage.address(NODE, family);
        Request::tcp(to, port).keep(family.to_string())
    });
    for request in &held {
        assert_eq!(stage.answer("client", request).server, "pod-a1");
    }
    stage.start_agent(NODE);
    let refused = stage.agent_output(NODE, &["cleanup", "--kube-proxy", "--wait", "0s"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("still carries 2 flows"), "{said}");

    // Nothing that needs conntrack: the kernel would stop looking.
    restore(&stage, Family::V4, "*nat\n-A POSTROUTING -s 192.0.2.7\nCOMMIT\n");
    // What a CNI has.
    let masquerade = "*nat\n-A POSTROUTING -s 2001:db8::7 -j MASQUERADE\nCOMMIT\n";
    restore(&stage, Family::V6, masquerade);
    let refused = stage.agent_output(NODE, &["cleanup", "--kube-proxy", "--wait", "0s"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("still carries 1 flows"), "{said}");
    let state = "*filter\n-A FORWARD -s 192.0.2.7 -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n";
    restore(&stage, Family::V4, state);
    stage.agent_says(NODE, &["cleanup", "--kube-proxy", "--wait", "0s"]);
    for request in &held {
        assert_eq!(stage.answer("client", request).server, "pod-a1", "{request:?}");
    }
}
