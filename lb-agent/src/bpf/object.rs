//! The embedded kernel object: its maps are made or adopted, its programs loaded.
//!
//! aya reuses a pinned map without a look at it, so every pin is compared first. What the object
//! wants is read from the object itself; only sizes come from the configuration.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use aya::maps::{MapError, ProgramArray};
use aya::pin::PinError;
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_obj::Object;
use lb_common::abi::{self, SCTP_PROGRAMS, map};

use super::error::{BpfError, kernel_release};
use super::pins::Pins;
use super::sys::{self, Access, MapInfo};
use crate::config::Capacities;

/// The kernel object: every program and map, as the build script built it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));

/// Maps that outlive the agent. REVERSE is one of them, so that sockets that were connected
/// before a restart still show the address that they named; the others (WORK4, WORK6, constants)
/// hold nothing between two runs of a program, or nothing that is worth keeping (PARKED).
pub(super) const PINNED: [&str; 26] = [
    map::FRONTENDS,
    map::SERVICES,
    map::RECORDS,
    map::SLOTS,
    map::BACKENDS,
    map::NAMES,
    map::ADDRESSES,
    map::CLIENTS,
    map::AFFINITY,
    map::SOURCE_RANGES,
    map::SERVICE_RANGES,
    map::DEVICES,
    map::FLOWS4,
    map::FLOWS6,
    map::PEERS,
    map::REVERSE,
    map::FRAGMENTS4,
    map::FRAGMENTS6,
    map::DROPS,
    map::TRAFFIC,
    map::CALLS,
    map::TAKEOVER,
    map::EVENTS,
    map::MONITOR,
    map::WATCHED,
    map::PACE,
];

/// The programs for pods' devices.
const POD_PROGRAMS: [&str; 2] = ["pod_ingress", "pod_egress"];

/// The program for the loopback device, which hands SCTP on.
pub(super) const OWN_PROGRAM: &str = "own_egress";

/// Addresses that a node may have itself.
const NODE_ADDRESSES: u32 = 4_096;

/// Lines of the verifier's log that are worth keeping: the last instructions and the verdict.
const VERIFIER_LINES: usize = 40;

/// The loaded programs.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
}

impl Programs {
    /// The descriptor of a program.
    pub fn fd(&self, program: &str) -> Result<BorrowedFd<'_>, BpfError> {
        let fd = self.ebpf.program(program).and_then(|loaded| loaded.fd().ok());
        fd.map(|fd| fd.as_fd())
            .ok_or_else(|| BpfError::Object(format!("it has no program {program}")))
    }

    /// Loads the programs for pods' devices, if they aren't. Most nodes do without, and the verifier
    /// takes its time with each.
    pub fn load_for_pods(&mut self) -> Result<(), BpfError> {
        self.load_all(&POD_PROGRAMS)
    }

    /// Loads the programs for SCTP, if they aren't, and puts them where the others find them.
    pub fn load_for_sctp(&mut self) -> Result<(), BpfError> {
        self.load_all(&SCTP_PROGRAMS)?;
        self.load_all(&[OWN_PROGRAM])?;
        set_calls(&mut self.ebpf)
    }

    fn load_all(&mut self, names: &[&str]) -> Result<(), BpfError> {
        for name in names {
            if self.fd(name).is_err() {
                load_program(name, self.program_mut(name)?)?;
            }
        }
        Ok(())
    }

    /// The program itself, for attachments that aya makes.
    pub fn program_mut(&mut self, program: &str) -> Result<&mut Program, BpfError> {
        self.ebpf
            .program_mut(program)
            .ok_or_else(|| BpfError::Object(format!("it has no program {program}")))
    }
}

/// Makes or adopts the maps and loads the programs that every node needs.
pub fn load(
    pins: &Pins,
    config: &abi::Config,
    capacities: &Capacities,
) -> Result<Programs, BpfError> {
    raise_memory_limit();
    let sizes = sizes(capacities);
    for (name, wanted) in wanted(&sizes)? {
        check(pins, name, &wanted)?;
    }
    let paths: Vec<_> = PINNED.iter().map(|name| (*name, pins.map(name))).collect();
    let mut loader = EbpfLoader::new();
    loader.override_global("CONFIG", bytemuck::bytes_of(config), true);
    for (name, size) in &sizes {
        loader.map_max_entries(name, *size);
    }
    for (name, path) in &paths {
        loader.map_pin_path(name, path);
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| load_error(pins, error))?;
    for (name, program) in ebpf.programs_mut() {
        let is_later = POD_PROGRAMS.contains(&name) || SCTP_PROGRAMS.contains(&name);
        if !is_later && name != OWN_PROGRAM {
            load_program(name, program)?;
        }
    }
    Ok(Programs { ebpf })
}

/// Loads every program with the smallest tables; pins and attaches nothing. Returns how many there are.
pub(super) fn try_all(pins: &Pins) -> Result<usize, BpfError> {
    let least = Capacities {
        services: 16,
        backends: 16,
        slots: 256,
        source_ranges: 16,
        flows: 256,
        traffic: 16,
    };
    let mut loader = EbpfLoader::new();
    for (name, size) in sizes(&least) {
        loader.map_max_entries(name, size);
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| load_error(pins, error))?;
    let mut loaded = 0;
    for (name, program) in ebpf.programs_mut() {
        load_program(name, program)?;
        loaded += 1;
    }
    Ok(loaded)
}

fn load_program(name: &str, program: &mut Program) -> Result<(), BpfError> {
    let loaded = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => return Err(BpfError::Object(format!("the kind of program {name} is unknown"))),
    };
    loaded.map_err(|error| rejection(name, error))
}

/// Programs of an earlier run go on in these from now on: they do the same.
fn set_calls(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    let missing = |what: &str| BpfError::Object(format!("it has no {what}"));
    let failed = |name, error: &dyn std::error::Error| {
        BpfError::Object(format!("{}: {name}: {}", map::CALLS, chain(error)))
    };
    for (index, name) in (0..).zip(SCTP_PROGRAMS) {
        let program = ebpf.program(name).ok_or_else(|| missing(name))?;
        let fd = program.fd().map_err(|error| failed(name, &error))?;
        let fd = fd.try_clone().map_err(|error| failed(name, &error))?;
        let map = ebpf.map_mut(map::CALLS).ok_or_else(|| missing(map::CALLS))?;
        let mut calls = ProgramArray::try_from(map).map_err(|error| failed(name, &error))?;
        calls.set(index, &fd, 0).map_err(|error| failed(name, &error))?;
    }
    Ok(())
}

/// Sizes that depend on the configuration; the object's own hold for the others.
fn sizes(capacities: &Capacities) -> [(&'static str, u32); 13] {
    let Capacities { services, backends, slots, source_ranges, flows, traffic } = *capacities;
    [
        (map::SERVICES, services),
        // Each Service has a published record and one on its way.
        (map::RECORDS, services.saturating_mul(2)),
        (map::NAMES, services),
        // A ClusterIP, a NodePort, and some load balancer and external addresses.
        (map::FRONTENDS, services.saturating_mul(4)),
        // A ClusterIP of each Service, and the node's own.
        (map::ADDRESSES, services.saturating_add(NODE_ADDRESSES)),
        (map::BACKENDS, backends),
        (map::SLOTS, slots),
        (map::SOURCE_RANGES, source_ranges),
        // A flow has two entries, and half of all flows may be of either family.
        (map::FLOWS4, flows),
        (map::FLOWS6, flows),
        // Clients of Services with session affinity, which are few.
        (map::AFFINITY, flows / 8),
        (map::TRAFFIC, traffic),
        (map::WATCHED, services),
    ]
}

/// CONFIG as a loaded program has it, out of the bytes of its constants; `None` when they are another
/// version's.
pub fn config_in(constants: &[u8]) -> Result<Option<abi::Config>, BpfError> {
    let broken = |error: aya_obj::ParseError| BpfError::Object(error.to_string());
    let mut object = Object::parse(OBJECT).map_err(broken)?;
    let constants_of = |object: &Object| {
        let section = object.maps.iter().find(|(name, _)| name.ends_with(".rodata"));
        section.map(|(_, map)| map.data().to_vec()).unwrap_or_default()
    };
    let before = constants_of(&object);
    // aya doesn't say where a constant is, but writes it.
    let mark = [!0; size_of::<abi::Config>()];
    object.patch_map_data(HashMap::from([("CONFIG", (&mark[..], true))])).map_err(broken)?;
    let after = constants_of(&object);
    let start = before.iter().zip(&after).position(|(before, after)| before != after);
    let same_length = before.len() == constants.len();
    Ok(start
        .filter(|_| same_length)
        .and_then(|start| constants.get(start..start + mark.len()))
        .map(bytemuck::pod_read_unaligned))
}

/// What each pinned map is like in the object.
fn wanted(sizes: &[(&str, u32)]) -> Result<Vec<(&'static str, MapInfo)>, BpfError> {
    let object = Object::parse(OBJECT).map_err(|error| BpfError::Object(error.to_string()))?;
    let sizes: HashMap<_, _> = sizes.iter().copied().collect();
    PINNED
        .into_iter()
        .map(|name| {
            let map = object
                .maps
                .get(name)
                .ok_or_else(|| BpfError::Object(format!("it has no map {name}")))?;
            let info = MapInfo {
                kind: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: sizes.get(name).copied().unwrap_or(map.max_entries()),
                flags: map.map_flags(),
            };
            Ok((name, info))
        })
        .collect()
}

/// Compares a pin with what is wanted. Another size is kept: the tables would have to be emptied,
/// which interrupts traffic, and a restart must not.
fn check(pins: &Pins, name: &'static str, wanted: &MapInfo) -> Result<(), BpfError> {
    let path = pins.map(name);
    let pinned = match sys::open_pin(&path, Access::ReadWrite) {
        Ok(pinned) => pinned,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BpfError::pin("open the pin", &path)(error)),
    };
    let info = sys::map_info(pinned.as_fd())
        .map_err(BpfError::call(name, "bpf(BPF_OBJ_GET_INFO_BY_FD)"))?;
    if (MapInfo { max_entries: wanted.max_entries, ..info }) != *wanted {
        return Err(BpfError::Layout { path, pinned: layout(&info), wanted: layout(wanted) });
    }
    if info.max_entries != wanted.max_entries {
        tracing::warn!(
            map = name,
            size = info.max_entries,
            asked = wanted.max_entries,
            "the pinned map has another size than asked for and is kept; to change it, run \
             `lb-agent cleanup` before the next start"
        );
    }
    Ok(())
}

fn layout(info: &MapInfo) -> String {
    let MapInfo { kind, key_size, value_size, max_entries: _, flags } = info;
    format!("type {kind}, key {key_size} bytes, value {value_size} bytes, flags {flags:#x}")
}

/// Before 5.11 maps count against RLIMIT_MEMLOCK; afterwards the limit does nothing, and neither
/// does a failure here.
fn raise_memory_limit() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(errno) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(%errno, "RLIMIT_MEMLOCK stays");
    }
}

fn load_error(pins: &Pins, error: EbpfError) -> BpfError {
    match error {
        EbpfError::MapError(MapError::CreateError { name, io_error }) => {
            if io_error.raw_os_error() == Some(libc::EPERM) {
                return BpfError::Permission {
                    call: "bpf(BPF_MAP_CREATE)",
                    object: format!("map {name}"),
                    source: io_error,
                };
            }
            BpfError::Map { map: name, reason: io_error.to_string(), kernel: kernel_release() }
        }
        EbpfError::MapError(MapError::PinError {
            name: Some(name),
            error: PinError::SyscallError(error),
        }) => BpfError::Pin { call: "pin the map", path: pins.map(&name), source: error.io_error },
        other => BpfError::Object(chain(&other)),
    }
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Tells what the verifier refuses from what we aren't allowed.
fn rejection(program: &str, error: ProgramError) -> BpfError {
    let ProgramError::LoadError { io_error: source, verifier_log } = error else {
        return BpfError::Object(format!("program {program}: {}", chain(&error)));
    };
    if source.raw_os_error() == Some(libc::EPERM) {
        let object = format!("program {program}");
        return BpfError::Permission { call: "bpf(BPF_PROG_LOAD)", object, source };
    }
    let log = verifier_log.to_string();
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    for line in &lines[lines.len().saturating_sub(VERIFIER_LINES)..] {
        tracing::debug!(program, "verifier: {line}");
    }
    // The statistics come last.
    let statistics = ["processed ", "verification time", "stack depth"];
    let reason =
        lines.iter().rev().find(|line| !statistics.iter().any(|word| line.starts_with(word)));
    BpfError::Rejected {
        program: program.to_owned(),
        reason: reason.map_or("it gives no reason", |line| line.trim()).to_owned(),
        source,
        kernel: kernel_release(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use aya_obj::VerifierLog;

    use super::*;

    #[test]
    fn the_configuration_is_found_among_a_programs_constants() {
        let config = abi::Config {
            host_netns_cookie: 7,
            snat_port_min: 1,
            snat_port_max: 2,
            flags: abi::ConfigFlags::POD_PACKETS,
        };
        let mut object = Object::parse(OBJECT).unwrap();
        let bytes = bytemuck::bytes_of(&config);
        object.patch_map_data(HashMap::from([("CONFIG", (bytes, true))])).unwrap();
        let constants =
            object.maps.iter().find(|(name, _)| name.ends_with(".rodata")).unwrap().1.data();
        assert_eq!(config_in(constants).unwrap(), Some(config));
        assert_eq!(config_in(&constants[1..]).unwrap(), None, "another version's");
    }

    #[test]
    fn an_error_tells_a_missing_capability_from_a_missing_feature() {
        let pins = Pins::at(Path::new("/bpffs"));
        let os = io::Error::from_raw_os_error;
        let map = |errno| {
            let name = "FLOWS4".to_owned();
            let error = MapError::CreateError { name, io_error: os(errno) };
            load_error(&pins, error.into())
        };
        let program = |errno, log: &str| {
            let verifier_log = VerifierLog::new(log.to_owned());
            rejection("tc_ingress", ProgramError::LoadError { io_error: os(errno), verifier_log })
        };
        let log = "0: R1=ctx()\nunknown func bpf_new#999\nprocessed 7 insns (limit 1000000)\n";
        for (error, expected) in [
            (map(libc::EPERM), vec!["BPF_MAP_CREATE", "map FLOWS4", "CAP_BPF", "CAP_NET_ADMIN"]),
            (map(libc::ENOMEM), vec!["map FLOWS4", "--max-flows", "6.1"]),
            (program(libc::EPERM, ""), vec!["BPF_PROG_LOAD", "tc_ingress", "CAP_PERFMON"]),
            (program(libc::EINVAL, log), vec!["tc_ingress", ": unknown func bpf_new#999", "6.1"]),
            (program(libc::EACCES, ""), vec!["tc_ingress", "it gives no reason", "debug"]),
        ] {
            let text = error.to_string();
            for part in expected {
                assert!(text.contains(part), "{part:?} is not in {text:?}");
            }
        }
    }
}
