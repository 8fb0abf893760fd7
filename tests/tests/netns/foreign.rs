//! Programs of somebody else on the devices of a lab: they see packets and change nothing.

use std::fs::File;
use std::os::fd::OwnedFd;

use aya::programs::tc::TcAttachOptions;
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, LinkOrder, ProgramInfo, SchedClassifier, TcAttachType, Xdp,
};
use aya::sys::Stats;
use aya::{Ebpf, EbpfLoader};
use nix::sched::{CloneFlags, setns};

use crate::stage::Stage;

/// A foreign program that counts how often it runs.
pub struct Foreign {
    program: u32,
    // While this is open the kernel counts.
    _statistics: OwnedFd,
    _object: Ebpf,
}

/// Our own object with empty tables: its programs pass every packet on.
fn object() -> Ebpf {
    let mut loader = EbpfLoader::new();
    for map in ["FLOWS4", "FLOWS6", "FRONTENDS", "RECORDS", "SLOTS", "BACKENDS", "SERVICES"] {
        loader.map_max_entries(map, 16);
    }
    loader.load(lb_agent::bpf::OBJECT).unwrap()
}

impl Foreign {
    /// A filter of the clsact qdisc, behind every TCX program.
    pub fn filter(stage: &Stage, host: &str, device: &str, direction: &str) -> Self {
        let statistics = aya::sys::enable_stats(Stats::RunTime).unwrap();
        let mut object = object();
        let program = object.program_mut("tc_egress").unwrap();
        let program: &mut SchedClassifier = program.try_into().unwrap();
        program.load().unwrap();
        let pin = stage.lab().bpffs(host).join(format!("foreign-{direction}"));
        program.pin(&pin).unwrap();
        let id = program.info().unwrap().id();
        // There already for the second direction.
        let _ = stage.lab().exec(host, &["tc", "qdisc", "add", "dev", device, "clsact"]);
        let mut command = stage.lab().command(host, "tc").unwrap();
        command.args(["filter", "add", "dev", device, direction, "prio", "7", "bpf", "da"]);
        let output = command.arg("object-pinned").arg(&pin).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { program: id, _statistics: statistics, _object: object }
    }

    /// A TCX program, behind those that are there.
    pub fn tcx(stage: &Stage, host: &str, device: &str, direction: TcAttachType) -> Self {
        let statistics = aya::sys::enable_stats(Stats::RunTime).unwrap();
        let namespace = File::open(stage.lab().namespace(host).unwrap()).unwrap();
        let device = device.to_owned();
        // A thread of its own: it is in the other namespace for the rest of its life.
        let attach = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let mut object = object();
            let program = object.program_mut("tc_egress").unwrap();
            let program: &mut SchedClassifier = program.try_into().unwrap();
            program.load().unwrap();
            let order = TcAttachOptions::TcxOrder(LinkOrder::last());
            program.attach_with_options(&device, direction, order).unwrap();
            (program.info().unwrap().id(), object)
        };
        let (program, object) = std::thread::spawn(attach).join().unwrap();
        Self { program, _statistics: statistics, _object: object }
    }

    /// A program at a socket hook of a host, beside ours.
    pub fn at_sockets(stage: &Stage, host: &str) -> Self {
        let statistics = aya::sys::enable_stats(Stats::RunTime).unwrap();
        let cgroup = File::open(stage.lab().cgroup(host).unwrap()).unwrap();
        let mut object = object();
        let program = object.program_mut("connect4").unwrap();
        let program: &mut CgroupSockAddr = program.try_into().unwrap();
        program.load().unwrap();
        // A link is always one of several.
        program.attach(cgroup, CgroupAttachMode::Single).unwrap();
        let id = program.info().unwrap().id();
        Self { program: id, _statistics: statistics, _object: object }
    }

    /// How many packets it has seen.
    pub fn runs(&self) -> u64 {
        let mut programs = aya::programs::loaded_programs().flatten();
        programs.find(|info: &ProgramInfo| info.id() == self.program).unwrap().run_count()
    }

    /// A native XDP program on each device; it stays as long as the device.
    pub fn xdp(stage: &Stage, host: &str, devices: &[&str]) {
        let mut object = object();
        let program: &mut Xdp = object.program_mut("xdp_ingress").unwrap().try_into().unwrap();
        program.load().unwrap();
        let pin = stage.lab().bpffs("node-a").join("foreign-xdp");
        program.pin(&pin).unwrap();
        for device in devices {
            let mut command = stage.lab().command(host, "ip").unwrap();
            command.args(["link", "set", "dev", device, "xdpdrv", "pinned"]).arg(&pin);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
