//! Every field of kube-proxy's configuration file, and what becomes of it here.
//!
//! One table for the reader of the file, for what the log says of it, for the hint at kube-proxy's flags on
//! the command line, and for the page docs/migrate.md, which a test keeps equal. The fields are those
//! of `k8s.io/kube-proxy/config/v1alpha1` (v0.36) and two that earlier versions of Kubernetes had.

use Importance::{Changes, Meaningless};
use Kind::{Anything, Duration, Gates, Integer, Number, OneOf, Size, Switch, Text, Texts, Time};
use Treatment::{Ignored, Used};

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A list of texts.
    Texts,
    /// true or false.
    Switch,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// A time as Go writes it, `1m30s`.
    Duration,
    /// Such a time, or nanoseconds as a number.
    Time,
    /// A size as Kubernetes writes it, `64Ki`, or a number of bytes.
    Size,
    /// Names with true or false.
    Gates,
    /// Whatever it is, nobody looks at it.
    Anything,
}

/// What ignoring a field means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    /// Who set it gets something else than with kube-proxy.
    Changes,
    /// There is nothing here that it could change.
    Meaningless,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It is used, in this way.
    Used(&'static str),
    /// It is not, for this reason.
    Ignored(Importance, &'static str),
}

/// One field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its path, `iptables.masqueradeAll`.
    pub path: &'static str,
    /// kube-proxy's flag for it, without dashes; empty if there is none.
    pub flag: &'static str,
    /// What may be written.
    pub kind: Kind,
    /// Values that ask for nothing: kube-proxy's own default, and how Go writes a field that isn't set.
    pub defaults: &'static [&'static str],
    /// What becomes of it.
    pub treatment: Treatment,
}

const fn field(
    path: &'static str,
    flag: &'static str,
    kind: Kind,
    defaults: &'static [&'static str],
    treatment: Treatment,
) -> Field {
    Field { path, flag, kind, defaults, treatment }
}

/// The modes of kube-proxy on Linux.
const MODES: &[&str] = &["", "iptables", "ipvs", "nftables"];
const LOCAL_MODES: &[&str] =
    &["", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];

const BY_DEVICE: &str = "pods are told from other sources by the device or the socket that they send \
    through, in every cluster alike";
const MASQUERADE: &str = "as --masquerade-all in its mode, with --pod-path packet; otherwise ignored: the \
    sockets of pods are led to an endpoint before there is a packet whose source could be replaced";
const NO_MARKS: &str = "no packet is marked";
const NO_PERIODS: &str = "a change is written when it comes, and nothing else has to be repeated";
const CONNTRACK: &str = "the agent leaves the node's conntrack settings as they are, because its Services \
    don't go through conntrack; where other rules of the node need it, set it with sysctl";
const NO_IPVS: &str = "there is no IPVS";
const LOGGING: &str = "the agent's log has its own form: --log-format and --log-level";
const FEW_REQUESTS: &str =
    "the agent has four watches and writes events, nothing that had to be slowed down";
const WINDOWS: &str = "for kube-proxy on Windows";

/// All of them, in the order of the Go types.
pub const FIELDS: &[Field] = &[
    field(
        "featureGates",
        "feature-gates",
        Gates,
        &[""],
        Ignored(Changes, "the agent has no feature gates; AllowServiceExternalIPs counts as true"),
    ),
    field("clientConnection.kubeconfig", "kubeconfig", Text, &[""], Used("as --kubeconfig")),
    field(
        "clientConnection.acceptContentTypes",
        "",
        Text,
        &[""],
        Ignored(Meaningless, "the agent asks for JSON"),
    ),
    field(
        "clientConnection.contentType",
        "kube-api-content-type",
        Text,
        &["", "application/vnd.kubernetes.protobuf"],
        Ignored(Meaningless, "the agent sends JSON"),
    ),
    field(
        "clientConnection.qps",
        "kube-api-qps",
        Number,
        &["0", "0.0", "5", "5.0"],
        Ignored(Meaningless, FEW_REQUESTS),
    ),
    field(
        "clientConnection.burst",
        "kube-api-burst",
        Integer,
        &["0", "10"],
        Ignored(Meaningless, FEW_REQUESTS),
    ),
    field("logging.format", "logging-format", Text, &["", "text"], Ignored(Changes, LOGGING)),
    field(
        "logging.flushFrequency",
        "log-flush-frequency",
        Time,
        &["0", "0s", "5s", "5000000000"],
        Ignored(Meaningless, "each line is written at once"),
    ),
    field("logging.verbosity", "v", Integer, &["0"], Ignored(Changes, LOGGING)),
    field("logging.vmodule", "vmodule", Anything, &[""], Ignored(Changes, LOGGING)),
    field(
        "logging.options.text.splitStream",
        "log-text-split-stream",
        Switch,
        &["false"],
        Ignored(Changes, LOGGING),
    ),
    field(
        "logging.options.text.infoBufferSize",
        "log-text-info-buffer-size",
        Size,
        &["0"],
        Ignored(Meaningless, "each line is written at once"),
    ),
    field(
        "logging.options.json.splitStream",
        "log-json-split-stream",
        Switch,
        &["false"],
        Ignored(Changes, LOGGING),
    ),
    field(
        "logging.options.json.infoBufferSize",
        "log-json-info-buffer-size",
        Size,
        &["0"],
        Ignored(Meaningless, "each line is written at once"),
    ),
    field("hostnameOverride", "hostname-override", Text, &[""], Used("as --hostname-override")),
    field(
        "bindAddress",
        "bind-address",
        Text,
        &[""],
        Used(
            "its family alone: with IPv6, /metrics is on [::1] by default; the node's primary address is \
             the one that its Node object names first",
        ),
    ),
    field(
        "healthzBindAddress",
        "healthz-bind-address",
        Text,
        &[""],
        Used("as --healthz-bind-address; empty is the default here"),
    ),
    field(
        "metricsBindAddress",
        "metrics-bind-address",
        Text,
        &[""],
        Used("as --metrics-bind-address; empty is the default here"),
    ),
    field(
        "bindAddressHardFail",
        "bind-address-hard-fail",
        Switch,
        &["false"],
        Ignored(Changes, "an address that is taken is said in the log and tried again every 5 s"),
    ),
    field(
        "enableProfiling",
        "profiling",
        Switch,
        &["false"],
        Ignored(Changes, "the agent serves no profiles"),
    ),
    field(
        "showHiddenMetricsForVersion",
        "show-hidden-metrics-for-version",
        Text,
        &[""],
        Ignored(Meaningless, "the agent hides no metrics"),
    ),
    field(
        "mode",
        "proxy-mode",
        OneOf(MODES),
        MODES,
        Used(
            "with nftables, NodePorts are by default on the node's primary addresses alone, as there; \
             otherwise there is one mode, eBPF",
        ),
    ),
    field(
        "iptables.masqueradeBit",
        "iptables-masquerade-bit",
        Integer,
        &["14"],
        Ignored(Meaningless, NO_MARKS),
    ),
    field("iptables.masqueradeAll", "masquerade-all", Switch, &["false"], Used(MASQUERADE)),
    field(
        "iptables.localhostNodePorts",
        "iptables-localhost-nodeports",
        Switch,
        &["true"],
        Ignored(
            Changes,
            "the node's own processes reach NodePorts on 127.0.0.1 and ::1, which nobody outside can (no \
             route_localnet is needed)",
        ),
    ),
    field(
        "iptables.syncPeriod",
        "iptables-sync-period",
        Duration,
        &["0s", "30s"],
        Ignored(Meaningless, NO_PERIODS),
    ),
    field(
        "iptables.minSyncPeriod",
        "iptables-min-sync-period",
        Duration,
        &["0s", "1s"],
        Ignored(Meaningless, NO_PERIODS),
    ),
    field(
        "ipvs.syncPeriod",
        "ipvs-sync-period",
        Duration,
        &["0s", "30s"],
        Ignored(Meaningless, NO_PERIODS),
    ),
    field(
        "ipvs.minSyncPeriod",
        "ipvs-min-sync-period",
        Duration,
        &["0s"],
        Ignored(Meaningless, NO_PERIODS),
    ),
    field(
        "ipvs.scheduler",
        "ipvs-scheduler",
        Text,
        &["", "rr"],
        Ignored(
            Changes,
            "endpoints are chosen at random inside the cluster and by Maglev hashing for clients outside",
        ),
    ),
    field("ipvs.excludeCIDRs", "ipvs-exclude-cidrs", Texts, &[""], Ignored(Meaningless, NO_IPVS)),
    field(
        "ipvs.strictARP",
        "ipvs-strict-arp",
        Switch,
        &["false"],
        Ignored(
            Meaningless,
            "no Service address is on a device of the node, so none is answered for",
        ),
    ),
    field("ipvs.tcpTimeout", "ipvs-tcp-timeout", Duration, &["0s"], Ignored(Changes, NO_IPVS)),
    field(
        "ipvs.tcpFinTimeout",
        "ipvs-tcpfin-timeout",
        Duration,
        &["0s"],
        Ignored(Changes, NO_IPVS),
    ),
    field("ipvs.udpTimeout", "ipvs-udp-timeout", Duration, &["0s"], Ignored(Changes, NO_IPVS)),
    field("nftables.masqueradeBit", "", Integer, &["14"], Ignored(Meaningless, NO_MARKS)),
    field("nftables.masqueradeAll", "", Switch, &["false"], Used(MASQUERADE)),
    field("nftables.syncPeriod", "", Duration, &["0s", "30s"], Ignored(Meaningless, NO_PERIODS)),
    field("nftables.minSyncPeriod", "", Duration, &["0s", "1s"], Ignored(Meaningless, NO_PERIODS)),
    field("winkernel.networkName", "", Text, &[""], Ignored(Meaningless, WINDOWS)),
    field("winkernel.sourceVip", "", Text, &[""], Ignored(Meaningless, WINDOWS)),
    field("winkernel.enableDSR", "", Switch, &["false"], Ignored(Meaningless, WINDOWS)),
    field("winkernel.rootHnsEndpointName", "", Text, &[""], Ignored(Meaningless, WINDOWS)),
    field("winkernel.forwardHealthCheckVip", "", Switch, &["false"], Ignored(Meaningless, WINDOWS)),
    field(
        "detectLocalMode",
        "detect-local-mode",
        OneOf(LOCAL_MODES),
        &["", "ClusterCIDR"],
        Used(
            "InterfaceNamePrefix alone, as --pod-devices PREFIX*; pods are told from other sources by the \
             device or the socket that they send through, in every cluster alike",
        ),
    ),
    field(
        "detectLocal.bridgeInterface",
        "pod-bridge-interface",
        Text,
        &[""],
        Ignored(Meaningless, BY_DEVICE),
    ),
    field(
        "detectLocal.interfaceNamePrefix",
        "pod-interface-name-prefix",
        Text,
        &[""],
        Used("as --pod-devices PREFIX*, with detectLocalMode InterfaceNamePrefix"),
    ),
    field(
        "clusterCIDR",
        "cluster-cidr",
        Text,
        &[""],
        Used(
            "as --cluster-cidr: `lb-agent doctor` compares Service addresses with it; it has no effect on \
             traffic, as pods are told from other sources by device or socket",
        ),
    ),
    field("nodePortAddresses", "nodeport-addresses", Texts, &[""], Used("as --nodeport-addresses")),
    field(
        "oomScoreAdj",
        "oom-score-adj",
        Integer,
        &["-999"],
        Ignored(
            Changes,
            "the agent keeps what it is started with, -997 in a Pod that is system-node-critical; the \
             datapath doesn't need the agent",
        ),
    ),
    field(
        "conntrack.maxPerCore",
        "conntrack-max-per-core",
        Integer,
        &["0", "32768"],
        Ignored(Changes, CONNTRACK),
    ),
    field("conntrack.min", "conntrack-min", Integer, &["0", "131072"], Ignored(Changes, CONNTRACK)),
    field(
        "conntrack.tcpEstablishedTimeout",
        "conntrack-tcp-timeout-established",
        Duration,
        &["0s", "24h"],
        Ignored(
            Changes,
            "flows from outside are forgotten after 24 h of silence, and nothing else is tracked",
        ),
    ),
    field(
        "conntrack.tcpCloseWaitTimeout",
        "conntrack-tcp-timeout-close-wait",
        Duration,
        &["0s", "1h"],
        Ignored(Changes, CONNTRACK),
    ),
    field(
        "conntrack.tcpBeLiberal",
        "conntrack-tcp-be-liberal",
        Switch,
        &["false"],
        Ignored(Changes, CONNTRACK),
    ),
    field(
        "conntrack.udpTimeout",
        "conntrack-udp-timeout",
        Duration,
        &["0s"],
        Ignored(
            Changes,
            "UDP flows from outside without an answer, or of less than a second, are forgotten after 30 s",
        ),
    ),
    field(
        "conntrack.udpStreamTimeout",
        "conntrack-udp-timeout-stream",
        Duration,
        &["0s"],
        Ignored(Changes, "other UDP flows from outside are forgotten after 180 s of silence"),
    ),
    field(
        "configSyncPeriod",
        "config-sync-period",
        Duration,
        &["0s", "15m"],
        Ignored(Meaningless, NO_PERIODS),
    ),
    field("portRange", "", Text, &[""], Ignored(Meaningless, "kube-proxy doesn't use it either")),
    field("windowsRunAsService", "", Switch, &["false"], Ignored(Meaningless, WINDOWS)),
    field(
        "udpIdleTimeout",
        "",
        Duration,
        &["0s", "250ms"],
        Ignored(Meaningless, "for the userspace mode of Kubernetes before 1.26"),
    ),
    field(
        "conntrack.max",
        "",
        Integer,
        &["0"],
        Ignored(
            Meaningless,
            "kube-proxy has it no more: conntrack.maxPerCore and min took its place",
        ),
    ),
];

/// The field at a path.
pub fn at(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Between these lines of the page.
    const BEGIN: &str = "| field | | what becomes of it |\n|---|---|---|\n";

    fn table() -> String {
        let line = |field: &Field| {
            let (used, text) = match field.treatment {
                Used(how) => ("used", how),
                Ignored(_, why) => ("ignored", why),
            };
            format!("| `{}` | {used} | {} |\n", field.path, text.replace('|', "\\|"))
        };
        FIELDS.iter().map(line).collect()
    }

    #[test]
    fn the_page_for_those_who_migrate_has_a_line_for_each_field() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/migrate.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (_, behind) = page.split_once(BEGIN).expect("the table's head");
        let present: String =
            behind.split_inclusive('\n').take_while(|line| line.starts_with('|')).collect();
        assert!(present == table(), "docs/migrate.md should say:\n{BEGIN}{}", table());
    }

    #[test]
    fn each_path_is_there_once_and_no_field_is_inside_of_another() {
        for (number, field) in FIELDS.iter().enumerate() {
            for other in &FIELDS[number + 1..] {
                assert_ne!(field.path, other.path);
                let inside = |a: &str, b: &str| a.starts_with(&format!("{b}."));
                assert!(!inside(field.path, other.path) && !inside(other.path, field.path));
                assert!(field.flag.is_empty() || field.flag != other.flag, "{}", field.flag);
            }
        }
    }
}
