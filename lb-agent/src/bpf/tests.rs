//! The whole of `bpf` on the running kernel, as root: in a BPF file system, a cgroup and a network
//! namespace of the test's own, all of which vanish with it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lb_common::abi::{
    Address, Backend, BackendFlags, BackendIndex, Device as AbiDevice, Flow, FlowFlags, FlowKey,
    Frontend, FrontendKey, FrontendKind, Region, ReverseKey, ReverseValue, ServiceFlags,
    ServiceIndex, ServiceName, ServicePointer, ServiceRecord, SourceRange, SourceSet,
};
use lb_common::bytes::Be16;
use lb_common::family::{Addr4, V4};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

use super::devices::{TcAttachment, XdpAttachment};
use super::hash::Hash;
use super::sys::{self, LinkInfo};
use super::*;
use crate::args::XdpMode;
use crate::config::Capacities;
use crate::node::cgroup::cgroup_root;
use crate::plan::desired::FrontendKind as RowKind;
use crate::run::datapath::Translations as _;
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
            snat_ports: 1024..=29_999,
            cluster_cidrs: Vec::new(),
            capacities: Capacities {
                services: 64,
                backends: 256,
                slots: 1_024,
                source_ranges: 8,
                flows: 512,
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
    let thread = std::thread::spawn(|| test(&Place::new()));
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
                name: name.into(),
                index,
                kind: kind.into(),
                mtu: 1500,
                ethernet,
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

/// One Service with one local backend.
fn fill(maps: &mut PinnedMaps) {
    let mut text = [0; 152];
    text[..16].copy_from_slice(b"default/web:http");
    let backend = Backend {
        address: address("10.244.0.9"),
        port: Be16::new(8080),
        flags: BackendFlags::LIVE | BackendFlags::LOCAL,
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
        assert!(!sockets.is_stale(77, mapped).unwrap());
        maps.set_generation(BackendIndex(5), 4);
        assert!(sockets.is_stale(77, mapped).unwrap());
        assert!(!sockets.is_stale(78, mapped).unwrap(), "a socket that talks to it directly");
        assert!(!sockets.is_stale(77, "10.244.0.9:8081".parse().unwrap()).unwrap());
        sockets.forget(77, mapped).unwrap();
        sockets.forget(77, mapped).unwrap();
        assert!(!sockets.is_stale(77, mapped).unwrap());
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
        drop((maps, kernel));

        let removed = cleanup::cleanup(place.bpffs()).unwrap();
        assert_eq!((removed.attachments, removed.maps), (13, 18));
        assert!(!place.bpffs().join("lb").exists());
        assert_eq!(cleanup::cleanup(place.bpffs()).unwrap(), cleanup::Removed::default());
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
        assert_eq!(cleanup::cleanup(place.bpffs()).unwrap().attachments, 5);
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
        assert_eq!(reader.drops().unwrap(), []);

        let tables = FlowTables::open(&pins).unwrap();
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
