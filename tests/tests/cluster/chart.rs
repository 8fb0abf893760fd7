//! The Helm chart by itself: what it refuses, and that the plain manifests of `deploy/` are made from it.

use std::fs;

use anyhow::{Context, Result, ensure};
use lb_tests::cluster::chart;
use lb_tests::cluster::confined::daemon_set;
use serde_json::Value;

const ADDRESS: [&str; 2] = ["--set", "apiServer.addresses={https://10.0.0.10:6443}"];

#[test]
fn the_plain_manifests_are_what_the_chart_makes() -> Result<()> {
    for (file, made) in chart::manifests()? {
        let path = chart::folder().join(file);
        let present =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        ensure!(present == made, "deploy/{file} is old: run `cargo xtask manifests`");
    }
    Ok(())
}

#[test]
fn helm_finds_nothing_to_complain_about() -> Result<()> {
    let linted = chart::helm(&[&["lint", "--strict", "chart"], &ADDRESS[..]].concat())?;
    let said = String::from_utf8_lossy(&linted.stdout).into_owned();
    ensure!(linted.status.success(), "{said}\n{}", String::from_utf8_lossy(&linted.stderr));
    Ok(())
}

#[test]
fn values_become_the_agents_flags() -> Result<()> {
    let given = [
        "apiServer.addresses={https://10.0.0.10:6443,https://[fd00::1]:6443/prefix}",
        "devices={eth0,bond*}",
        "podPath=packet",
        "masqueradeAll=true",
        "podDevices={veth*,lxc1}",
        "nodePortAddresses={10.0.0.0/8,fd00::/8}",
        "clusterCIDRs={10.244.0.0/16}",
        "tables.flows=4194304",
        "tables.sourceRanges=100000",
        "tables.traffic=65536",
        "host.netnsDirs={/run/netns}",
        "xdp=off",
        "healthzPort=11256",
        "image.tag=v9",
        "maxUnavailable=10%",
    ];
    let arguments: Vec<_> = given.iter().flat_map(|value| ["--set", value]).collect();
    let rendered = chart::template(&arguments)?;
    ensure!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let object = daemon_set(&String::from_utf8(rendered.stdout)?)?;
    let container = &object["spec"]["template"]["spec"]["containers"][0];
    let flags: Vec<_> =
        container["args"].as_array().context("no args")?.iter().filter_map(Value::as_str).collect();
    for flag in [
        "--master=https://10.0.0.10:6443,https://[fd00::1]:6443/prefix",
        "--devices=eth0,bond*",
        "--pod-path=packet",
        "--masquerade-all",
        "--pod-devices=veth*,lxc1",
        "--nodeport-addresses=10.0.0.0/8,fd00::/8",
        "--cluster-cidr=10.244.0.0/16",
        "--max-flows=4194304",
        "--max-source-ranges=100000",
        "--max-traffic=65536",
        "--netns-dirs=/host/netns-0",
        "--xdp=off",
    ] {
        ensure!(flags.contains(&flag), "{flag} is not among {flags:?}");
    }
    let variable = |name: &str| {
        let env = container["env"].as_array().into_iter().flatten();
        env.filter(|variable| variable["name"] == name)
            .map(|variable| variable["value"].clone())
            .next()
    };
    ensure!(variable("LB_HEALTHZ_BIND_ADDRESS") == Some("0.0.0.0:11256".into()));
    ensure!(variable("LB_METRICS_BIND_ADDRESS") == Some("127.0.0.1:10249".into()));
    ensure!(container["image"] == "localhost/lb-agent:v9", "{}", container["image"]);
    ensure!(container["ports"][0]["containerPort"] == 11256, "{}", container["ports"]);
    let update = &object["spec"]["updateStrategy"]["rollingUpdate"];
    ensure!(update["maxUnavailable"] == "10%" && update["maxSurge"] == 0, "{update}");
    // The agent itself must understand what the chart writes.
    let words = ["lb-agent"].iter().chain(&flags);
    let parsed = <lb_agent::args::Args as clap::Parser>::try_parse_from(words)?;
    let lb_agent::args::Command::Run(run) = parsed.command else {
        anyhow::bail!("the chart doesn't run the agent")
    };
    lb_agent::config::Config::new(*run, "node-a")?;
    Ok(())
}

#[test]
fn kube_proxys_config_map_is_mounted_where_its_own_kubeconfig_path_leads() -> Result<()> {
    let given = [&ADDRESS[..], &["--set", "kubeProxyConfigMap=kube-proxy"]].concat();
    let rendered = chart::template(&given)?;
    ensure!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let object = daemon_set(&String::from_utf8(rendered.stdout)?)?;
    let pod = &object["spec"]["template"]["spec"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let container = &pod["containers"][0];
    ensure!(list(&container["args"]).contains(&"--config=/var/lib/kube-proxy/config.conf".into()));
    let named = |value: &Value| list(value).into_iter().find(|one| one["name"] == "kube-proxy");
    let mount = named(&container["volumeMounts"]).context("no mount")?;
    ensure!(mount["mountPath"] == "/var/lib/kube-proxy", "{mount}");
    let volume = named(&pod["volumes"]).context("no volume")?;
    ensure!(volume["configMap"]["name"] == "kube-proxy", "{volume}");
    Ok(())
}

#[test]
fn nonsense_is_refused_with_the_values_name() -> Result<()> {
    for (value, name) in [
        ("apiServer.addresses=null", "apiServer"),
        ("apiServer.addresses={10.0.0.10:6443}", "addresses"),
        ("apiServer.addresses={https://kubernetes.default.svc}", "addresses"),
        ("apiServer.addresses={https://localhost:6443}", "addresses"),
        ("apiServer.addresses={https://a.example b.example}", "addresses"),
        ("apiServer.adresses={https://10.0.0.10:6443}", "adresses"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.repository=Not/A:Name ", "repository"),
        ("kubeProxyConfigMap=Kube/Proxy", "kubeProxyConfigMap"),
        ("devices={eth0/1}", "devices"),
        ("devices={a-name-that-is-too-long}", "devices"),
        ("nodePortAddresses={primary,10.0.0.0/8}", "nodePortAddresses"),
        ("clusterCIDRs={10.244.0.0}", "clusterCIDRs"),
        ("podPath=pods", "podPath"),
        ("masqueradeAll=true", "podPath=packet"),
        ("masqueradeAll=some", "masqueradeAll"),
        ("podDevices={veth/1}", "podDevices"),
        ("xdp=maybe", "xdp"),
        ("tables.flows=many", "flows"),
        ("tables.floes=1024", "floes"),
        ("trafficCounters=maybe", "trafficCounters"),
        ("serviceMetrics=many", "serviceMetrics"),
        ("serviceMetrics=0", "serviceMetrics"),
        ("podMonitor.interval=often", "interval"),
        ("podMonitor.port=1", "port"),
        ("prometheusRule.enabled=perhaps", "enabled"),
        ("grafanaDashboard.labels.grafana_dashboard=1", "grafana_dashboard"),
        ("healthzPort=65536", "healthzPort"),
        ("log.format=xml", "format"),
        ("host.bpffs=sys/fs/bpf", "bpffs"),
        ("host.cgroup=/sys/../etc", "cgroup"),
        ("maxUnavailable=0", "maxUnavailable"),
        ("maxUnavailable=0%", "maxUnavailable"),
        ("cleanupOnUninstall=perhaps", "cleanupOnUninstall"),
        ("privileged=true", "privileged"),
    ] {
        let rendered = chart::template(&[&ADDRESS[..], &["--set", value]].concat())?;
        let said = String::from_utf8_lossy(&rendered.stderr).into_owned();
        ensure!(!rendered.status.success(), "{value} is accepted");
        ensure!(said.contains(name), "{value}: {said}");
    }
    Ok(())
}

#[test]
fn a_missing_address_of_the_api_server_is_explained() -> Result<()> {
    let rendered = chart::template(&[])?;
    let said = String::from_utf8_lossy(&rendered.stderr).into_owned();
    ensure!(!rendered.status.success(), "accepted");
    ensure!(said.contains("apiServer.addresses is empty") && said.contains("--set"), "{said}");
    Ok(())
}
