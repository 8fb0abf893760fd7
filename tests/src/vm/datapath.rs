//! The agent's own datapath on this kernel: every program passes the verifier, every hook takes its program, and
//! everything goes away again.

use super::boot;
use anyhow::{Context, Error, Result, ensure};
use lb_agent::args::{PodPath, Switch, XdpMode};
use lb_agent::bpf::{Kernel, cleanup};
use lb_agent::config::Capacities;
use lb_agent::node::facts::{Device, Role};
use lb_agent::node::namespace::netns_cookie;
use lb_agent::run::datapath::Setup;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the kernel may take to free what nothing holds any more: an array of programs, and those in
/// it, are freed by a worker after the last pin has gone (`bpf_fd_array_map_clear`).
const EMPTIED: Duration = Duration::from_secs(20);

/// The loopback device is there without being made, and takes every kind of program.
const DEVICE: (&str, u32) = ("lo", 1);

/// Loads the kernel object, attaches it everywhere, names each program with its verified instructions
/// (`vm: program NAME INSTRUCTIONS`), and removes it.
pub fn loads_attaches_and_leaves() -> Result<()> {
    let mut kernel = Kernel::open(&setup()?).context("load the programs")?;
    kernel.serve_sctp().context("load the programs for SCTP")?;
    kernel.attach_sockets().context("attach the socket hooks")?;
    let (name, index) = DEVICE;
    let device = Device {
        role: Role::External,
        name: name.to_owned(),
        index,
        kind: String::new(),
        mtu: 65_536,
        ethernet: true,
        uplink: true,
        address4: None,
        address6: None,
    };
    for role in [Role::External, Role::Pod] {
        let device = Device { role, ..device.clone() };
        kernel.sync_devices(&BTreeMap::from([(index, device)])).context("attach to a device")?;
        let status =
            kernel.attached().get(&index).context("the device is not among the attached")?;
        println!("vm: attached to {name} by {:?} and {:?}", status.tc, status.xdp);
    }
    print_programs()?;
    drop(kernel);
    cleanup::cleanup(Path::new(boot::BPFFS)).context("remove everything")?;
    let emptied = Instant::now() + EMPTIED;
    loop {
        let mut left = 0;
        for program in aya::programs::loaded_programs() {
            match program.map_err(Error::from) {
                Ok(_) => left += 1,
                // It went between its number and the look at it.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error).context("list the loaded programs"),
            }
        }
        if left == 0 {
            return Ok(());
        }
        let late = Instant::now() >= emptied;
        ensure!(!late, "{left} programs are left after the cleanup");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn is_gone(error: &Error) -> bool {
    let mut calls = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    calls.any(|call| call.kind() == io::ErrorKind::NotFound)
}

fn setup() -> Result<Setup> {
    Ok(Setup {
        bpffs: boot::BPFFS.into(),
        cgroup_root: boot::CGROUP_ROOT.into(),
        netns_cookie: netns_cookie().context("read the cookie of the network namespace")?,
        xdp: XdpMode::Generic,
        pod_path: PodPath::Socket,
        masquerade_all: false,
        traffic_counters: Switch::On,
        snat_ports: 1_024..=29_999,
        cluster_cidrs: Vec::new(),
        capacities: Capacities {
            services: 64,
            backends: 256,
            slots: 1_024,
            source_ranges: 64,
            flows: 512,
            traffic: 64,
        },
    })
}

/// Every program in this kernel is ours: nothing else runs here.
fn print_programs() -> Result<()> {
    let mut count = 0;
    for program in aya::programs::loaded_programs() {
        let program = program.context("list the loaded programs")?;
        let name = program.name_as_str().context("a program's name is no text")?;
        let instructions = program.verified_instruction_count().unwrap_or(0);
        println!("vm: program {name} {instructions}");
        count += 1;
    }
    ensure!(count > 0, "the kernel lists no program");
    Ok(())
}
