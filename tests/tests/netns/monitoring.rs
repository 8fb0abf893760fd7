//! What Prometheus gets, and what is made of it: promtool judges the page, the alert rules and their
//! tests, and every metric that rules and dashboard use is on the page of a running agent.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lb_common::lb::DropReason;
use lb_lab::{Agent, AgentOptions, Family, METRICS, Options, Request, agent_binary};
use lb_tests::promtool;
use serde_json::Value;

use crate::manifest::Service;
use crate::stage::{Stage, eventually};

/// kube-proxy's names are kept as they are, and with them what promtool says of this one.
const KUBE_PROXYS: &str = "kubeproxy_sync_proxy_rules_no_local_endpoints_total non-counter metrics should not have \"_total\" suffix";
/// Of the Prometheus server itself.
const SERVERS: [&str; 1] = ["up"];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy")
}

fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let program =
        promtool::find().unwrap_or_else(|| panic!("no promtool: run `cargo xtask setup`"));
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(deploy().join("prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Expressions of the alert rules.
fn rules() -> Vec<Value> {
    let text = std::fs::read_to_string(deploy().join("prometheus/alerts.yaml")).unwrap();
    let file: Value = serde_yaml_ng::from_str(&text).unwrap();
    let groups = file["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// Every string under a key of that name.
fn strings<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                found.extend(value.as_str().filter(|_| name == key));
                strings(value, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| strings(item, key, found)),
        _ => {}
    }
}

/// Names of metrics in an expression: words that no quotes hold and that look like ours.
fn metrics(expression: &str) -> BTreeSet<String> {
    let bare: String = expression.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let words = bare.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let prefixes = ["lb_agent_", "kubeproxy_", "process_"];
    let is_metric = |word: &&str| {
        prefixes.iter().any(|prefix| word.starts_with(prefix)) || SERVERS.contains(word)
    };
    words.filter(is_metric).map(str::to_owned).collect()
}

#[test]
fn the_alert_rules_are_well_formed_and_each_has_a_test_that_it_passes() {
    let (passes, said) =
        promtool(&["check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml"], "");
    assert!(passes, "{said}");
    let (passes, said) = promtool(&["test", "rules", "alerts_test.yaml"], "");
    assert!(passes, "{said}");
    let text = std::fs::read_to_string(deploy().join("prometheus/alerts_test.yaml")).unwrap();
    let tests: Value = serde_yaml_ng::from_str(&text).unwrap();
    let cases = tests["tests"].as_array().unwrap().iter();
    let cases: Vec<_> =
        cases.flat_map(|test| test["alert_rule_test"].as_array().unwrap()).collect();
    for rule in rules() {
        let fires = cases.iter().any(|case| {
            case["alertname"] == rule["alert"] && !case["exp_alerts"].as_array().unwrap().is_empty()
        });
        assert!(fires, "no test makes {} fire", rule["alert"]);
        for reason in rule["expr"].as_str().unwrap().split("reason").skip(1) {
            for label in reason.split('"').nth(1).unwrap().split('|') {
                assert!(DropReason::ALL.iter().any(|known| known.label() == label), "{label}");
            }
        }
    }
}

/// That of one that is given an API server, which doesn't answer.
fn page_of_an_agent_that_watches(stage: &mut Stage) -> String {
    stage.stop_agent("node-b");
    let options = AgentOptions {
        manifests: None,
        arguments: ["--master", "http://127.0.0.1:1"].map(str::to_owned).into(),
        ..AgentOptions::manifests(agent_binary().unwrap(), "")
    };
    let _agent = Agent::spawn(stage.lab(), "node-b", &options).unwrap();
    let peer = stage.lab().peer("node-b").unwrap();
    let mut text = String::new();
    eventually("the watches are on the page", || {
        text = peer.get(METRICS, "/metrics").map(|page| page.body).unwrap_or_default();
        text.contains("lb_agent_watch_connected")
    });
    text
}

#[test]
fn the_page_is_clean_and_has_every_metric_that_rules_and_dashboard_use() {
    let mut stage = Stage::up(&Options::default(), &[Service::node_port(1, &["pod-a1", "pod-b1"])]);
    let service = Service::node_port(1, &["pod-a1"]);
    stage.publish(std::slice::from_ref(&service));
    // So that there is traffic to count.
    let request = Request::tcp(stage.address("node-a", Family::V4), service.node_port_number());
    stage.answer("client", &request);
    let page = || stage.lab().peer("node-a").unwrap().get(METRICS, "/metrics").unwrap().body;
    let samples = |page: &str| -> BTreeSet<String> {
        let names = page.lines().filter(|line| !line.starts_with('#'));
        names.filter_map(|line| Some(line.split(['{', ' ']).next()?.to_owned())).collect()
    };
    eventually("flows are counted and attachments told", || {
        let names = samples(&page());
        names.contains("lb_agent_flows") && names.contains("lb_agent_device_attached")
    });
    let text = page();
    let (_, said) = promtool(&["check", "metrics"], &text);
    let unclean: Vec<_> =
        said.lines().filter(|line| !line.is_empty() && *line != KUBE_PROXYS).collect();
    assert!(unclean.is_empty(), "{unclean:#?}");

    let dashboard = std::fs::read_to_string(deploy().join("grafana/lb-agent.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let rules = rules();
    let mut expressions = Vec::new();
    strings(&dashboard, "expr", &mut expressions);
    strings(&dashboard["templating"], "query", &mut expressions);
    let panels = expressions.len();
    assert!(panels > 20, "{panels} expressions in the dashboard");
    expressions.extend(rules.iter().filter_map(|rule| rule["expr"].as_str()));
    let mut present = samples(&text);
    present.extend(samples(&page_of_an_agent_that_watches(&mut stage)));
    present.extend(SERVERS.map(str::to_owned));
    // Only slices of a controller carry times; a unit test of the agent holds this name.
    let late = "kubeproxy_network_programming_duration_seconds_bucket".to_owned();
    for expression in expressions {
        let used = metrics(expression);
        assert!(!used.is_empty() || expression == "prometheus", "{expression}");
        for name in used {
            let is_known = present.contains(&name) || name == late;
            assert!(is_known, "{name} of {expression} is not on the page");
        }
    }
}
