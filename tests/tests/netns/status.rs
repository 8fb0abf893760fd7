//! `lb-agent status`: what an operator sees of a node, with its agent and without, and what scripts get.

use std::process::Output;

use lb_lab::Options;
use serde_json::Value;

use crate::manifest::Service;
use crate::stage::{Stage, eventually};

fn look(stage: &Stage, format: &str) -> Output {
    stage.agent_output("node-a", &["status", "-o", format])
}

/// Exit status and JSON.
fn status(stage: &Stage) -> (i32, Value) {
    let output = look(stage, "json");
    let text = String::from_utf8_lossy(&output.stdout);
    let value = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr))
    });
    (output.status.code().unwrap(), value)
}

fn problems(status: &Value) -> Vec<&str> {
    status["problems"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

fn map<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["maps"].as_array().unwrap().iter().find(|map| map["map"] == name).unwrap()
}

#[test]
fn a_node_is_seen_with_its_agent_without_it_and_without_anything() {
    let mut stage = Stage::up(&Options::default(), &[Service::node_port(1, &["pod-a1", "pod-b1"])]);
    stage.publish(&[Service::node_port(1, &["pod-a1"])]);
    // Attachments and latencies are told within a second.
    eventually("all is well", || status(&stage).0 == 0);
    let (_, running) = status(&stage);
    assert_eq!(
        (&running["state"], problems(&running).len()),
        (&Value::from("ok"), 0),
        "{running:#}"
    );
    assert_eq!(running["agent"]["node"], "node-a");
    assert_eq!(running["versions"]["agent"], running["versions"]["command"]);
    assert_eq!(running["sockets"]["attached"], 9);
    let cgroup = stage.lab().cgroup("node-a").unwrap();
    assert_eq!(running["sockets"]["cgroup"], cgroup.display().to_string());
    let eth0 = &running["devices"][0];
    assert_eq!([&eth0["device"], &eth0["role"], &eth0["xdp"]], ["eth0", "external", "off"]);
    assert!(eth0["tc"] == "tcx" || eth0["tc"] == "filter", "{eth0}");
    for probe in running["probes"].as_array().unwrap() {
        assert_eq!(probe["status"], 200, "{probe}");
    }
    // Two ports in two families.
    assert_eq!(map(&running, "services")["entries"], 4);
    assert_eq!(map(&running, "backends")["entries"], 4);
    assert_eq!(map(&running, "flows4")["max_entries"], 16_384);
    assert!(map(&running, "flows4")["memory_bytes"].as_u64().unwrap() > 1_000_000);
    assert!(running["programming"]["p99_seconds"].as_f64().unwrap() > 0.0, "{running:#}");
    let screen = String::from_utf8(look(&stage, "table").stdout).unwrap();
    for word in ["STATE", "PROBE", "ATTACHED TO", "9 of 9 hooks", "MAP", "DROPPED", "manifests in"]
    {
        assert!(screen.contains(word), "{word} in\n{screen}");
    }
    let yaml = String::from_utf8(look(&stage, "yaml").stdout).unwrap();
    assert!(yaml.starts_with("state: ok\n"), "{yaml}");

    stage.stop_agent("node-a");
    let (exit, stopped) = status(&stage);
    assert_eq!((exit, &stopped["state"]), (3, &Value::from("degraded")));
    assert!(problems(&stopped)[0].starts_with("no agent runs"), "{stopped:#}");
    assert_eq!(problems(&stopped).len(), 1, "what is attached stays: {stopped:#}");
    for key in ["sockets", "maps"] {
        assert_eq!(stopped[key], running[key], "{key}");
    }
    assert_eq!(stopped["devices"][0]["tc"], running["devices"][0]["tc"]);

    let removed = stage.agent_says("node-a", &["cleanup"]);
    assert!(removed.starts_with("removed "), "{removed}");
    let (exit, nothing) = status(&stage);
    assert_eq!((exit, &nothing["state"]), (4, &Value::from("absent")), "{nothing:#}");
}

#[test]
fn a_program_that_somebody_detached_and_ports_that_do_not_answer_are_named() {
    let stage = Stage::up(&Options::default(), &[Service::node_port(1, &["pod-a1"])]);
    let links = format!("lb/v{}/links", lb_common::abi::VERSION);
    let links = stage.lab().bpffs("node-a").join(links);
    let mut pins = std::fs::read_dir(&links).unwrap().flatten().map(|entry| entry.path());
    let ingress = pins.find(|pin| pin.to_string_lossy().contains("tcx_ingress_")).unwrap();
    std::fs::remove_file(&ingress).unwrap();
    let (exit, half) = status(&stage);
    assert_eq!(exit, 3);
    assert!(problems(&half).iter().any(|text| text.contains("device eth0")), "{half:#}");
    let elsewhere =
        ["status", "--metrics-bind-address", "127.0.0.1:1", "--healthz-bind-address", ""];
    let output = stage.agent_output("node-a", &elsewhere);
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("can't be asked (http://127.0.0.1:1/status"), "{text}");
}
