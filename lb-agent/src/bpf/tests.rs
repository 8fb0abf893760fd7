//! The whole of `bpf` on the running kernel, as root: in a BPF file system, a cgroup and a network
//! namespace of the test's own, all of which vanish with it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use lb_common::abi::{
    Address, Backend, BackendFlags, BackendIndex, Device as AbiDevice, DropKey, Flow, FlowFlags,
    FlowKey, Frontend, FrontendKey, FrontendKind, Region, ReverseKey, ReverseValue, ServiceFlags,
    ServiceIndex, ServiceName, ServicePointer, ServiceRecord, SourceRange, SourceSet, Traffic,
    TrafficKey,
};
use lb_common::bytes::Be16;
use lb_common::family::{Addr4, V4};
use lb_common::lb::DropReason;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

use super::devices::{TcAttachment, XdpAttachment};
use super::expiry::Pass;
use super::hash::{CounterHash, Hash};
use super::sys::{self, LinkInfo};
use super::*;
use crate::args::{PodPath, Switch, XdpMode};
use crate::cluster::snapshot::Protocol;
use crate::config::Capacities;
use crate::node::cgroup::cgroup_root;
use crate::node::facts::Role;
use crate::plan::desired::FrontendKind as RowKind;
use crate::run::datapath::{ConnectedSocket, SocketOwner, Translations as _};
use crate::serve::collect::KernelCounters as _;
use crate::tables::encode;
use crate::tables::store::{Store as _, StoreError, Table};

/// A place for one test; everything in it ends with it.
struct Place {
    directory: tempfile::TempDir,
    cgroup: PathBuf,
}

impl Place {
    fn new() -> Self {
        // Mounts and devices of this thread only: they vanish with the thread, come what may.
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let directory = tempfile::Builder::new().prefix("lb-bpf-").tempdir().unwrap();
        let name = directory.path().file_name().unwrap();
        let cgroup = cgroup_root(None).unwrap().join(name);
        std::fs::create_dir(&cgroup).unwrap();
        Self { directory, cgroup }
    }

    fn bpffs(&self) -> &Path {
        self.directory.path()
    }

    fn setup(&self) -> Setup {
        Setup {
            bpffs: self.bpffs().to_owned(),
            cgroup_root: self.cgroup.clone(),
            netns_cookie: crate::node::namespace::netns_cookie().unwrap(),
            xdp: XdpMode::Auto,
            pod_path: PodPath::Socket,
            masquerade_all: false,
            traffic_counters: Switch::On,
            snat_ports: 1024..=29_999,
            cluster_cidrs: Vec::new(),
            capacities: Capacities {
                services: 64,
                backends: 256,
                slots: 1_024,
                source_ranges: 8,
                flows: 512,
                traffic: 64,
            },
        }
    }

    fn link(&self, name: &str) -> LinkInfo {
        let pin = Pins::at(self.bpffs()).link(name);
        sys::link_info(sys::open_pin(&pin, Access::ReadWrite).unwrap().as_fd()).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The mount would keep the directory busy; the pins in it end with the mount.
        let _ = umount2(self.bpffs(), MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}

/// Runs a test in a thread of its own, whose namespaces end with it.
fn alone(test: impl FnOnce(&Place) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let thread = thread::spawn(|| test(&Place::new()));
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A veth pair and a tun device (without Ethernet header); (name, index) of one end and the tun.
fn make_devices() -> BTreeMap<u32, Device> {
    for arguments in [
        "link add lbt0 type veth peer name lbt1",
        "link set lbt0 up",
        "link set lbt1 up",
        "tuntap add lbt2 mode tun",
    ] {
        let status = std::process::Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }
    [("lbt0", "veth", true), ("lbt2", "tun", false)]
        .map(|(name, kind, ethernet)| {
            let index = if_nametoindex(name).unwrap();
            let device = Device {
                role: Role::External,
                name: name.into(),
                index,
                kind: kind.into(),
                mtu: 1500,
                ethernet,
                uplink: true,
                address4: None,
                address6: None,
            };
            (index, device)
        })
        .into()
}

fn address(text: &str) -> Address {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

const KEY: fn() -> FrontendKey =
    || FrontendKey { address: address("10.96.0.1"), port: Be16::new(80), protocol: 6, pad: 0 };
const VALUE: Frontend = Frontend { service: ServiceIndex(7), kind: FrontendKind::ClusterIp as u32 };

/// The node's, from wherever.
fn connected(cookie: u64, to: SocketAddr) -> ConnectedSocket {
    let from = "10.240.0.11:40000".parse().unwrap();
    ConnectedSocket { cookie, protocol: Protocol::Udp, from, to, owner: SocketOwner::Node }
}

/// One Service with one local backend.
fn fill(maps: &mut PinnedMaps) {
    let mut text = [0; 152];
    text[..16].copy_from_slice(b"default/web:http");
    let backend = Backend {
        address: address("10.244.0.9"),
        port: Be16::new(8080),
        flags: BackendFlags::LIVE | BackendFlags::LOCAL | BackendFlags::IN_CLUSTER,
        generation: 3,
        service: ServiceIndex(7),
        pad: 0,
    };
    maps.set_backend(BackendIndex(5), &backend);
    maps.set_slots(100, &[5, 5, 5]);
    let record = ServiceRecord {
        flags: ServiceFlags::HAS_ENDPOINTS | ServiceFlags::INTERNAL_LOCAL,
        service: ServiceIndex(7),
        cluster: Region { offset: 100, len: 3 },
        ..ServiceRecord::default()
    };
    maps.set_record(9, &record);
    maps.publish(ServiceIndex(7), ServicePointer { record: 9, revision: 1 });
    let name = ServiceName { text, protocol: 6, family: 4, pad: [0; 6] };
    maps.set_name(ServiceIndex(7), &name).unwrap();
    maps.set_frontend(&KEY(), &VALUE).unwrap();
    maps.set_address(&address("fd00::1"), 1).unwrap();
    maps.set_device(3, &AbiDevice { mtu: 1500, ..AbiDevice::default() }).unwrap();
}

#[test]
fn a_socket_is_stale_once_the_backend_that_it_was_led_to_has_another_generation() {
    alone(|place| {
        let kernel = Kernel::open(&place.setup()).unwrap();
        let mut maps = kernel.maps().unwrap();
        fill(&mut maps);
        let reverse = Hash::open(&kernel.pins, abi::map::REVERSE, Access::ReadWrite).unwrap();
        let (backend, mapped) = (address("10.244.0.9"), "10.244.0.9:8080".parse().unwrap());
        let key = ReverseKey { cookie: 77, address: backend, port: Be16::new(8080), pad: [0; 6] };
        let value =
            ReverseValue { backend: BackendIndex(5), generation: 3, ..ReverseValue::default() };
        reverse.set(&key, &value).unwrap();
        let sockets = kernel.sockets().unwrap();
        assert!(!sockets.is_stale(&connected(77, mapped)).unwrap());
        maps.set_generation(BackendIndex(5), 4);
        assert!(sockets.is_stale(&connected(77, mapped)).unwrap());
        assert!(
            !sockets.is_stale(&connected(78, mapped)).unwrap(),
            "a socket that talks to it directly"
        );
        assert!(!sockets.is_stale(&connected(77, "10.244.0.9:8081".parse().unwrap())).unwrap());
        sockets.forget(77, mapped).unwrap();
        sockets.forget(77, mapped).unwrap();
        assert!(!sockets.is_stale(&connected(77, mapped)).unwrap());
    });
}

#[test]
fn a_tcp_socket_that_was_led_to_nobody_is_stale_once_it_would_not_be_and_no_other_ever_is() {
    alone(|place| {
        let kernel = Kernel::open(&place.setup()).unwrap();
        let mut maps = kernel.maps().unwrap();
        fill(&mut maps);
        let reverse = Hash::open(&kernel.pins, abi::map::REVERSE, Access::ReadWrite).unwrap();
        let remember = |cookie, to: &str, backend| {
            let key = ReverseKey { cookie, address: address(to), port: Be16::new(80), pad: [0; 6] };
            let named = ReverseValue { address: KEY().address, port: KEY().port, ..backend };
            reverse.set(&key, &named).unwrap();
        };
        remember(77, "192.0.0.8", ReverseValue::default());
        let led =
            ReverseValue { backend: BackendIndex(5), generation: 3, ..ReverseValue::default() };
        remember(78, "10.244.0.9", led);
        let sockets = kernel.sockets().unwrap();
        let stale = || {
            let is_stale = |cookie, to: &str| {
                let to = SocketAddr::new(to.parse().unwrap(), 80);
                let tcp = ConnectedSocket { protocol: Protocol::Tcp, ..connected(cookie, to) };
                sockets.is_stale(&tcp).unwrap()
            };
            let itself = is_stale(79, "192.0.0.8");
            [is_stale(77, "192.0.0.8"), is_stale(78, "10.244.0.9"), itself]
        };
        assert_eq!(stale(), [false; 3], "policy Local, and no endpoint here");
        maps.set_generation(BackendIndex(5), 4);
        assert_eq!(stale(), [false; 3], "an endpoint elsewhere left");
        let served = ServiceRecord {
            flags: ServiceFlags::HAS_ENDPOINTS | ServiceFlags::INTERNAL_LOCAL,
            service: ServiceIndex(7),
            local: Region { offset: 100, len: 1 },
            ..ServiceRecord::default()
        };
        maps.set_record(10, &served);
        maps.publish(ServiceIndex(7), ServicePointer { record: 10, revision: 2 });
        assert_eq!(stale(), [true, false, false], "an endpoint here");
    });
}

#[test]
fn a_services_counters_outlive_its_endpoints_and_are_nobody_elses() {
    alone(|place| {
        let kernel = Kernel::open(&place.setup()).unwrap();
        let mut maps = kernel.maps().unwrap();
        fill(&mut maps);
        let counters: CounterHash<TrafficKey, Traffic> =
            CounterHash::open(&kernel.pins, abi::map::TRAFFIC, Access::ReadWrite).unwrap();
        let key = |backend, generation| TrafficKey {
            service: ServiceIndex(7),
            backend: BackendIndex(backend),
            generation,
        };
        let two = Traffic { sockets: 2, ..Traffic::default() };
        let by_packet = Traffic { flows: 5, packets_to: 9, bytes_from: 700, ..Traffic::default() };
        counters.set(&key(5, 3), &two).unwrap();
        // An endpoint that had the same index before.
        counters.set(&key(5, 2), &by_packet).unwrap();
        let reader = read::Reader::open(place.bpffs()).unwrap();
        let look = || {
            let services = reader.services().unwrap();
            let [service] = services.as_slice() else { panic!("{services:?}") };
            let backends = reader.backends().unwrap();
            let [row] = backends.as_slice() else { panic!("{backends:?}") };
            (service.traffic, row.backend.traffic)
        };
        let mut tables = kernel.flows().unwrap();
        let counted = |pass: Pass| {
            let traffic = pass.hashes.iter().find(|usage| usage.map == abi::map::TRAFFIC).unwrap();
            (traffic.entries, traffic.max_entries)
        };
        // Fifteen looks at the same counters, and one that makes the difference.
        for remaining in (0..16).rev() {
            assert_eq!(look(), ((two + by_packet).into(), two.into()));
            assert_eq!(counters.get(&key(5, 2)).unwrap(), Some(by_packet), "{remaining}");
            assert_eq!(counted(tables.expire().unwrap()), (Some(2), 64));
        }
        assert_eq!(counters.get(&key(5, 2)).unwrap(), None, "five minutes without a packet");
        assert_eq!(counters.get(&key(0, 0)).unwrap(), Some(by_packet));
        assert_eq!(look(), ((two + by_packet).into(), two.into()));
        // Another one leaves: its counters are added to the same sum, and make room.
        maps.set_generation(BackendIndex(5), 4);
        for _ in 0..16 {
            tables.expire().unwrap();
        }
        assert_eq!(look(), ((two + by_packet).into(), Traffic::default().into()));
        assert_eq!(counted(tables.expire().unwrap()), (Some(1), 64));
        maps.forget_counts(|service| service != ServiceIndex(7)).unwrap();
        assert_eq!(counters.sums().unwrap().len(), 1);
        // For metrics: by name, and what has none by the number of a frontend that isn't a NodePort.
        let of_metrics = || {
            let counted = kernel.counters().unwrap().traffic().unwrap();
            let [one] = counted.as_slice() else { panic!("{counted:?}") };
            (one.key.port_name.to_string(), one.port, one.traffic)
        };
        let sum = two + by_packet;
        assert_eq!(of_metrics(), ("http".to_owned(), 0, sum));
        let mut text = [0; 152];
        text[..12].copy_from_slice(b"default/web:");
        let name = ServiceName { text, protocol: 6, family: 4, pad: [0; 6] };
        maps.set_name(ServiceIndex(7), &name).unwrap();
        let node_port = Frontend { kind: FrontendKind::NodePort as u32, ..VALUE };
        maps.set_frontend(&FrontendKey { port: Be16::new(30_080), ..KEY() }, &node_port).unwrap();
        assert_eq!(of_metrics(), (String::new(), 80, sum));
        maps.forget_counts(|service| service == ServiceIndex(7)).unwrap();
        assert_eq!(look(), (Traffic::default().into(), Traffic::default().into()));
    });
}

#[test]
fn drops_of_a_service_that_is_gone_are_nobodys_and_stay_in_the_sums_by_reason() {
    alone(|place| {
        let kernel = Kernel::open(&place.setup()).unwrap();
        let mut maps = kernel.maps().unwrap();
        fill(&mut maps);
        let drops: CounterHash<DropKey> =
            CounterHash::open(&kernel.pins, abi::map::DROPS, Access::ReadWrite).unwrap();
        let reason = DropReason::NoEndpoints;
        let key = |service| DropKey { service: ServiceIndex(service), reason: reason as u32 };
        for (service, packets) in [(0, 1), (6, 10), (7, 100), (8, 1_000)] {
            drops.set(&key(service), &packets).unwrap();
        }
        let reader = read::Reader::open(place.bpffs()).unwrap();
        let look = || {
            let services = reader.services().unwrap();
            let sums = reader.drops_by_reason().unwrap().into_iter();
            let sum = sums.filter(|(found, _)| *found == reason).map(|(_, packets)| packets);
            (services[0].drops.clone(), sum.sum::<u64>())
        };
        let of_seven = [("no_endpoints", 100)].into();
        assert_eq!(look(), (of_seven, 1_111));
        // As an agent that adopts does, and as one does that removes a Service; each twice.
        for _ in 0..2 {
            maps.forget_counts(|service| service != ServiceIndex(7)).unwrap();
            assert_eq!(look().0.len(), 1);
        }
        for _ in 0..2 {
            maps.forget_counts(|service| service == ServiceIndex(7)).unwrap();
            assert_eq!(look(), ([].into(), 1_111), "the next owner of the index begins at nothing");
        }
        assert_eq!(drops.get(&key(0)).unwrap(), Some(1), "no Service's");
    });
}

#[test]
fn a_socket_that_was_led_to_nobody_is_stale_once_the_same_call_would_be_served() {
    alone(|place| {
        let kernel = Kernel::open(&place.setup()).unwrap();
        let mut maps = kernel.maps().unwrap();
        fill(&mut maps);
        maps.set_frontend(&FrontendKey { protocol: 17, ..KEY() }, &VALUE).unwrap();
        let reverse = Hash::open(&kernel.pins, abi::map::REVERSE, Access::ReadWrite).unwrap();
        for (cookie, port) in [(77, 80), (78, 81)] {
            let nobody = KEY().address.discard();
            let key = ReverseKey { cookie, address: nobody, port: Be16::new(port), pad: [0; 6] };
            let (address, port) = (KEY().address, Be16::new(port));
            reverse.set(&key, &ReverseValue { address, port, ..ReverseValue::default() }).unwrap();
        }
        let sockets = kernel.sockets().unwrap();
        let stale = |cookie, peer: &str| {
            sockets.is_stale(&connected(cookie, peer.parse().unwrap())).unwrap()
        };
        assert!(!stale(77, "192.0.0.8:80"), "no endpoint is local");
        assert!(stale(78, "192.0.0.8:81"), "the port is no Service's");
        assert!(!stale(79, "192.0.0.8:80"), "a socket that was connected there by itself");
        let local = Region { offset: 100, len: 1 };
        maps.set_record(10, &ServiceRecord { local, ..maps.record(9) });
        maps.publish(ServiceIndex(7), ServicePointer { record: 10, revision: 2 });
        assert!(stale(77, "192.0.0.8:80"));
        sockets.forget(77, "192.0.0.8:80".parse().unwrap()).unwrap();
        assert!(!stale(77, "192.0.0.8:80"));
    });
}

#[test]
fn a_restart_adopts_maps_and_links_and_cleanup_leaves_nothing() {
    alone(|place| {
        let devices = make_devices();
        let mut kernel = Kernel::open(&place.setup()).unwrap();
        let mut maps = kernel.maps().unwrap();
        fill(&mut maps);
        kernel.attach_sockets().unwrap();
        kernel.sync_devices(&devices).unwrap();
        let names = Pins::at(place.bpffs()).link_names().unwrap();
        assert_eq!(names.len(), 9 + 2 * 2, "{names:?}");
        for status in kernel.attached().values() {
            assert_eq!((status.tc, status.xdp), (TcAttachment::Tcx, XdpAttachment::Off));
        }
        let before: Vec<LinkInfo> = names.iter().map(|name| place.link(name)).collect();
        drop((maps, kernel));

        let mut kernel = Kernel::open(&place.setup()).unwrap();
        kernel.attach_sockets().unwrap();
        kernel.sync_devices(&devices).unwrap();
        assert_eq!(Pins::at(place.bpffs()).link_names().unwrap(), names);
        for (name, before) in names.iter().zip(before) {
            let after = place.link(name);
            assert_eq!((after.id, after.target), (before.id, before.target), "{name}");
            assert_ne!(after.program, before.program, "{name} has still its old program");
        }
        let maps = kernel.maps().unwrap();
        assert_eq!(maps.frontends().unwrap(), [(KEY(), VALUE)]);
        assert_eq!(maps.pointer(ServiceIndex(7)).record, 9);
        assert_eq!(maps.slots(100, 3), [5, 5, 5]);
        assert_eq!(maps.slots(1_022, 9).len(), 2, "the table ends");
        assert_eq!(maps.backend(BackendIndex(5)).generation, 3);
        drop(maps);

        let refused = cleanup::cleanup(place.bpffs()).unwrap_err();
        assert!(matches!(refused, BpfError::InUse(_)), "{refused}");
        assert_eq!(Pins::at(place.bpffs()).link_names().unwrap(), names);
        drop(kernel);

        let removed = clean(place);
        assert_eq!((removed.attachments, removed.maps), (13, 26));
        assert!(!place.bpffs().join("lb").exists());
        assert_eq!(clean(place), cleanup::Removed::default());
    });
}

#[test]
fn a_trie_lists_what_was_added_once_and_says_when_it_is_full() {
    alone(|place| {
        let kernel = Kernel::open(&place.setup()).unwrap();
        let mut maps = kernel.maps().unwrap();
        assert_eq!(maps.source_ranges().unwrap(), []);
        // Nested, equal in two sets, and of both families.
        let mut ranges: Vec<SourceRange> = [
            (1, "10.0.0.0/8"),
            (1, "10.1.0.0/16"),
            (1, "10.1.2.3/32"),
            (2, "10.0.0.0/8"),
            (2, "0.0.0.0/1"),
            (2, "fd00::/8"),
            (2, "fd00::1/128"),
            (3, "8000::/1"),
        ]
        .into_iter()
        .map(|(set, net)| encode::source_range(SourceSet(set), &net.parse().unwrap()))
        .collect();
        for range in &ranges {
            maps.set_source_range(range).unwrap();
        }
        let listed = |maps: &PinnedMaps| {
            let mut listed = maps.source_ranges().unwrap();
            listed.sort();
            listed
        };
        ranges.sort();
        assert_eq!(listed(&maps), ranges);
        let more = encode::source_range(SourceSet(9), &"10.0.0.0/8".parse().unwrap());
        let full = maps.set_source_range(&more);
        assert!(matches!(full, Err(StoreError::Full { map: "SOURCE_RANGES" })), "{full:?}");
        for range in ranges.drain(2..5) {
            maps.remove_source_range(&range).unwrap();
            maps.remove_source_range(&range).unwrap();
        }
        assert_eq!(listed(&maps), ranges);
    });
}

#[test]
fn a_device_that_is_no_longer_wanted_is_detached_from_by_the_next_run_too() {
    alone(|place| {
        let mut devices = make_devices();
        let mut kernel = Kernel::open(&place.setup()).unwrap();
        kernel.sync_devices(&devices).unwrap();
        drop(kernel);
        let (gone, _) = devices.pop_first().unwrap();
        let mut kernel = Kernel::open(&place.setup()).unwrap();
        kernel.sync_devices(&devices).unwrap();
        let names = Pins::at(place.bpffs()).link_names().unwrap();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(!names.iter().any(|name| name.ends_with(&format!("_{gone}"))), "{names:?}");
    });
}

/// Runs `tc`; its output.
fn tc(arguments: &str) -> String {
    let output = std::process::Command::new("tc").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "tc {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn filters_of_older_kernels_never_stack_and_a_qdisc_with_others_filters_stays() {
    alone(|place| {
        let devices = make_devices();
        let pins = Pins::at(place.bpffs());
        for _ in 0..2 {
            let mut kernel = Kernel::open(&place.setup()).unwrap();
            for device in devices.values() {
                filters::attach(&pins, &mut kernel.programs, device).unwrap();
            }
        }
        for (device, ingress) in [("lbt0", "tc_ingress"), ("lbt2", "tc_ingress_l3")] {
            let filters = tc(&format!("filter show dev {device} ingress"));
            assert_eq!(filters.matches(" direct-action ").count(), 1, "{filters}");
            assert!(filters.contains(&format!("{ingress} ")), "{filters}");
            let filters = tc(&format!("filter show dev {device} egress"));
            assert_eq!(filters.matches(" direct-action ").count(), 1, "{filters}");
        }
        let theirs = pins.link(&format!("filter_egress_{}", if_nametoindex("lbt2").unwrap()));
        tc(&format!("filter add dev lbt2 egress prio 9 bpf da pinned {}", theirs.display()));
        // Two devices with two filters each, and the qdisc of one.
        assert_eq!(clean(place).attachments, 5);
        assert!(!tc("qdisc show dev lbt0").contains("clsact"));
        let filters = tc("filter show dev lbt2 egress");
        assert!(filters.contains("pref 9 ") && !filters.contains("pref 1 "), "{filters}");
    });
}

#[test]
fn the_xdp_mode_can_change_between_runs() {
    alone(|place| {
        let mut devices = make_devices();
        devices.retain(|_, device| device.ethernet);
        let index = *devices.first_key_value().unwrap().0;
        for (mode, attachment, pin) in [
            (XdpMode::Native, XdpAttachment::Native, Some(format!("xdp_{index}"))),
            (XdpMode::Generic, XdpAttachment::Generic, Some(format!("xdp_generic_{index}"))),
            (XdpMode::Native, XdpAttachment::Native, Some(format!("xdp_{index}"))),
            (XdpMode::Off, XdpAttachment::Off, None),
        ] {
            let mut kernel = Kernel::open(&Setup { xdp: mode, ..place.setup() }).unwrap();
            kernel.sync_devices(&devices).unwrap();
            assert_eq!(kernel.attached()[&index].xdp, attachment, "{mode:?}");
            let mut names = Pins::at(place.bpffs()).link_names().unwrap();
            names.retain(|name| name.starts_with("xdp"));
            assert_eq!(names, Vec::from_iter(pin), "{mode:?}");
        }
    });
}

#[test]
fn a_link_of_another_cgroup_is_replaced_by_one_of_ours() {
    alone(|place| {
        let other = place.cgroup.join("other");
        std::fs::create_dir(&other).unwrap();
        let kernel = Kernel::open(&Setup { cgroup_root: other.clone(), ..place.setup() }).unwrap();
        kernel.attach_sockets().unwrap();
        let before = place.link("cgroup_connect4");
        // First a living one, then one whose cgroup is gone.
        for remove_other in [false, true] {
            let wanted = if remove_other { &place.cgroup } else { &other };
            if remove_other {
                std::fs::remove_dir(&other).unwrap();
            }
            let setup = Setup { cgroup_root: wanted.clone(), ..place.setup() };
            Kernel::open(&setup).unwrap().attach_sockets().unwrap();
            let after = place.link("cgroup_connect4");
            assert_eq!(after.id == before.id, !remove_other);
            assert!(after.target.is_some());
        }
    });
}

#[test]
fn flags_and_generations_are_single_words_and_a_full_hash_says_so() {
    alone(|place| {
        let kernel = Kernel::open(&place.setup()).unwrap();
        let mut maps = kernel.maps().unwrap();
        fill(&mut maps);
        maps.set_backend_flags(BackendIndex(5), BackendFlags::LIVE);
        maps.set_generation(BackendIndex(5), 4);
        let backend = maps.backend(BackendIndex(5));
        assert_eq!((backend.flags, backend.generation), (BackendFlags::LIVE, 4));
        assert_eq!((backend.port.get(), backend.service), (8080, ServiceIndex(7)));
        // What is written by mmap is what bpf(2) reads, and the programs with it.
        let pin = sys::open_pin(&Pins::at(place.bpffs()).map("BACKENDS"), Access::Read).unwrap();
        // SAFETY: BACKENDS has keys of 4 bytes and values of this type.
        let seen = unsafe { sys::lookup::<u32, Backend>(pin.as_fd(), &5) }.unwrap();
        assert_eq!(seen, Some(backend));
        // Indices outside of a table are without effect.
        maps.publish(ServiceIndex(1 << 20), ServicePointer { record: 1, revision: 1 });
        assert_eq!(maps.pointer(ServiceIndex(1 << 20)), ServicePointer::default());

        assert_eq!(maps.capacity(Table::Frontends), 256);
        let full = (0..300_u16).find_map(|port| {
            maps.set_frontend(&FrontendKey { port: Be16::new(port), ..KEY() }, &VALUE).err()
        });
        assert!(matches!(full, Some(StoreError::Full { map: "FRONTENDS" })), "{full:?}");
        assert_eq!(maps.frontends().unwrap().len(), 256);
        maps.remove_frontend(&KEY()).unwrap();
        maps.remove_frontend(&KEY()).unwrap();
        assert_eq!(maps.frontends().unwrap().len(), 255);
    });
}

#[test]
fn the_barrier_waits_for_a_grace_period() {
    alone(|place| {
        let maps = Kernel::open(&place.setup()).unwrap().maps().unwrap();
        let start = Instant::now();
        for _ in 0..5 {
            maps.barrier().unwrap();
        }
        eprintln!("a barrier takes {:?}", start.elapsed() / 5);
        // A call that waits for nothing takes a few microseconds.
        assert!(start.elapsed().as_micros() > 5 * 100, "{:?}", start.elapsed());
    });
}

#[test]
fn a_map_of_another_layout_is_refused_and_one_of_another_size_is_kept() {
    alone(|place| {
        drop(Kernel::open(&place.setup()).unwrap());
        let mut setup = place.setup();
        setup.capacities.backends = 512;
        let kernel = Kernel::open(&setup).unwrap();
        assert_eq!(kernel.maps().unwrap().capacity(Table::Backends), 256);
        drop(kernel);
        let pin = Pins::at(place.bpffs()).map("NAMES");
        std::fs::remove_file(&pin).unwrap();
        sys::pin(sys::create_tiny_array().unwrap().as_fd(), &pin).unwrap();
        let error = Kernel::open(&setup).unwrap_err().to_string();
        assert!(error.contains("NAMES") && error.contains("lb-agent cleanup"), "{error}");
    });
}

#[test]
fn the_command_line_reads_what_the_maps_hold() {
    alone(|place| {
        let error = read::Reader::open(place.bpffs()).unwrap_err().to_string();
        assert!(error.contains("is lb-agent running"), "{error}");
        let kernel = Kernel::open(&place.setup()).unwrap();
        fill(&mut kernel.maps().unwrap());
        let (client, port) = (Addr4::from([192, 0, 2, 9]), Be16::new(40_000));
        let key = FlowKey::<V4> {
            source: client,
            destination: Addr4::from([10, 96, 0, 1]),
            source_port: port,
            destination_port: Be16::new(80),
            protocol: 6,
        };
        let translated = FlowKey {
            destination: Addr4::from([10, 244, 0, 9]),
            destination_port: Be16::new(8080),
            ..key
        };
        let flow = Flow::<V4> {
            translated,
            backend: BackendIndex(5),
            generation: 3,
            service: ServiceIndex(7),
            last_seen: expiry::now(),
            flags: FlowFlags::LOCAL | FlowFlags::ANSWERED,
            device: 0,
        };
        let reply =
            Flow { translated: key.inverse(), flags: flow.flags | FlowFlags::REPLY, ..flow };
        let pins = Pins::at(place.bpffs());
        let flows: Hash<FlowKey<V4>, Flow<V4>> =
            Hash::open(&pins, "FLOWS4", Access::ReadWrite).unwrap();
        flows.set(&key, &flow).unwrap();
        flows.set(&translated.inverse(), &reply).unwrap();

        let reader = read::Reader::open(place.bpffs()).unwrap();
        let services = reader.services().unwrap();
        let [service] = services.as_slice() else { panic!("{services:?}") };
        assert_eq!((service.namespace.as_str(), service.name.as_str()), ("default", "web"));
        assert_eq!(service.port_name, "http");
        assert_eq!(service.frontends[0].kind, RowKind::ClusterIp);
        assert_eq!(service.backends.len(), 1, "each backend once, however many slots it has");
        assert!(service.backends[0].local && service.backends[0].active);
        assert!(service.policy.internal_local);
        let rows = reader.flows().unwrap();
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!(row.service.as_deref(), Some("default/web"));
        assert_eq!(row.backend.to_string(), "10.244.0.9:8080");
        assert_eq!((row.state.as_str(), row.translated_source), ("established", None));
        assert_eq!(reader.flow_count().unwrap(), 1);
        assert_eq!(reader.drops().unwrap(), []);

        let mut tables = FlowTables::open(&pins, SharedTraffic::open(&pins).unwrap()).unwrap();
        let pass = tables.expire().unwrap();
        assert_eq!((pass.v4.entries, pass.v4.removed, pass.v4.capacity), (2, 0, 512));
        for (key, flow) in [(key, flow), (translated.inverse(), reply)] {
            let flags = flow.flags | FlowFlags::FIN;
            let last_seen = flow.last_seen.wrapping_sub(121 * 60);
            flows.set(&key, &Flow { flags, last_seen, ..flow }).unwrap();
        }
        assert_eq!(tables.expire().unwrap().v4.removed, 2);
    });
}

#[test]
fn a_bpffs_that_is_missing_is_named_with_the_remedy() {
    let error = Pins::prepare(Path::new("/nowhere")).unwrap_err();
    assert!(matches!(&error, BpfError::NoDirectory { source, .. }
        if source.kind() == io::ErrorKind::NotFound));
    assert!(error.to_string().contains("--bpffs /nowhere"), "{error}");
}

#[test]
fn no_bpffs_is_mounted_where_it_would_end_with_a_container() {
    alone(|place| {
        let none = None::<&str>;
        let directory = place.bpffs();
        mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        mount(none, directory, none, MsFlags::MS_SHARED, none).unwrap();
        // What a kubelet makes of a volume whose propagation is HostToContainer; the node's namespace
        // stays while it is open.
        let _node = File::open("/proc/thread-self/ns/mnt").unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, directory, none, MsFlags::MS_SLAVE, none).unwrap();
        let error = Pins::prepare(directory).unwrap_err();
        assert!(matches!(error, BpfError::MountOfContainer(_)), "{error}");
        mount(none, directory, none, MsFlags::MS_PRIVATE, none).unwrap();
        Pins::prepare(directory).expect("mounted");
        // Both mounts lie on it.
        umount2(directory, MntFlags::MNT_DETACH).unwrap();
    });
}

/// Removes everything. A process that another test starts holds our descriptors, and with them the lock of
/// a kernel that was dropped, until it is another program.
fn clean(place: &Place) -> cleanup::Removed {
    let begun = Instant::now();
    loop {
        match cleanup::cleanup(place.bpffs()) {
            Err(BpfError::InUse(_)) if begun.elapsed() < Duration::from_secs(10) => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result.unwrap(),
        }
    }
}

/// Memory of all pinned maps that are made with these capacities.
fn memory(place: &Place, capacities: Capacities) -> u64 {
    let kernel = Kernel::open(&Setup { capacities, ..place.setup() }).unwrap();
    let maps = usage::CountedMaps::open(&Pins::at(place.bpffs())).unwrap().usage().unwrap();
    drop(kernel);
    clean(place);
    maps.iter().map(|map| map.memory).sum()
}

#[test]
fn maps_take_the_memory_that_the_operations_page_says() {
    let page = include_str!("../../../docs/operations.md");
    alone(move |place| {
        // A power of two: the kernel rounds the buckets of hashes up to one.
        const UNITS: u32 = 65_536;
        let base = Capacities {
            services: UNITS,
            backends: UNITS,
            slots: UNITS,
            source_ranges: UNITS,
            flows: UNITS,
            traffic: UNITS,
        };
        let least = memory(place, base);
        let twice = 2 * UNITS;
        for (flag, capacities) in [
            ("services", Capacities { services: twice, ..base }),
            ("backends", Capacities { backends: twice, ..base }),
            ("slots", Capacities { slots: twice, ..base }),
            ("flows", Capacities { flows: twice, ..base }),
        ] {
            let row = page.lines().find(|line| line.starts_with(&format!("| `--max-{flag}` |")));
            let said = row.unwrap().trim_matches(['|', ' ']).rsplit(' ').next().unwrap();
            let said: f64 = said.parse().unwrap();
            let measured = (memory(place, capacities) - least) as f64 / f64::from(UNITS);
            assert!(
                (said / measured - 1.0).abs() < 0.03,
                "{flag}: {said} said, {measured} measured"
            );
        }
        let row = page.lines().find(|line| line.starts_with("| `--max-traffic` |")).unwrap();
        let words: Vec<f64> = row.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [_, entry, per_cpu] = words.as_slice() else { panic!("{row}") };
        let said = entry + per_cpu * aya::util::nr_cpus().unwrap() as f64;
        let more_traffic = memory(place, Capacities { traffic: twice, ..base });
        let measured = (more_traffic - least) as f64 / f64::from(UNITS);
        assert!((said / measured - 1.0).abs() < 0.03, "{said} said, {measured} measured");
        let more_ranges = memory(place, Capacities { source_ranges: twice, ..base });
        assert_eq!(more_ranges, least, "a trie takes memory as it is filled");
        let others = least as f64 - f64::from(UNITS) * (248.0 + 32.0 + 8.0 + 301.0 + said);
        let mebibytes = others / f64::from(1 << 20);
        assert!((20.0..45.0).contains(&mebibytes), "{mebibytes} MiB without a flag");
    });
}

#[test]
fn what_hashes_hold_is_counted_whole() {
    alone(|place| {
        let kernel = Kernel::open(&place.setup()).unwrap();
        let mut maps = kernel.maps().unwrap();
        let usage = || usage::CountedMaps::open(&Pins::at(place.bpffs())).unwrap().usage().unwrap();
        let empty = usage();
        for index in 1..=50 {
            let name = ServiceName { text: [b'x'; 152], ..bytemuck::Zeroable::zeroed() };
            maps.set_name(ServiceIndex(index), &name).unwrap();
            let address = Address::from(std::net::IpAddr::from([10, 0, 0, index as u8]));
            maps.set_address(&address, 1).unwrap();
        }
        for port in 1..=50 {
            maps.set_frontend(&FrontendKey { port: Be16::new(port), ..KEY() }, &VALUE).unwrap();
        }
        let counted = usage();
        let of = |name: &str| counted.iter().find(|map| map.map == name).unwrap().entries;
        assert_eq!((of("FRONTENDS"), of("DROPS"), of("SLOTS")), (Some(50), Some(0), None));
        // As docs/operations.md says.
        for (name, bytes) in [("NAMES", 224), ("FRONTENDS", 88), ("ADDRESSES", 80)] {
            let memory =
                |maps: &[usage::MapUsage]| maps.iter().find(|map| map.map == name).unwrap().memory;
            assert_eq!((memory(&counted) - memory(&empty)) / 50, bytes, "{name}");
        }
    });
}
