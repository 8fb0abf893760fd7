//! What the chart makes for Prometheus and Grafana: nothing unless it is asked for, and then what
//! `deploy/prometheus` and `deploy/grafana` say, as an API server takes it that has the kinds of
//! Prometheus' operator.

use std::fs;

use anyhow::{Context, Result, ensure};
use lb_tests::cluster::confined::{daemon_set, objects};
use lb_tests::cluster::operator_kinds::operator_kinds;
use lb_tests::cluster::reach::eventually;
use lb_tests::cluster::{ApiClient, Persist, chart, without_agents};
use serde_json::{Value, json};

const BASE: [&str; 2] = ["--set", "apiServer.addresses={https://10.0.0.10:6443}"];

fn render(values: &[&str]) -> Result<String> {
    let values = values.iter().flat_map(|value| ["--set", value]);
    let rendered = chart::template(&BASE.into_iter().chain(values).collect::<Vec<_>>())?;
    ensure!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    Ok(String::from_utf8(rendered.stdout)?)
}

fn find(text: &str, kind: &str) -> Result<Value> {
    let found = objects(text)?.into_iter().find(|object| object["kind"] == kind);
    found.with_context(|| format!("no {kind}"))
}

fn deploy(file: &str) -> Result<String> {
    let path = chart::folder().join(file);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

#[test]
fn nothing_is_there_that_was_not_asked_for() -> Result<()> {
    let text = render(&[])?;
    for kind in ["PodMonitor", "PrometheusRule", "ConfigMap"] {
        ensure!(find(&text, kind).is_err(), "a {kind} by default");
    }
    let ports = &daemon_set(&text)?["spec"]["template"]["spec"]["containers"][0]["ports"];
    ensure!(ports.as_array().is_some_and(|ports| ports.len() == 1), "{ports}");
    Ok(())
}

#[test]
fn prometheus_finds_the_agents_at_the_port_that_they_serve() -> Result<()> {
    for (address, port) in [
        ("0.0.0.0:10249", 10_249),
        ("[::]:9100", 9_100),
        ("10.0.0.1", 10_249),
        (":9101", 9_101),
        ("fd00::12", 10_249),
    ] {
        let address = format!("metricsBindAddress={address}");
        let text = render(&[
            "podMonitor.enabled=true",
            "podMonitor.labels.release=prometheus",
            "podMonitor.interval=15s",
            &address,
        ])?;
        let monitor = find(&text, "PodMonitor")?;
        ensure!(monitor["metadata"]["labels"]["release"] == "prometheus", "{monitor}");
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        ensure!(endpoint["interval"] == "15s", "{endpoint}");
        // The rules and the dashboard ask for this job.
        let job = &endpoint["relabelings"][0];
        ensure!(job["targetLabel"] == "job" && job["replacement"] == "lb-agent", "{job}");
        let set = daemon_set(&text)?;
        let selector = &monitor["spec"]["selector"]["matchLabels"];
        let labels = set["spec"]["template"]["metadata"]["labels"].as_object();
        for (name, value) in selector.as_object().context("no selector")? {
            ensure!(labels.is_some_and(|labels| labels.get(name) == Some(value)), "{selector}");
        }
        let ports = set["spec"]["template"]["spec"]["containers"][0]["ports"].as_array();
        let named = ports.into_iter().flatten().find(|one| one["name"] == endpoint["port"]);
        let named = named.context("the container has no port of that name")?;
        ensure!(named["containerPort"] == port, "{address}: {named}");
    }
    Ok(())
}

#[test]
fn an_address_that_prometheus_cant_reach_is_explained() -> Result<()> {
    for address in ["127.0.0.1:10249", "", "[::1]:10249", "::1"] {
        let address = format!("metricsBindAddress={address}");
        let given = ["--set", "podMonitor.enabled=true", "--set", &address];
        let rendered = chart::template(&[&BASE[..], &given].concat())?;
        let said = String::from_utf8_lossy(&rendered.stderr).into_owned();
        ensure!(!rendered.status.success(), "{address} is accepted");
        ensure!(said.contains("--set metricsBindAddress=0.0.0.0:10249"), "{address}: {said}");
    }
    Ok(())
}

#[test]
fn rules_and_dashboard_are_those_of_the_files() -> Result<()> {
    let text = render(&[
        "prometheusRule.enabled=true",
        "prometheusRule.labels.release=prometheus",
        "grafanaDashboard.enabled=true",
        "grafanaDashboard.labels.team=network",
    ])?;
    let rule = find(&text, "PrometheusRule")?;
    let alerts: Value = serde_yaml_ng::from_str(&deploy("prometheus/alerts.yaml")?)?;
    ensure!(rule["spec"] == alerts, "{}", rule["spec"]);
    ensure!(rule["metadata"]["labels"]["release"] == "prometheus", "{}", rule["metadata"]);
    let map = find(&text, "ConfigMap")?;
    let labels = &map["metadata"]["labels"];
    ensure!(labels["grafana_dashboard"] == "1" && labels["team"] == "network", "{labels}");
    let dashboard = map["data"]["lb-agent.json"].as_str().context("no dashboard")?;
    let dashboard: Value = serde_json::from_str(dashboard)?;
    let expected: Value = serde_json::from_str(&deploy("grafana/lb-agent.json")?)?;
    ensure!(dashboard == expected, "the dashboard is another one");
    Ok(())
}

/// Once this returns, objects of them can be applied.
fn add_operator_kinds(api: &ApiClient) -> Result<()> {
    for kind in operator_kinds()? {
        let name = kind["metadata"]["name"].as_str().context("a kind without a name")?.to_owned();
        api.apply_object("", kind, Persist::Yes)?;
        eventually(&format!("{name} can be used"), || {
            let kind = api.get("CustomResourceDefinition", "", &name)?.context("it isn't there")?;
            let conditions = kind.data["status"]["conditions"].as_array().cloned();
            let is_established = |condition: &Value| {
                condition["type"] == "Established" && condition["status"] == "True"
            };
            ensure!(conditions.iter().flatten().any(is_established), "{conditions:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_operators_kinds_have_every_field_that_the_chart_sets() -> Result<()> {
    let text = render(&[
        "metricsBindAddress=0.0.0.0:10249",
        "podMonitor.enabled=true",
        "podMonitor.labels.release=prometheus",
        "podMonitor.interval=15s",
        "prometheusRule.enabled=true",
        "prometheusRule.labels.release=prometheus",
        "grafanaDashboard.enabled=true",
    ])?;
    without_agents(|cluster| {
        let api = cluster.api();
        add_operator_kinds(api)?;
        for kind in ["PodMonitor", "PrometheusRule", "ConfigMap"] {
            let object = find(&text, kind)?;
            api.apply_object("", object.clone(), Persist::DryRun).context("strictly")?;
            api.apply_object("", object, Persist::Yes)?;
        }
        // That a mistake would be seen, in a name and in a value.
        for (kind, path, value) in [
            ("PodMonitor", "/spec/podMetricsEndpoints/0", json!({"prot": "metrics"})),
            ("PodMonitor", "/spec/podMetricsEndpoints/0", json!({"interval": "often"})),
            ("PrometheusRule", "/spec/groups/0/rules/0", json!({"four": "5m"})),
            ("PrometheusRule", "/spec/groups/0/rules/0", json!({"for": "soon"})),
        ] {
            let mut object = find(&text, kind)?;
            let part = object.pointer_mut(path).and_then(Value::as_object_mut);
            let changes = value.as_object().cloned().unwrap_or_default();
            part.with_context(|| format!("{kind} has no {path}"))?.extend(changes);
            let answer = api.apply_object("", object, Persist::DryRun);
            let Err(refusal) = answer else { anyhow::bail!("{kind} with {value} is accepted") };
            let said = format!("{refusal:#}");
            let name = value.as_object().and_then(|fields| fields.keys().next());
            ensure!(name.is_some_and(|name| said.contains(name.as_str())), "{kind}: {said}");
        }
        Ok(())
    })
}

#[test]
fn switches_are_what_yaml_makes_of_on_and_off() -> Result<()> {
    for (given, expected) in [
        ("serviceMetrics=on", "--service-metrics=on"),
        ("serviceMetrics=false", "--service-metrics=off"),
        ("serviceMetrics=20000", "--service-metrics=20000"),
        ("trafficCounters=true", "--traffic-counters=on"),
        ("trafficCounters=off", "--traffic-counters=off"),
    ] {
        let set = daemon_set(&render(&[given])?)?;
        let flags = set["spec"]["template"]["spec"]["containers"][0]["args"].as_array().cloned();
        ensure!(flags.is_some_and(|flags| flags.contains(&expected.into())), "{given}");
    }
    Ok(())
}
