//! `lb-agent doctor` on a node on which one thing after another is broken: it names each, and nothing
//! else, and its remedies heal. Before any agent was there and after it died it says what it can.

mod maps;
mod network;
pub mod report;

use std::fs;

use lb_agent::bpf::pins::Pins;
use lb_lab::{Lab, Options, agent_binary};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::manifest::Service;
use crate::stage::Stage;
use report::{NODE, Report, broken, in_order};

fn services() -> [Service; 2] {
    [Service::new(1, &["pod-a1", "pod-b1"]), Service::node_port(2, &["pod-b1"])]
}

#[test]
fn attachments_and_agents_that_are_gone_are_named_and_a_start_brings_them_back() {
    let mut stage = Stage::up(&Options::default(), &services());
    in_order(&stage, "the node as it is");
    assert_eq!(Report::of_running(&stage).of_check("flags").len(), 1, "told by the agent");
    Report::with_flags(&stage, &[]).expect("with flags", &[]);
    // As on the node of an agent that runs in a container: its files are others.
    let mut command = stage.lab().command(NODE, "unshare").unwrap();
    command.arg("--mount").arg(agent_binary().unwrap()).args(["doctor", "-o", "json"]);
    let output = command.arg("--bpffs").arg(stage.lab().bpffs(NODE)).output().unwrap();
    let elsewhere = Report::of(&output);
    let flags = elsewhere.of_check("flags");
    assert_eq!(flags[0]["severity"], "warning", "{elsewhere:?}");
    assert_eq!(elsewhere.of_check("services")[0]["severity"], "warning", "{elsewhere:?}");

    let links = Pins::at(&stage.lab().bpffs(NODE)).links();
    let pin = |start: &str| {
        let mut pins = fs::read_dir(&links).unwrap().flatten().map(|entry| entry.path());
        pins.find(|pin| pin.file_name().unwrap().to_string_lossy().starts_with(start)).unwrap()
    };
    // Who removes the pin of a link detaches its program.
    let mut due = Vec::new();
    for (start, words) in [
        ("cgroup_connect4", "connect4"),
        ("cgroup_release", "release"),
        ("tcx_ingress_", "eth0: no program for what comes in"),
        ("tcx_egress_", "eth0: no program for what comes out"),
    ] {
        fs::remove_file(pin(start)).unwrap();
        due.push(("error", "attachments", words));
        Report::of_running(&stage).expect(start, &due);
    }
    stage.stop_agent(NODE);
    stage.start_agent(NODE);
    in_order(&stage, "started again");
    let other = stage.lab().bpffs(NODE).join("lb/v1");
    broken(
        &stage,
        "pins of another version",
        || fs::create_dir(&other).unwrap(),
        &[("warning", "attachments", "another version is pinned at")],
        |_| fs::remove_dir(&other).unwrap(),
    );

    stage.kill_agent(NODE);
    let dead = ("error", "agent", "no agent works with the datapath");
    Report::with_flags(&stage, &[]).expect("killed", &[dead]);
    // Without any source that is said, and the rest is judged all the same.
    let cgroup = stage.lab().cgroup(NODE).unwrap().display().to_string();
    let flags = ["--devices", "eth0", "--cgroup-root", &cgroup];
    let unknown = ("warning", "services", "no API server is known");
    Report::with(stage.lab(), &flags).expect("no source", &[dead, unknown]);
    // What came meanwhile isn't in the maps.
    stage.write_services(&[Service::new(1, &["pod-a1"]), Service::node_port(3, &["pod-b1"])]);
    let address = stage.address("pod-b1", lb_lab::Family::V4);
    let backend = format!("too much backend {address}:8080");
    Report::with_flags(&stage, &[]).expect(
        "changed meanwhile",
        &[
            dead,
            ("error", "services", &backend),
            ("error", "services", "default/s1:"),
            ("error", "services", "default/s2:web (TCP, IPv4) is in the maps, and no Service"),
            ("error", "services", "default/s2:"),
            ("error", "services", "default/s3:echo (UDP, IPv6) is missing in the maps"),
            ("error", "services", "default/s3:"),
        ],
    );
    stage.start_agent(NODE);
    in_order(&stage, "started after a kill");

    // Where no agent's pins are.
    let elsewhere = stage.lab().directory().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let none = [("error", "attachments", "no datapath"), ("error", "agent", "no agent runs here")];
    let bpffs = elsewhere.display().to_string();
    let missing = ("error", "mounts", "no BPF file system on");
    let wrong = Report::with_flags(&stage, &["--bpffs", &bpffs]);
    wrong.expect("the wrong --bpffs", &[none[0], none[1], missing]);
    let wrong = Report::with_flags(&stage, &["--bpffs", "/no/such/directory"]);
    let missing = ("error", "mounts", "/no/such/directory");
    wrong.expect("no such --bpffs", &[none[0], none[1], missing]);

    stage.stop_agent(NODE);
    stage.agent_says(NODE, &["cleanup"]);
    Report::with_flags(&stage, &[]).expect("cleaned up", &none);
    let bpffs = stage.lab().bpffs(NODE);
    umount2(&bpffs, MntFlags::MNT_DETACH).unwrap();
    let report = Report::with_flags(&stage, &[]);
    // The lab's own, which it is to remove.
    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    let missing = ("error", "mounts", "no BPF file system on");
    report.expect("unmounted", &[none[0], none[1], missing]);
}

#[test]
fn a_machine_that_never_had_an_agent_is_examined_and_nothing_is_left_there() {
    let lab = Lab::up(&Options { pods_per_node: 0, nodes: 1, ..Options::default() }).unwrap();
    let none = [("error", "attachments", "no datapath"), ("error", "agent", "no agent runs here")];
    let unknown = ("warning", "services", "no API server is known");
    let report = Report::with(&lab, &[]);
    report.expect("a clean machine", &[none[0], none[1], unknown]);
    let text = |check| report.of_check(check)[0]["finding"].as_str().unwrap().to_owned();
    assert!(text("programs").starts_with("the verifier takes all"), "{}", text("programs"));
    assert_eq!(text("devices"), "external: eth0");
    let left = fs::read_dir(lab.bpffs(NODE)).unwrap().flatten();
    let left: Vec<_> =
        left.filter(|it| !it.path().display().to_string().ends_with(".debug")).collect();
    assert!(left.is_empty(), "{left:?}");

    // With what an operator would give the agent: what the file means is told before it is started.
    let manifests = lab.directory().display().to_string();
    let report = Report::with(&lab, &["--manifests", &manifests]);
    report.expect("with manifests", &none);
    for family in ["-4", "-6"] {
        let gone = lab.exec(NODE, &["ip", family, "route", "del", "default"]).unwrap();
        assert!(gone.status.success(), "{gone:?}");
    }
    let report = Report::with(&lab, &["--manifests", &manifests]);
    report.expect("no way out", &[none[0], none[1], ("error", "devices", "no external device")]);

    // Somebody who may not look is told so.
    let mut command = lab.command(NODE, "setpriv").unwrap();
    command.args(["--reuid=65534", "--clear-groups", "--no-new-privs"]);
    command.arg(agent_binary().unwrap()).args(["doctor", "-o", "json"]);
    let output = command.arg("--bpffs").arg(lab.bpffs(NODE)).output().unwrap();
    let report = Report::of(&output);
    let finding = report.of_check("capabilities")[0];
    assert_eq!(finding["severity"], "error", "{finding}");
    assert!(finding["finding"].as_str().unwrap().contains("lacks NET_ADMIN, BPF"), "{finding}");
}
