//! The agent's own datapath on this kernel: every program passes the verifier, every hook takes its program, and
//! everything goes away again.

use super::boot;
use anyhow::{Context, Result, ensure};
use lb_agent::args::XdpMode;
use lb_agent::bpf::{Kernel, cleanup};
use lb_agent::config::Capacities;
use lb_agent::node::facts::Device;
use lb_agent::node::namespace::netns_cookie;
use lb_agent::run::datapath::Setup;
use std::collections::BTreeMap;
use std::path::Path;

/// The loopback device is there without being made, and takes every kind of program.
const DEVICE: (&str, u32) = ("lo", 1);

/// Loads the kernel object, attaches it everywhere, names each program with its verified instructions
/// (`vm: program NAME INSTRUCTIONS`), and removes it.
pub fn loads_attaches_and_leaves() -> Result<()> {
    let mut kernel = Kernel::open(&setup()?).context("load the programs")?;
    print_programs()?;
    kernel.attach_sockets().context("attach the socket hooks")?;
    let (name, index) = DEVICE;
    let device = Device {
        name: name.to_owned(),
        index,
        kind: String::new(),
        mtu: 65_536,
        ethernet: true,
        address4: None,
        address6: None,
    };
    kernel.sync_devices(&BTreeMap::from([(index, device)])).context("attach to a device")?;
    let status = kernel.attached().get(&index).context("the device is not among the attached")?;
    println!("vm: attached to {name} by {:?} and {:?}", status.tc, status.xdp);
    drop(kernel);
    cleanup::cleanup(Path::new(boot::BPFFS)).context("remove everything")?;
    let left: Vec<_> = aya::programs::loaded_programs().collect::<Result<_, _>>()?;
    ensure!(left.is_empty(), "{} programs are left after the cleanup", left.len());
    Ok(())
}

fn setup() -> Result<Setup> {
    Ok(Setup {
        bpffs: boot::BPFFS.into(),
        cgroup_root: boot::CGROUP_ROOT.into(),
        netns_cookie: netns_cookie().context("read the cookie of the network namespace")?,
        xdp: XdpMode::Generic,
        snat_ports: 1_024..=29_999,
        cluster_cidrs: Vec::new(),
        capacities: Capacities {
            services: 64,
            backends: 256,
            slots: 1_024,
            source_ranges: 64,
            flows: 512,
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
