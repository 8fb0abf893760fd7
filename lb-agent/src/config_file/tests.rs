use std::time::Duration;

use clap::Parser;

use super::*;
use crate::args::{Args, Command};
use crate::config::{DevicePattern, NodePortAddresses, PodDevices, Source};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
/// What `kubeadm init phase addon kube-proxy --print-manifest` of v1.36.3 puts into the ConfigMap.
const KUBEADM: &str = include_str!("testdata/kubeadm.yaml");
/// What `kube-proxy --write-config-to` of v1.36.3 writes: every field with its default.
const DEFAULTS: &str = include_str!("testdata/defaults.yaml");

struct File {
    directory: tempfile::TempDir,
}

impl File {
    fn new(text: &str) -> Self {
        let file = Self { directory: tempfile::tempdir().unwrap() };
        file.write(text);
        file
    }

    fn path(&self) -> String {
        self.directory.path().join("config.conf").display().to_string()
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    fn read(&self, flags: &[&str]) -> Result<Told, FileError> {
        let path = self.path();
        let words = ["lb-agent", "run", "--config", &path];
        match Args::try_parse_from(words.iter().chain(flags)).expect("flags").command {
            Command::Run(args) => configure(*args, "node-a"),
            other => unreachable!("{other:?}"),
        }
    }
}

fn told(fields: &str, flags: &[&str]) -> Told {
    File::new(&format!("{HEAD}{fields}")).read(flags).unwrap()
}

fn notes(told: &Told) -> Vec<(&str, bool)> {
    told.notes.iter().map(|note| (note.field, note.is_warning)).collect()
}

#[test]
fn the_file_that_kubeadm_makes_is_used_as_it_is() {
    let told = File::new(KUBEADM).read(&[]).unwrap();
    let kubeconfig = Some("/var/lib/kube-proxy/kubeconfig.conf".into());
    assert_eq!(told.config.source, Source::ApiServer { kubeconfig, addresses: Vec::new() });
    assert_eq!(told.config.cluster_cidrs, ["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(told.config.node_name, "node-a");
    assert_eq!(told.config.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(told.config.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    assert!(told.notes.iter().all(|note| !note.is_warning), "{:?}", told.notes);
}

#[test]
fn kube_proxys_own_defaults_ask_for_nothing() {
    let told = File::new(DEFAULTS).read(&[]).unwrap();
    let file = notes(&told);
    // The only ones that aren't written as "not set".
    assert_eq!(
        file,
        [("healthzBindAddress", false), ("metricsBindAddress", false), ("mode", false)]
    );
}

#[test]
fn every_field_that_kube_proxy_writes_is_known_and_no_other() {
    let document: Value = serde_yaml_ng::from_str(DEFAULTS).unwrap();
    let written =
        |path: &str| path.split('.').try_fold(&document, |value, name| value.get(name)).is_some();
    // Go leaves these out when they are empty, and these are of earlier versions.
    let not_written = [
        "logging.vmodule",
        "logging.options.text.splitStream",
        "logging.options.json.splitStream",
        "featureGates",
        "windowsRunAsService",
        "udpIdleTimeout",
        "conntrack.max",
    ];
    for field in fields::FIELDS {
        assert!(written(field.path) || not_written.contains(&field.path), "{}", field.path);
    }
}

#[test]
fn each_supported_field_becomes_its_flag() {
    let told = told(
        "clientConnection: {kubeconfig: /k}\nhostnameOverride: Node-B\nclusterCIDR: '10.0.0.0/8,fd00::/48'\n\
         nodePortAddresses: ['192.0.2.0/24', '2001:db8::/64']\nhealthzBindAddress: '[::]:11256'\n\
         metricsBindAddress: 0.0.0.0\n",
        &[],
    );
    let source = Source::ApiServer { kubeconfig: Some("/k".into()), addresses: Vec::new() };
    assert_eq!(told.config.source, source);
    assert_eq!(told.config.node_name, "node-b");
    assert_eq!(told.config.cluster_cidrs.len(), 2);
    let ranges = ["192.0.2.0/24", "2001:db8::/64"].map(|range| range.parse().unwrap());
    assert_eq!(told.config.nodeport_addresses, NodePortAddresses::Within(ranges.into()));
    assert_eq!(told.config.healthz, Some("[::]:11256".parse().unwrap()));
    assert_eq!(told.config.metrics, Some("0.0.0.0:10249".parse().unwrap()));
    assert_eq!(notes(&told).len(), 6);
}

#[test]
fn a_flag_comes_before_the_file_and_that_is_said() {
    let fields = "hostnameOverride: node-b\nclientConnection: {kubeconfig: /k}\nmetricsBindAddress: 0.0.0.0\n\
        nodePortAddresses: [10.0.0.0/8]\n";
    let flags = [
        "--hostname-override",
        "node-c",
        "--manifests",
        "/m",
        "--metrics-bind-address",
        "",
        "--nodeport-addresses",
        "primary",
    ];
    let told = told(fields, &flags);
    assert_eq!(told.config.node_name, "node-c");
    assert_eq!(told.config.source, Source::Manifests("/m".into()));
    assert_eq!(told.config.metrics, None);
    assert_eq!(told.config.nodeport_addresses, NodePortAddresses::Primary);
    assert!(told.notes.iter().all(|note| note.text.contains("comes first")), "{:?}", told.notes);
}

#[test]
fn nodeports_follow_the_default_of_the_mode_and_metrics_the_family() {
    for (fields, flags, expected) in [
        ("mode: nftables", &[][..], NodePortAddresses::Primary),
        ("mode: iptables", &[], NodePortAddresses::All),
        ("mode: ''", &[], NodePortAddresses::All),
        (
            "{mode: nftables, nodePortAddresses: [10.0.0.0/8]}",
            &[],
            NodePortAddresses::Within(vec!["10.0.0.0/8".parse().unwrap()]),
        ),
        (
            "mode: nftables",
            &["--nodeport-addresses", "10.0.0.0/8"],
            NodePortAddresses::Within(vec!["10.0.0.0/8".parse().unwrap()]),
        ),
    ] {
        // A document in braces is one mapping with the head.
        let fields = fields.trim_matches(['{', '}']).replace(", nodePort", "\nnodePort");
        assert_eq!(told(&fields, flags).config.nodeport_addresses, expected, "{fields}");
    }
    assert_eq!(told("bindAddress: '::'", &[]).config.metrics, Some("[::1]:10249".parse().unwrap()));
    let named = told("bindAddress: 192.0.2.1", &[]);
    assert_eq!(notes(&named), [("bindAddress", true)]);
}

#[test]
fn all_is_masqueraded_where_the_mode_says_so_and_packets_of_pods_are_translated() {
    const BY_PACKET: &[&str] = &["--pod-path", "packet"];
    const REFUSED: &[&str] = &["--pod-path", "packet", "--masquerade-all=false"];
    let (iptables, nftables) =
        ("iptables: {masqueradeAll: true}", "nftables: {masqueradeAll: true}");
    for (mode, fields, flags, expected, warned) in [
        ("", iptables, BY_PACKET, true, false),
        ("ipvs", iptables, BY_PACKET, true, false),
        ("nftables", nftables, BY_PACKET, true, false),
        ("nftables", iptables, BY_PACKET, false, false),
        ("iptables", nftables, BY_PACKET, false, false),
        ("iptables", iptables, REFUSED, false, false),
        ("iptables", iptables, &[][..], false, true),
        ("iptables", iptables, &["--pod-path", "both"], false, true),
    ] {
        let told = told(&format!("mode: '{mode}'\n{fields}\n"), flags);
        assert_eq!(told.config.masquerade_all, expected, "{mode} {fields} {flags:?}");
        let note = told.notes.iter().find(|note| note.field.ends_with("masqueradeAll")).unwrap();
        assert_eq!(note.is_warning, warned, "{mode} {fields} {flags:?}: {note:?}");
    }
}

#[test]
fn a_prefix_names_the_devices_of_pods_in_its_mode() {
    let prefix = "detectLocal: {interfaceNamePrefix: cali}";
    let named = |text: &str| PodDevices::Named(vec![DevicePattern::Prefix(text.to_owned())]);
    for (mode, flags, expected) in [
        ("InterfaceNamePrefix", &[][..], named("cali")),
        ("InterfaceNamePrefix", &["--pod-devices", "tap*"], named("tap")),
        ("BridgeInterface", &[], PodDevices::Pairs),
    ] {
        let told = told(&format!("detectLocalMode: {mode}\n{prefix}\n"), flags);
        assert_eq!(told.config.pod_devices, expected, "{mode} {flags:?}");
    }
    let file = File::new(&format!(
        "{HEAD}detectLocalMode: InterfaceNamePrefix\ndetectLocal: {{interfaceNamePrefix: a/b}}\n"
    ));
    let error = file.read(&[]).expect_err("no device name").to_string();
    assert!(error.contains("detectLocal.interfaceNamePrefix: \"a/b*\": not a device"), "{error}");
}

#[test]
fn what_is_ignored_is_said_with_the_reason_and_a_warning_where_it_matters() {
    let told = told(
        "iptables: {masqueradeBit: 5}\nipvs: {strictARP: true, scheduler: lc}\n\
         conntrack: {maxPerCore: 65536, tcpEstablishedTimeout: 24h0m0s}\nfeatureGates: {X: true}\n",
        &[],
    );
    let expected = [
        ("conntrack.maxPerCore", true),
        ("featureGates", true),
        ("iptables.masqueradeBit", false),
        ("ipvs.scheduler", true),
        ("ipvs.strictARP", false),
    ];
    assert_eq!(notes(&told), expected);
    assert!(told.notes.iter().all(|note| note.text.starts_with("ignored: ")), "{:?}", told.notes);
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_field_and_remedy() {
    let version = HEAD.replace("v1alpha1", "v1alpha2");
    for (text, words) in [
        ("{", "write one YAML or JSON document"),
        ("---\na: 1\n---\nb: 2\n", "write one YAML or JSON document"),
        ("", "it says no apiVersion and no kind"),
        ("just words", "it says no apiVersion and no kind"),
        ("apiVersion: v1\nkind: ConfigMap\ndata: {}\n", "config.conf"),
        ("apiVersion: v1\nkind: Config\n", "it is \"v1\" \"Config\""),
        (&version, "no other version is known"),
        (
            &format!("{HEAD}masqueradeAll: true\n"),
            "masqueradeAll: kube-proxy has no such field; write iptables.",
        ),
        (
            &format!("{HEAD}clusterCIDR: 10.0.0.0\n"),
            "clusterCIDR: \"10.0.0.0\": not an address range; write ",
        ),
        (
            &format!("{HEAD}metricsBindAddress: localhost:1\n"),
            "metricsBindAddress: \"localhost:1\": not an addr",
        ),
        (
            &format!("{HEAD}nodePortAddresses: [eth0]\n"),
            "nodePortAddresses: \"eth0\": not an address range",
        ),
        (&format!("{HEAD}mode: kernelspace\n"), "mode: \"kernelspace\" is not one of"),
        (&format!("{HEAD}{HEAD}"), "duplicate"),
    ] {
        let file = File::new(text);
        let error = file.read(&[]).expect_err(text).to_string();
        assert!(error.starts_with(&format!("--config {}", file.path())), "{error}");
        assert!(error.contains(words) && error.contains("; "), "{text:?}: {error}");
    }
    let error = File::new(HEAD).read(&["--devices", "a/b"]).expect_err("a flag").to_string();
    assert!(error.starts_with("--devices"), "{error}");
    let absent = File::new(HEAD);
    std::fs::remove_file(absent.path()).unwrap();
    assert!(
        absent.read(&[]).expect_err("absent").to_string().contains("check that the file exists")
    );
}

#[tokio::test]
async fn a_file_has_changed_when_it_says_something_else_that_can_be_used() {
    let file = File::new(&format!("{HEAD}hostnameOverride: node-b\n"));
    let followed = file.read(&[]).unwrap().file.unwrap();
    let changed = async |patience| {
        let look = followed.changed_within(Duration::from_millis(5));
        tokio::time::timeout(Duration::from_millis(patience), look).await.is_ok()
    };
    assert!(!changed(100).await, "untouched");
    file.write(&format!("{HEAD}hostnameOverride: node-b # still\n"));
    assert!(!changed(100).await, "a comment");
    file.write(&format!("{HEAD}hostnameOverride: 5\n"));
    assert!(!changed(100).await, "it can't be used");
    std::fs::remove_file(file.path()).unwrap();
    assert!(!changed(100).await, "it is gone");
    file.write(&format!("{HEAD}hostnameOverride: node-c\n"));
    assert!(changed(5_000).await);
}
