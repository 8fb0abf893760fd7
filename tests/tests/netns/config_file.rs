//! `lb-agent run --config` with kube-proxy's configuration file in a ConfigMap's volume: the node behaves
//! as the file says, flags come first, another file ends the agent, and a broken one is named.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_lab::topology::pod_range;
use lb_lab::{
    Agent, AgentOptions, Family, METRICS, Options, Request, Transport, Xdp, agent_binary,
};

use crate::manifest::Service;
use crate::stage::{Stage, each, eventually};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
/// The agent looks at the file every ten seconds.
const LOOK: Duration = Duration::from_secs(40);

/// A ConfigMap's volume, as a kubelet keeps it: the file is a link through the link `..data`, which is
/// replaced at once.
struct Volume {
    directory: PathBuf,
    versions: u32,
}

impl Volume {
    fn new(directory: PathBuf, text: &str) -> Self {
        fs::create_dir_all(&directory).unwrap();
        let mut volume = Self { directory, versions: 0 };
        volume.set(text);
        symlink("..data/config.conf", volume.file()).unwrap();
        volume
    }

    fn file(&self) -> PathBuf {
        self.directory.join("config.conf")
    }

    fn set(&mut self, text: &str) {
        self.versions += 1;
        let version = |number| format!("..2026_11_26_{number}");
        let new = version(self.versions);
        fs::create_dir(self.directory.join(&new)).unwrap();
        fs::write(self.directory.join(&new).join("config.conf"), text).unwrap();
        let draft = self.directory.join("..data_tmp");
        symlink(&new, &draft).unwrap();
        fs::rename(draft, self.directory.join("..data")).unwrap();
        let old = self.directory.join(version(self.versions - 1));
        if old.is_dir() {
            fs::remove_dir_all(old).unwrap();
        }
    }
}

fn options(stage: &Stage, config: &Path) -> AgentOptions {
    let sizes = ["--max-flows", "16384", "--max-slots", "262144"].map(str::to_owned);
    let config = ["--config".to_owned(), config.display().to_string()];
    AgentOptions {
        xdp: Xdp::Off,
        arguments: [&config[..], &sizes].concat(),
        ..AgentOptions::manifests(agent_binary().unwrap(), stage.manifests())
    }
}

fn answers(stage: &Stage, port: u16, path: &str) -> bool {
    let address = SocketAddr::new(METRICS.ip(), port);
    let page = stage.lab().peer("node-a").unwrap().get(address, path);
    page.is_ok_and(|page| page.status == 200)
}

/// Whether NodePorts are served on the node's own address, and on the gateway of its pods.
fn expect_node_ports(stage: &Stage, service: &Service, on_gateway: bool) {
    for (family, transport) in each() {
        let to = |address| Request::new(transport, address, service.node_port_number()).connected();
        stage.answer("client", &to(stage.address("node-a", family)));
        let gateway = to(pod_range(1, 1).unwrap().of(family));
        if on_gateway {
            stage.answer("client", &gateway);
        } else {
            assert_eq!(stage.failure("client", &gateway).errno, "ECONNREFUSED", "{family}");
        }
    }
}

#[test]
fn the_node_is_as_the_file_says_until_the_file_says_something_else() {
    let service = Service::node_port(1, &["pod-a1", "pod-b1"]);
    let mut stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    stage.stop_agent("node-a");
    // The agents of labs are told --metrics-bind-address by a flag.
    let text = format!(
        "{HEAD}mode: iptables\nbindAddress: 0.0.0.0\nhealthzBindAddress: 0.0.0.0:11256\n\
         metricsBindAddress: 127.0.0.1:11249\nnodePortAddresses: [10.240.0.0/24, 'fd00:240::/64']\n\
         clientConnection: {{kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}}\n\
         iptables: {{masqueradeAll: true, syncPeriod: 60s}}\nhostnameOverride: another-node\n"
    );
    let mut volume = Volume::new(stage.lab().directory().join("config"), &text);
    let options = options(&stage, &volume.file());
    let agent = Agent::spawn(stage.lab(), "node-a", &options).unwrap();
    eventually("/healthz is where the file says", || answers(&stage, 11_256, "/healthz"));
    assert!(!answers(&stage, 10_256, "/healthz"), "and nowhere else");
    assert!(answers(&stage, METRICS.port(), "/metrics"), "where the flag says");
    assert!(!answers(&stage, 11_249, "/metrics"), "and not where the file does");
    expect_node_ports(&stage, &service, false);
    let log = stage.log("node-a");
    for words in [
        "--metrics-bind-address comes first",
        "--hostname-override comes first",
        "--manifests comes first",
        "used as --healthz-bind-address",
        "field=\"iptables.masqueradeAll\" value=\"true\"",
        "field=\"iptables.syncPeriod\" value=\"60s\"",
    ] {
        assert!(log.contains(words), "{words} in {log}");
    }

    // A version that can't be used is said, and changes nothing; neither does one that says the same.
    volume.set(&text.replace("mode: iptables", "mode: userspace"));
    let deadline = std::time::Instant::now() + LOOK;
    while !stage.log("node-a").contains("the changed file can't be used") {
        assert!(std::time::Instant::now() < deadline, "{}", stage.log("node-a"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(stage.log("node-a").contains("mode: \"userspace\""), "{}", stage.log("node-a"));
    volume.set(&format!("{text}# nothing else\n"));
    assert!(answers(&stage, 11_256, "/healthz"), "it goes on");

    // Another version ends it, so that it is started again with it. The datapath stays meanwhile.
    let changed = text.replace("nodePortAddresses", "# nodePortAddresses");
    volume.set(&changed.replace("11256", "11257"));
    let status = agent.wait_end(LOOK).unwrap();
    assert_eq!(status.code(), Some(1), "{status}");
    let log = stage.log("node-a");
    let file = volume.file().display().to_string();
    let last = log.lines().last().unwrap();
    assert!(last.contains(&file) && last.contains("has changed; start the agent again"), "{last}");
    expect_node_ports(&stage, &service, false);
    let _agent = Agent::spawn(stage.lab(), "node-a", &options).unwrap();
    eventually("the agent has the new file", || answers(&stage, 11_257, "/healthz"));
    expect_node_ports(&stage, &service, true);
}

#[test]
fn a_file_that_cannot_be_used_ends_the_start_with_its_name_the_field_and_what_to_write() {
    let stage = Stage::up(&Options { pods_per_node: 0, nodes: 1, ..Options::default() }, &[]);
    let manifests = stage.manifests().display().to_string();
    let file = stage.lab().directory().join("broken.conf");
    let path = file.display().to_string();
    let run = || {
        let output = stage.agent_output(
            "node-a",
            &["run", "--config", &path, "--manifests", &manifests, "--hostname-override", "node-a"],
        );
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (text, [field, remedy]) in [
        ("", ["no such file", "check that the file exists"]),
        (
            "fastMode: true",
            ["fastMode: kube-proxy has no such field", "remove it, or write it as in"],
        ),
        ("masqueradeAll: true", ["masqueradeAll", "write iptables.masqueradeAll"]),
        ("mode: userspace", ["mode: \"userspace\"", "one of iptables, ipvs, nftables; write one"]),
        ("nodePortAddresses: [eth0]", ["nodePortAddresses: \"eth0\"", "; write "]),
        ("healthzBindAddress: here:1", ["healthzBindAddress: \"here:1\"", "; "]),
        (
            "iptables: {syncPeriod: 30}",
            ["iptables.syncPeriod: 30 is not a time", "write it as 30s"],
        ),
        ("mode: {", ["line", "write one YAML or JSON document"]),
    ] {
        if !text.is_empty() {
            fs::write(&file, format!("{HEAD}{text}\n")).unwrap();
        }
        let (status, errors) = run();
        assert_eq!(status, Some(1), "{text}: {errors}");
        let last = errors.lines().last().unwrap_or_default();
        assert!(last.starts_with("lb-agent: --config ") && last.contains(&path), "{text}: {last}");
        let is_said = |words: &str| last.to_lowercase().contains(&words.to_lowercase());
        assert!(is_said(field) && is_said(remedy), "{text}: {last}");
    }
    // The agent that runs is none the worse for it.
    let to = stage.address("node-a", Family::V4);
    assert_eq!(
        stage.failure("client", &Request::new(Transport::Tcp, to, 30_080)).errno,
        "ECONNREFUSED"
    );
    assert!(answers(&stage, 10_256, "/healthz"));
}
