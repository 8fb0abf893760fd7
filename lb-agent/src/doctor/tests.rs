use std::collections::BTreeMap;

use super::checks::*;
use super::facts::{Answers, Cluster, Flags, Kernel, ServiceAddress};
use super::others::KubeProxy;
use super::*;
use crate::bpf::attached::{Attached, OnDevice, socket_hooks};
use crate::bpf::examine::Foreign;
use crate::bpf::pins::Mount;
use crate::bpf::usage::MapUsage;
use crate::bpf::users::Users;
use crate::cluster::snapshot::IpFamily;
use crate::node::facts::{Device, NodeFacts, Role};
use crate::node::observe::{Address, Link, Observed, Route};
use crate::status::http;

const CGROUP: u64 = 77;

fn device(index: u32, name: &str, kind: &str, mtu: u32) -> Device {
    Device {
        role: Role::External,
        name: name.into(),
        index,
        kind: kind.into(),
        mtu,
        ethernet: true,
        uplink: true,
        address4: Some([192, 0, 2, 1].into()),
        address6: None,
    }
}

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.into(),
        kind: String::new(),
        mtu: 1500,
        ethernet: true,
        up: true,
        loopback: false,
        master: None,
        peer_elsewhere: false,
    }
}

fn answer(status: u16, body: &str) -> http::Answer {
    http::Answer { status, body: body.into() }
}

/// A node on which everything is as it should be.
fn facts() -> Facts {
    let eth0 = device(2, "eth0", "", 1500);
    let attached = Attached {
        sockets: socket_hooks().map(|hook| (hook, CGROUP)).collect(),
        devices: [(2, both_directions())].into(),
        ..Attached::default()
    };
    Facts {
        flags: Flags::Given,
        kernel: Kernel { release: "6.12.48-cloud".into(), programs: Some(Ok(20)) },
        capabilities: u64::MAX,
        bpffs: "/sys/fs/bpf".into(),
        mount: Mount::Mounted,
        cgroup: Ok(("/sys/fs/cgroup".into(), CGROUP)),
        sysctls: [
            ("net/core/bpf_jit_enable", "1"),
            ("kernel/unprivileged_bpf_disabled", "2"),
            ("net/ipv4/ip_local_port_range", "32768\t60999"),
            ("net/ipv4/ip_local_reserved_ports", ""),
            ("net/ipv4/conf/all/rp_filter", "1"),
            ("net/ipv4/conf/eth0/rp_filter", "0"),
            ("net/ipv4/conf/eth0/forwarding", "1"),
            ("net/ipv6/conf/eth0/forwarding", "0"),
        ]
        .map(|(path, value)| (path.to_owned(), value.to_owned()))
        .into(),
        snat_ports: Ok(1024..=29_999),
        observed: Observed {
            links: BTreeMap::from([(2, link(2, "eth0"))]),
            addresses: vec![Address {
                link: 2,
                address: [192, 0, 2, 1].into(),
                prefix_length: 24,
                global: true,
                secondary: false,
                usable_as_source: true,
            }],
            routes: [default_route(2)].into(),
        },
        node: NodeFacts {
            addresses: [([192, 0, 2, 1].into(), true)].into(),
            devices: [(2, eth0)].into(),
            ..NodeFacts::default()
        },
        cluster_cidrs: Vec::new(),
        serves_pod_packets: false,
        kube_proxy: Ok(KubeProxy { may_stop: true, may_remove_rules: true, ..Default::default() }),
        foreign: Default::default(),
        users: Ok(Users { is_in_use: true, process: Some(1) }),
        other_versions: Vec::new(),
        attachments: Ok(Some(attached)),
        usage: Some(Ok(vec![map_usage("SLOTS", 10)])),
        cluster: Ok(Cluster { ports: 3, differences: Some(Vec::new()), ..Cluster::default() }),
        answers: Answers {
            healthz: Some(Ok(answer(200, "{}"))),
            mode: Some(Ok(answer(200, "ebpf"))),
            age: Some(60),
        },
    }
}

fn default_route(device: u32) -> Route {
    Route { is_default: true, metric: 0, family: IpFamily::V4, device, preferred_source: None }
}

fn both_directions() -> OnDevice {
    OnDevice { ingress: true, egress: true, ..OnDevice::default() }
}

fn map_usage(map: &'static str, entries: u64) -> MapUsage {
    MapUsage { map, entries: Some(entries), max_entries: 100, memory: 0 }
}

/// Exactly one finding is worse than info: of this severity, with these words, and a remedy.
fn one(found: Vec<Finding>, severity: Severity, words: &str) {
    let bad: Vec<_> = found.iter().filter(|it| it.severity > Severity::Info).collect();
    let [finding] = bad.as_slice() else { unreachable!("{found:?}") };
    assert_eq!(finding.severity, severity, "{finding:?}");
    assert!(finding.finding.contains(words), "{words} in {finding:?}");
    assert!(!finding.remedy.is_empty(), "{finding:?}");
}

#[test]
fn a_node_in_order_gets_one_line_for_each_check_and_status_zero() {
    let found = judge(&facts());
    assert!(found.iter().all(|finding| finding.severity == Severity::Ok), "{found:#?}");
    let checks: std::collections::BTreeSet<_> = found.iter().map(|it| it.check).collect();
    assert_eq!(checks.len(), 15);
    assert_eq!(worst(&found).exit_status(), 0);
}

#[test]
fn the_exit_status_is_that_of_the_worst() {
    for (severity, status) in
        [(Severity::Ok, 0), (Severity::Info, 0), (Severity::Warning, 3), (Severity::Error, 4)]
    {
        assert_eq!(severity.exit_status(), status);
    }
    assert!(Severity::Error > Severity::Warning && Severity::Warning > Severity::Info);
}

#[test]
fn the_kernel_is_judged_by_its_release_and_its_settings() {
    let of = |release: &str, settings: &[(&str, &str)]| {
        let mut facts = facts();
        facts.kernel.release = release.into();
        let settings = settings.iter().map(|(path, value)| ((*path).into(), (*value).into()));
        facts.sysctls.extend(settings);
        kernel(&facts)
    };
    one(of("5.15.0", &[]), Severity::Error, "older than 6.1");
    assert_eq!(worst(&of("6.1.0-40-amd64", &[])), Severity::Ok);
    one(of("6.12", &[("net/core/bpf_jit_enable", "0")]), Severity::Warning, "interpreted");
    let open = of("6.12", &[("kernel/unprivileged_bpf_disabled", "0")]);
    assert_eq!(worst(&open), Severity::Info);
}

#[test]
fn programs_that_the_kernel_refuses_are_an_error_with_its_words() {
    let mut facts = facts();
    facts.kernel.programs = Some(Err("program tc_ingress: unknown func".into()));
    one(programs(&facts), Severity::Error, "unknown func");
    facts.kernel.programs = None;
    assert_eq!(worst(&programs(&facts)), Severity::Ok);
}

#[test]
fn capabilities_are_those_that_the_agent_needs() {
    let with = |bits: &[u32]| {
        let bits = bits.iter().map(|bit| 1 << bit).sum();
        capabilities(&Facts { capabilities: bits, ..facts() })
    };
    assert_eq!(worst(&with(&[12, 21])), Severity::Ok);
    one(with(&[12, 38, 39]), Severity::Warning, "UDP sockets of pods");
    one(with(&[12, 39]), Severity::Error, "lacks PERFMON");
    one(with(&[]), Severity::Error, "lacks NET_ADMIN, BPF, PERFMON");
}

#[test]
fn missing_mounts_are_errors() {
    let with = |mount| mounts(&Facts { mount, ..facts() });
    one(with(Mount::Missing), Severity::Error, "no BPF file system on /sys/fs/bpf");
    one(with(Mount::MissingForContainer), Severity::Error, "this container can't");
    one(with(Mount::NoDirectory("gone".into())), Severity::Error, "gone");
    let cgroup = Err("no cgroup2 file system is mounted; mount one".to_owned());
    one(mounts(&Facts { cgroup, ..facts() }), Severity::Error, "no cgroup2");
}

#[test]
fn forwarding_matters_for_families_that_the_node_has() {
    let mut facts = facts();
    assert_eq!(worst(&forwarding(&facts)), Severity::Ok, "no IPv6 address");
    facts.node.addresses.insert("2001:db8::1".parse().unwrap(), true);
    one(forwarding(&facts), Severity::Error, "net/ipv6/conf/eth0/forwarding is 0");
    facts.sysctls.insert("net/ipv6/conf/eth0/forwarding".into(), "1".into());
    assert_eq!(worst(&forwarding(&facts)), Severity::Ok);
    facts.sysctls.insert("net/ipv4/conf/eth0/forwarding".into(), "0".into());
    one(forwarding(&facts), Severity::Error, "net/ipv4/conf/eth0/forwarding is 0");
    assert!(forwarding(&facts)[0].remedy.ends_with("conf/eth0/forwarding=1"));
    facts.sysctls.insert("net/ipv4/conf/all/forwarding".into(), "0".into());
    assert!(forwarding(&facts)[0].remedy.ends_with("conf/all/forwarding=1"));
}

#[test]
fn strict_reverse_path_checks_matter_with_several_default_routes() {
    let mut facts = facts();
    assert_eq!(worst(&reverse_path(&facts)), Severity::Ok, "one way out");
    facts.observed.routes.insert(default_route(3));
    one(reverse_path(&facts), Severity::Warning, "eth0 is strict");
    facts.sysctls.insert("net/ipv4/conf/eth0/rp_filter".into(), "2".into());
    assert_eq!(worst(&reverse_path(&facts)), Severity::Ok, "the greater setting holds");
}

#[test]
fn port_ranges_must_be_apart() {
    let with = |local: &str, reserved: &str, snat: Result<_, String>| {
        let mut facts = facts();
        facts.sysctls.insert("net/ipv4/ip_local_port_range".into(), local.into());
        facts.sysctls.insert("net/ipv4/ip_local_reserved_ports".into(), reserved.into());
        facts.snat_ports = snat;
        ports(&facts)
    };
    one(with("1024\t60999", "", Ok(61_000..=65_535)), Severity::Warning, "holds NodePorts");
    for reserved in ["80,30000-32767", "30000-31000,31001-32767"] {
        let found = with("1024\t60999", reserved, Ok(61_000..=65_535));
        assert_eq!(worst(&found), Severity::Ok, "{found:?}");
    }
    let found = with("1024\t60999", "80", Ok(61_000..=65_535));
    assert!(found[0].remedy.ends_with("=80,30000-32767"), "{found:?}");
    one(with("32768\t60999", "", Ok(40_000..=50_000)), Severity::Warning, "overlap");
    one(
        with("32768\t60999", "", Err("nothing left; choose".into())),
        Severity::Error,
        "nothing left",
    );
}

#[test]
fn node_ports_outside_of_the_default_range_are_judged_one_by_one() {
    let with = |node_port: u16| {
        let mut facts = facts();
        let cluster = facts.cluster.as_mut().unwrap();
        cluster.node_ports = [(node_port, "default/web".to_owned())].into();
        ports(&facts)
    };
    assert_eq!(worst(&with(30_080)), Severity::Ok);
    one(with(40_080), Severity::Warning, "holds NodePorts (40080)");
    one(with(2_080), Severity::Warning, "2080 of default/web");
}

#[test]
fn other_proxies_and_what_they_left_are_found() {
    let with = |change: fn(&mut KubeProxy)| {
        let mut facts = facts();
        change(facts.kube_proxy.as_mut().unwrap());
        proxies(&facts)
    };
    one(with(|it| it.tables = vec!["ip kube-proxy".into()]), Severity::Warning, "ip kube-proxy");
    one(with(|it| it.chains = 7), Severity::Warning, "7 chains");
    one(
        with(|it| it.ipvs = Some("2 virtual servers".into())),
        Severity::Warning,
        "2 virtual servers",
    );
    let foreign = |program: &str| Foreign { program: program.into(), place: "eth0".into() };
    let mut facts = facts();
    facts.foreign = [foreign("cil_sock4_conne")].into();
    one(proxies(&facts), Severity::Warning, "cil_sock4_conne");
    facts.foreign = [foreign("cil_from_netdev")].into();
    assert_eq!(worst(&proxies(&facts)), Severity::Info);
}

#[test]
fn what_of_kube_proxy_may_go_is_said_step_by_step() {
    let with = |kube_proxy: KubeProxy, runs: bool| {
        let mut facts = facts();
        facts.kube_proxy = Ok(KubeProxy { chains: 7, ..kube_proxy });
        if runs {
            facts.answers.mode = Some(Ok(answer(200, "iptables")));
        }
        proxies(&facts)
    };
    let alone = with(KubeProxy::default(), true);
    assert!(alone[0].remedy.contains("needed until lb-agent serves this node"), "{alone:?}");
    assert!(alone[1].finding.contains("may not be deleted yet"), "{alone:?}");
    let beside = KubeProxy { may_stop: true, carried: 3, would_break: 2, ..KubeProxy::default() };
    let found = with(beside.clone(), true);
    assert!(found[0].remedy.contains("may not be removed yet, as 2 flows"), "{found:?}");
    assert!(found[1].finding.contains("it may be deleted"), "{found:?}");
    assert!(found[2].finding.contains("3 flows") && found[2].severity == Severity::Info);
    let after = KubeProxy { would_break: 0, may_remove_rules: true, ..beside };
    let found = with(after, false);
    assert!(found[0].remedy.contains("they may be removed"), "{found:?}");
    assert!(found[1].finding.contains("go on without its rules"), "{found:?}");
}

#[test]
fn a_node_needs_an_external_device_with_an_address() {
    let mut facts = facts();
    facts.node.devices.get_mut(&2).unwrap().address4 = None;
    one(devices(&facts), Severity::Error, "address to send from");
    facts.node.devices.clear();
    one(devices(&facts), Severity::Error, "no external device");
}

#[test]
fn what_is_not_attached_is_named() {
    let with = |change: fn(&mut Attached)| {
        let mut facts = facts();
        change(facts.attachments.as_mut().unwrap().as_mut().unwrap());
        attachments(&facts)
    };
    one(with(|it| it.sockets.retain(|hook, _| *hook != "connect4")), Severity::Error, "connect4");
    one(with(|it| it.sockets.extend([("recvmsg6", 1)])), Severity::Error, "recvmsg6");
    let without = |ingress, egress| {
        let mut facts = facts();
        let attached = facts.attachments.as_mut().unwrap().as_mut().unwrap();
        attached.devices.insert(2, OnDevice { ingress, egress, ..OnDevice::default() });
        attachments(&facts)
    };
    one(without(false, true), Severity::Error, "eth0: no program for what comes in");
    one(without(true, false), Severity::Error, "eth0: no program for what comes out");
    let mut facts = facts();
    one(
        attachments(&Facts { attachments: Ok(None), ..facts.clone() }),
        Severity::Error,
        "no datapath",
    );
    let refused = Err("open /sys/fs/bpf/lb: Permission denied".to_owned());
    one(attachments(&Facts { attachments: refused, ..facts.clone() }), Severity::Error, "denied");
    let other_versions = vec!["/sys/fs/bpf/lb/v1".into()];
    let found = attachments(&Facts { other_versions, ..facts.clone() });
    one(found, Severity::Warning, "/sys/fs/bpf/lb/v1");
    facts.node.pod_devices.insert(9, device_of_a_pod());
    assert_eq!(worst(&attachments(&facts)), Severity::Ok, "pods are served by socket");
    facts.serves_pod_packets = true;
    let found = attachments(&facts);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].finding.contains("veth9: no program for what comes in"), "{found:?}");
    facts.serves_pod_packets = false;
    facts.cluster.as_mut().unwrap().has_sctp = true;
    assert_eq!(attachments(&facts), found);
}

fn device_of_a_pod() -> Device {
    Device { role: Role::Pod, ..device(9, "veth9", "veth", 1500) }
}

#[test]
fn an_overlay_must_leave_room_for_its_headers() {
    let with = |kind: &str, mtu| {
        let mut facts = facts();
        facts.node.devices.insert(3, device(3, "overlay0", kind, mtu));
        mtu_of(&facts)
    };
    assert_eq!(worst(&with("vxlan", 1450)), Severity::Ok);
    one(with("vxlan", 1451), Severity::Warning, "overlay0 (vxlan) has an MTU of 1451");
    one(with("wireguard", 1500), Severity::Warning, "wireguard");
    assert_eq!(worst(&with("ipip", 1480)), Severity::Ok);
}

fn mtu_of(facts: &Facts) -> Vec<Finding> {
    mtu(facts)
}

#[test]
fn addresses_that_others_have_too_are_named() {
    let with = |address: &str, is_cluster_ip, pods: &[&str]| {
        let mut facts = facts();
        let address = address.parse().unwrap();
        let service = "default/web".into();
        facts.cluster_cidrs = pods.iter().map(|range| range.parse().unwrap()).collect();
        facts.cluster.as_mut().unwrap().addresses =
            [ServiceAddress { address, is_cluster_ip, service }].into();
        addresses(&facts)
    };
    one(
        with("192.0.2.1", true, &[]),
        Severity::Warning,
        "ClusterIP 192.0.2.1 of Service default/web",
    );
    assert_eq!(worst(&with("192.0.2.1", false, &[])), Severity::Info);
    let mut cached = facts();
    let cluster = cached.cluster.as_mut().unwrap();
    let (address, service) = ("192.0.2.1".parse().unwrap(), "kube-system/kube-dns".into());
    cluster.addresses = [ServiceAddress { address, is_cluster_ip: true, service }].into();
    cluster.left = ["192.0.2.1:53".parse().unwrap()].into();
    let found = addresses(&cached);
    assert_eq!(worst(&found), Severity::Info);
    let text =
        "listens at the ClusterIP 192.0.2.1 of Service kube-system/kube-dns, on the device eth0";
    assert!(found.iter().any(|finding| finding.finding.contains(text)), "{found:?}");
    one(
        with("10.1.2.3", true, &["10.1.0.0/16"]),
        Severity::Error,
        "in the pods' range 10.1.0.0/16",
    );
    one(with("fd00::5", true, &["fd00::/64"]), Severity::Error, "in the pods' range fd00::/64");
    assert_eq!(worst(&with("10.2.2.3", true, &["10.1.0.0/16"])), Severity::Ok);
    let mut facts = facts();
    let cluster = facts.cluster.as_mut().unwrap();
    cluster.pod_cidrs = vec!["10.96.4.0/24".parse().unwrap()];
    cluster.ranges = ["10.96.0.0/16".parse().unwrap()].into();
    one(addresses(&facts), Severity::Error, "10.96.0.0/16 overlaps the pods' range 10.96.4.0/24");
    facts.cluster =
        Ok(Cluster { problems: vec!["Service a: taken; change it".into()], ..Cluster::default() });
    one(addresses(&facts), Severity::Warning, "Service a: taken");
}

#[test]
fn maps_that_are_nearly_full_are_named_with_the_flag() {
    let with =
        |map, entries| fill(&Facts { usage: Some(Ok(vec![map_usage(map, entries)])), ..facts() });
    one(with("SLOTS", 90), Severity::Warning, "SLOTS holds 90 of 100");
    one(with("SLOTS", 99), Severity::Error, "left out");
    one(with("FLOWS4", 100), Severity::Warning, "forgotten");
    assert_eq!(worst(&with("SLOTS", 84)), Severity::Ok);
    assert_eq!(worst(&with("REVERSE", 100)), Severity::Ok, "full is how it is meant to be");
    let found = with("SOURCE_RANGES", 90);
    assert!(found[0].remedy.contains("--max-source-ranges"), "{found:?}");
}

#[test]
fn differences_are_errors_and_an_unknown_cluster_is_said() {
    let mut facts = facts();
    facts.cluster.as_mut().unwrap().differences = Some(vec!["default/web is missing".into()]);
    one(services(&facts), Severity::Error, "default/web is missing");
    let many = (0..30).map(|number| format!("default/s{number}")).collect();
    facts.cluster.as_mut().unwrap().differences = Some(many);
    let found = services(&facts);
    assert_eq!(found.len(), 21);
    assert!(found[20].finding.starts_with("10 more"), "{:?}", found[20]);
    facts.cluster = Err("no API server is known".into());
    one(services(&facts), Severity::Warning, "no API server is known");
    facts.cluster = Ok(Cluster { ports: 3, ..Cluster::default() });
    assert_eq!(worst(&services(&facts)), Severity::Info);
}

#[test]
fn the_agent_must_run_and_say_that_it_is_healthy() {
    let with = |users, healthz| {
        let answers = Answers { healthz, ..facts().answers };
        agent(&Facts { users, answers, ..facts() })
    };
    let none = Ok(Users::default());
    one(with(none, None), Severity::Error, "no agent works with the datapath");
    one(with(Err("look at /x: denied".into()), None), Severity::Warning, "denied");
    let users = || facts().users;
    one(with(users(), Some(Ok(answer(503, "waiting")))), Severity::Error, "says 503: waiting");
    one(with(users(), Some(Err("refused".into()))), Severity::Error, "refused");
    assert_eq!(worst(&with(users(), None)), Severity::Info);
    let mut facts = facts();
    facts.answers.mode = Some(Ok(answer(200, "nftables")));
    let found = agent(&facts);
    assert!(
        found[0].finding.contains("kube-proxy has the port"),
        "its answer is not ours: {found:?}"
    );
}

#[test]
fn a_report_is_a_table_for_people_and_rows_for_programs() {
    let mut facts = facts();
    facts.kernel.release = "5.15.0".into();
    let found = judge(&facts);
    let text = render(&found, DoctorFormat::Table).unwrap();
    assert!(text.starts_with("SEVERITY   CHECK"), "{text}");
    assert!(text.contains("error      kernel"), "{text}");
    assert!(text.contains("→ boot a kernel of 6.1"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&render(&found, DoctorFormat::Json).unwrap()).unwrap();
    assert_eq!(json[0]["severity"], "error");
    assert_eq!(json[0]["check"], "kernel");
    let yaml: serde_json::Value =
        serde_yaml_ng::from_str(&render(&found, DoctorFormat::Yaml).unwrap()).unwrap();
    assert_eq!(yaml, json);
}
