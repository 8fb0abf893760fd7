//! The lab itself: everything that tests of the load balancer take for granted about the network.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what a test's own function meets is a finding"
)]

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use lb_lab::{
    Cni, EXTERNAL_IP, Family, LOAD_BALANCER, Lab, Load, Options, PodNetwork, Request, ReversePath,
    SITE, Transport, histogram,
};

const PORT: u16 = 8080;

fn address(lab: &Lab, host: &str, family: Family) -> IpAddr {
    lab.host(host).unwrap().address.of(family)
}

fn serve_everywhere(lab: &Lab, hosts: &[&str]) {
    for host in hosts {
        for transport in Transport::BOTH {
            lab.peer(host).unwrap().serve(transport, "::".parse().unwrap(), PORT).unwrap();
        }
    }
}

/// One request over each family and transport, with `payload` bytes both ways where TCP.
fn assert_reaches(lab: &Lab, from: &str, to: &str, payload: u32) {
    for family in Family::BOTH {
        for transport in Transport::BOTH {
            let bytes = if transport == Transport::Tcp { payload } else { 1000 };
            let request = Request::new(transport, address(lab, to, family), PORT)
                .payloads(bytes, bytes)
                .patience(Duration::from_secs(5));
            let outcome = lab.peer(from).unwrap().ask(&request).unwrap();
            let answer = outcome
                .unwrap_or_else(|failure| panic!("{from} → {to}, {family} {transport}: {failure}"));
            assert_eq!(answer.server, to, "{family} {transport}");
            assert!(answer.intact, "{from} → {to}, {family} {transport}");
        }
    }
}

#[test]
fn hosts_reach_each_other_over_both_families_and_transports_in_every_variant() {
    let base = Options::default();
    let variants = [
        ("plain", base.clone()),
        ("bridge", Options { cni: Cni::Bridge, reverse_path: ReversePath::Off, ..base.clone() }),
        ("masquerade", Options { masquerade: true, ..base.clone() }),
        ("overlay", Options { pod_network: PodNetwork::Vxlan, masquerade: true, ..base.clone() }),
        (
            "overlay on bridges",
            Options {
                pod_network: PodNetwork::Vxlan,
                cni: Cni::Bridge,
                reverse_path: ReversePath::Off,
                ..base.clone()
            },
        ),
        ("tunnel", Options { pod_network: PodNetwork::Tunnel, masquerade: true, ..base.clone() }),
        ("small path MTU", Options { client_path_mtu: Some(1300), ..base.clone() }),
        ("full checksums", Options { checksum_offload: false, ..base }),
    ];
    for (name, options) in variants {
        let start = Instant::now();
        let lab = Lab::up(&options).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let up = start.elapsed();
        serve_everywhere(&lab, &["pod-a1", "pod-a2", "pod-b1", "node-a", "node-b", "site"]);
        for (from, to) in [
            ("pod-a1", "pod-a2"),
            ("pod-a1", "pod-b1"),
            ("pod-a1", "node-a"),
            ("pod-a1", "node-b"),
            ("pod-b2", "site"),
            ("node-a", "pod-a1"),
            ("node-a", "pod-b1"),
            ("node-a", "site"),
            ("client", "node-a"),
            ("client", "node-b"),
            ("client", "site"),
        ] {
            assert_reaches(&lab, from, to, 100_000);
        }
        let checked = start.elapsed() - up;
        lab.down().unwrap_or_else(|error| panic!("{name}: {error:#}"));
        println!("{name}: up in {up:?}, checked in {checked:?}");
    }
}

#[test]
fn nothing_is_left_after_a_lab_was_dropped() {
    let lab = Lab::up(&Options::default()).unwrap();
    serve_everywhere(&lab, &["pod-a1", "client"]);
    let mut stray = lab.daemon("node-a", "sleep").unwrap().arg("1000").spawn().unwrap();
    let id = lab.id().to_owned();
    let cgroup = lab.cgroup("node-a").unwrap().parent().unwrap().to_owned();
    assert!(lab.bpffs("node-a").exists() && cgroup.exists());
    drop(lab);
    assert!(stray.wait().unwrap().code().is_none(), "the process must have been killed");
    assert!(!cgroup.exists());
    for place in ["/run/netns", "/run/lb-lab"] {
        let names = fs::read_dir(place).unwrap().flatten();
        let left: Vec<_> = names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name == &id || name.starts_with(&format!("lblab-{id}-")))
            .collect();
        assert!(left.is_empty(), "{place}: {left:?}");
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&format!("/run/lb-lab/{id}/")), "{mounts}");
}

#[test]
fn labs_side_by_side_do_not_see_each_other() {
    let (one, other) = (Lab::up(&Options::default()), Lab::up(&Options::default()));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_ne!(one.id(), other.id());
    serve_everywhere(&one, &["node-a"]);
    assert_reaches(&one, "client", "node-a", 0);
    let request = Request::tcp(address(&other, "node-a", Family::V4), PORT);
    let outcome = other.peer("client").unwrap().ask(&request).unwrap();
    assert_eq!(outcome.unwrap_err().errno, "ECONNREFUSED");
}

#[test]
fn pods_keep_their_address_or_are_masqueraded_as_chosen() {
    for (masquerade, expected) in [(false, "pod-a1"), (true, "node-a")] {
        let lab = Lab::up(&Options { masquerade, ..Options::default() }).unwrap();
        serve_everywhere(&lab, &["site", "pod-b1"]);
        for family in Family::BOTH {
            let ask = |to: IpAddr| {
                lab.peer("pod-a1").unwrap().ask(&Request::tcp(to, PORT)).unwrap().unwrap().seen.ip()
            };
            assert_eq!(ask(SITE.of(family)), address(&lab, expected, family), "{family}");
            let pod = ask(address(&lab, "pod-b1", family));
            assert_eq!(pod, address(&lab, "pod-a1", family), "never between pods");
        }
    }
}

#[test]
fn only_icmp_tells_of_a_small_path_mtu() {
    let lab = Lab::up(&Options { client_path_mtu: Some(1300), ..Options::default() }).unwrap();
    serve_everywhere(&lab, &["node-a"]);
    let devices = lab.exec("client", &["ip", "-o", "link", "show", "eth0"]).unwrap();
    assert!(String::from_utf8_lossy(&devices.stdout).contains("mtu 1500"));
    assert_reaches(&lab, "client", "node-a", 50_000);
    // Once large packets have run, the server's kernel must have learnt the smaller value.
    for (family, flag) in [(Family::V4, "-4"), (Family::V6, "-6")] {
        let client = address(&lab, "client", family).to_string();
        let route = lab.exec("node-a", &["ip", flag, "route", "get", &client]).unwrap();
        let text = String::from_utf8_lossy(&route.stdout).into_owned();
        assert!(text.contains("mtu 1300"), "{family}: {text}");
    }
}

#[test]
fn service_addresses_are_routed_from_the_client_to_a_node() {
    let lab = Lab::up(&Options::default()).unwrap();
    for family in Family::BOTH {
        for (address, via) in [(LOAD_BALANCER, "node-a"), (EXTERNAL_IP, "node-b")] {
            let to = address.of(family).to_string();
            let route = lab.exec("client", &["ip", "route", "get", &to]).unwrap();
            let text = String::from_utf8_lossy(&route.stdout).into_owned();
            let gateway = lab.host(via).unwrap().address.of(family);
            assert!(text.contains(&format!("via {gateway} ")), "{text}");
        }
    }
}

#[test]
fn a_command_runs_in_its_hosts_namespace_cgroup_and_name() {
    let lab = Lab::up(&Options::default()).unwrap();
    let output = lab.exec("pod-b1", &["sh", "-c", "hostname; cat /proc/self/cgroup"]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("pod-b1\n"), "{text}");
    let cgroup = format!("0::/lb-lab-{}/node-b/pods/pod-b1", lab.id());
    assert!(text.lines().any(|line| line.ends_with(&cgroup)), "{text}");
    // The mounts that `ip netns exec` would hide.
    let listing = lab.exec("node-a", &["ls", lab.bpffs("node-a").to_str().unwrap()]).unwrap();
    assert!(listing.status.success());
    assert!(Path::new("/sys/fs/cgroup").exists());
}

#[test]
fn two_removals_at_once_do_not_trip_over_each_other() {
    let lab = Lab::up(&Options::default()).unwrap();
    let id = lab.id().to_owned();
    let other = std::thread::spawn(move || Lab::clean(&id));
    lab.down().unwrap();
    other.join().unwrap().unwrap();
}

#[test]
fn a_kept_lab_goes_on_without_its_owner_until_it_is_cleaned() {
    let lab = Lab::up(&Options::default()).unwrap();
    serve_everywhere(&lab, &["pod-b1"]);
    let id = lab.id().to_owned();
    lab.keep().unwrap();
    let again = Lab::attach(&id).unwrap();
    assert_reaches(&again, "pod-a1", "pod-b1", 0);
    drop(again);
    assert!(Lab::list().contains(&id), "an attached lab is not removed with its handle");
    Lab::clean(&id).unwrap();
    assert!(!Lab::list().contains(&id));
    assert!(Lab::attach(&id).is_err());
}

#[test]
fn a_request_reports_every_address_and_error_that_the_application_sees() {
    let lab = Lab::up(&Options::default()).unwrap();
    serve_everywhere(&lab, &["pod-b1"]);
    let server = lab.peer("pod-b1").unwrap();
    let client = lab.peer("pod-a1").unwrap();
    let v4 = address(&lab, "pod-b1", Family::V4);
    let to = SocketAddr::new(v4, PORT);
    let mapped: SocketAddr = "[::ffff:10.244.2.11]:8080".parse().unwrap();
    let ask = |request: &Request| client.ask(request).unwrap();

    let answer = ask(&Request::tcp(v4, PORT).from_port(4242)).unwrap();
    assert_eq!(answer.peer_name, Some(to));
    assert_eq!(answer.local, SocketAddr::new(address(&lab, "pod-a1", Family::V4), 4242));
    assert_eq!(answer.seen, answer.local);
    assert_eq!(ask(&Request::tcp(v4, PORT).mapped()).unwrap().peer_name, Some(mapped));

    let answer = ask(&Request::udp(v4, PORT)).unwrap();
    assert_eq!((answer.peer_name, answer.received_from), (None, Some(to)));
    let answer = ask(&Request::udp(v4, PORT).connected()).unwrap();
    assert_eq!((answer.peer_name, answer.received_from), (Some(to), Some(to)));
    let answer = ask(&Request::udp(v4, PORT).mapped()).unwrap();
    assert_eq!(answer.received_from, Some(mapped));

    for transport in Transport::BOTH {
        let kept = Request::new(transport, v4, PORT).keep("one").times(3);
        let outcomes = client.request(&kept).unwrap();
        let ports: Vec<_> = outcomes.iter().flatten().map(|answer| answer.seen.port()).collect();
        assert_eq!(ports.len(), 3);
        assert!(ports.iter().all(|port| Some(port) == ports.first()), "one socket: {ports:?}");
        client.forget("one").unwrap();
    }

    let refused = ask(&Request::tcp(v4, 9)).unwrap_err();
    assert_eq!((refused.call.as_str(), refused.errno.as_str()), ("connect", "ECONNREFUSED"));
    let refused = ask(&Request::udp(v4, 9).connected()).unwrap_err();
    assert_eq!((refused.call.as_str(), refused.errno.as_str()), ("receive", "ECONNREFUSED"));
    let silent = "203.0.113.77".parse().unwrap();
    let patience = Duration::from_millis(100);
    let timeout = ask(&Request::tcp(silent, 9).patience(patience)).unwrap_err();
    assert_eq!((timeout.call.as_str(), timeout.errno.as_str()), ("connect", "ETIMEDOUT"));

    let number = server.serve(Transport::Tcp, v4, 9000).unwrap();
    assert!(ask(&Request::tcp(v4, 9000)).is_ok());
    server.stop_server(number).unwrap();
    assert_eq!(ask(&Request::tcp(v4, 9000)).unwrap_err().errno, "ECONNREFUSED");

    let page = client.get(to, "/").unwrap();
    assert!(page.body.starts_with("pod-b1 sees you as 10.244.1.11:"), "{page:?}");

    let many = client.request(&Request::tcp(v4, PORT).times(20)).unwrap();
    assert_eq!(histogram(&many), BTreeMap::from([("pod-b1".to_owned(), 20)]));
}

#[test]
fn a_load_counts_answers_and_failures() {
    let lab = Lab::up(&Options::default()).unwrap();
    let server = lab.peer("pod-b1").unwrap();
    let v6 = address(&lab, "pod-b1", Family::V6);
    let number = server.serve(Transport::Tcp, v6, PORT).unwrap();
    let client = lab.peer("client").unwrap();
    for persistent in [false, true] {
        let load = Load { workers: 2, persistent, ..Load::new(Request::tcp(v6, PORT)) };
        let load = client.start_load(load).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(client.read_load(load).unwrap().ok > 0);
        let report = client.stop_load(load).unwrap();
        assert_eq!(report.failed, 0, "{report:?}");
        assert_eq!(report.servers.get("pod-b1"), Some(&report.ok));
    }
    let load = client.start_load(Load::new(Request::tcp(v6, PORT))).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    server.stop_server(number).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let report = client.stop_load(load).unwrap();
    assert!(report.ok > 0 && report.errors.contains_key("connect: ECONNREFUSED"), "{report:?}");
}
