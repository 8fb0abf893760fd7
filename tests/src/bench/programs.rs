//! Nanoseconds per packet of the tc and XDP programs, by `BPF_PROG_TEST_RUN`.
//!
//! The programs are loaded once more on the maps that the agent's own code has filled, so that lookups
//! meet ten thousand Services. Runs inside a node of the lab, whose routes they ask for.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::maps::HashMap;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use bytemuck::{bytes_of, pod_read_unaligned};
use lb_agent::bpf::pins::Pins;
use lb_agent::cluster::convert::{service, slice};
use lb_agent::cluster::snapshot::Change;
use lb_common::abi::{Config, Device, DeviceFlags, map};
use lb_common::model::frame::{Segment, Transport};
use lb_lab::topology::CLIENT;
use lb_lab::{Family, Lab};
use serde_json::json;

use super::report::Report;
use super::sample::{Samples, time};
use super::scale::NODE;

/// Interface index in `struct __sk_buff` of 192 bytes (include/uapi/linux/bpf.h).
const SK_BUFF: usize = 192;
const SK_BUFF_IFINDEX: usize = 40;
/// Single runs of one case, each with a frame of its own.
const RUNS: u16 = 3_000;
/// Runs within one call, for frames that the program leaves as they are.
const REPEATED: u32 = 200_000;
/// ACK, and SYN.
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
/// First port of the clients.
const PORTS: u16 = 20_000;
const BACKEND_PORT: u16 = 8_080;
/// `TC_ACT_UNSPEC`, `TC_ACT_REDIRECT`, `XDP_PASS` and `XDP_REDIRECT`.
const TC_NEXT: i32 = -1;
const TC_REDIRECT: i32 = 7;
const XDP_PASS: i32 = 2;
const XDP_REDIRECT: i32 = 4;

/// Where a Service's endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Local,
    Remote,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Local, Self::Remote];

    /// Pod and node of the endpoint.
    fn endpoint(self) -> (&'static str, &'static str) {
        match self {
            Self::Local => ("pod-c1", NODE),
            Self::Remote => ("pod-a1", "node-a"),
        }
    }

    /// An external address of the Service.
    fn address(self, family: Family) -> IpAddr {
        let number = match self {
            Self::Local => 90,
            Self::Remote => 91,
        };
        match family {
            Family::V4 => [198, 51, 100, number].into(),
            Family::V6 => [0x2001, 0xdb8, 0x51, 0, 0, 0, 0, number.into()].into(),
        }
    }
}

/// The Services that the packets go to, as changes of the cluster.
pub(super) fn services(lab: &Lab) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for (number, side) in (1..).zip(Side::BOTH) {
        let (pod, node) = side.endpoint();
        let name = format!("packets-{number}");
        let externals = Family::BOTH.map(|family| side.address(family));
        let ips = [format!("10.96.91.{number}"), format!("fd00:96::91:{number}")];
        let object = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"clusterIP": ips[0], "clusterIPs": ips, "externalIPs": externals,
                     "ports": [{"port": 80, "targetPort": BACKEND_PORT}]},
        }))?;
        changes.push(Change::Service(service::service(&object).value.context("no Service")?));
        for family in Family::BOTH {
            let object = serde_json::from_value(json!({
                "metadata": {"name": format!("{name}-{family}"),
                             "labels": {"kubernetes.io/service-name": name}},
                "addressType": family.to_string(), "ports": [{"name": "", "port": BACKEND_PORT}],
                "endpoints": [{"addresses": [lab.host(pod)?.address.of(family)],
                               "nodeName": node}],
            }))?;
            changes.push(Change::Slice(slice::slice(&object).value.context("no slice")?));
        }
    }
    Ok(changes)
}

/// Measures and reports; the datapath under `bpffs` knows [`services`] and the device `uplink`.
pub(super) fn measure(
    lab: &Lab,
    bpffs: &Path,
    config: &Config,
    uplink: u32,
    report: &mut Report,
) -> Result<()> {
    eprintln!("bench: the packet programs");
    neighbours(lab)?;
    let mut programs = Programs::load(bpffs, config, uplink)?;
    programs.allow_xdp()?;
    report.section(
        "Packet programs",
        &format!(
            "BPF_PROG_TEST_RUN with 60 or 80 byte TCP frames, on maps with ten thousand Services. Passing \
             packets: {REPEATED} repetitions in one call. Others are rewritten, so each is a call of its \
             own with its own flow: median of {RUNS}, less what a frame that is no IP costs in the same \
             way (it is the floor; clock and cold caches make single runs dearer than repeated ones)."
        ),
    );
    let mut rows = Vec::new();
    for hook in Hook::ALL {
        let arp = arp();
        let single = programs.single(hook, |_| arp.clone(), hook.next())?.median();
        let repeated = programs.repeated(hook, &arp, hook.next())?;
        for family in Family::BOTH {
            let row = |what: &str, nanos: u64, floor: u64| {
                let name = format!("{}, {family}: {what}", hook.name());
                [name, time(nanos.saturating_sub(floor)), time(floor)]
            };
            let strange = segment(family, Side::Local, 1, ACK);
            let strange = strange.between(strange.source, strange.source, 64).frame();
            let miss = programs.repeated(hook, &strange, hook.next())?;
            rows.push(row("unknown traffic", miss, repeated));
            for side in Side::BOTH {
                for Case { name, frame, action, .. } in cases(lab, hook, family, side)? {
                    let samples = programs.single(hook, frame, action)?;
                    rows.push(row(&name, samples.median(), single));
                }
            }
        }
    }
    report.table(["Program", "per packet", "floor"], &rows);
    Ok(())
}

/// A frame that is no IP.
pub(super) fn arp() -> Vec<u8> {
    [&[0xff; 6][..], &[2, 0, 0, 0, 0, 2, 8, 6], &[0; 46]].concat()
}

/// What XDP needs to know of the next hops.
pub(super) fn neighbours(lab: &Lab) -> Result<()> {
    let mut lines = String::new();
    for host in ["node-a", "client"] {
        for address in lab.host(host)?.address.both() {
            lines += &format!(
                "neigh replace {address} dev eth0 lladdr 02:00:00:00:00:0a nud permanent\n"
            );
        }
    }
    lab.ip(NODE, &lines)
}

/// A packet of the client numbered `client`.
fn segment(family: Family, side: Side, client: u16, flags: u8) -> Segment {
    let source = SocketAddr::new(CLIENT.of(family), PORTS + client);
    let destination = SocketAddr::new(side.address(family), 80);
    Segment::new(source, destination, Transport::Tcp(flags))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Ingress,
    Egress,
    Xdp,
}

impl Hook {
    pub(super) const ALL: [Self; 3] = [Self::Ingress, Self::Egress, Self::Xdp];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ingress => "tc_ingress",
            Self::Egress => "tc_egress",
            Self::Xdp => "xdp_ingress",
        }
    }

    /// The action that lets a packet pass to the stack.
    pub(super) fn next(self) -> i32 {
        match self {
            Self::Ingress | Self::Egress => TC_NEXT,
            Self::Xdp => XDP_PASS,
        }
    }
}

/// Frames that a program does the same with.
pub(super) struct Case {
    pub name: String,
    /// The frame of each client.
    pub frame: Box<dyn Fn(u16) -> Vec<u8>>,
    /// What the program answers.
    pub action: i32,
    /// Whether each frame opens a flow, which is known when it comes again.
    pub opens: bool,
}

/// The cases of one Service. tc_ingress comes first: it opens the flows of the others.
pub(super) fn cases(lab: &Lab, hook: Hook, family: Family, side: Side) -> Result<Vec<Case>> {
    let place = match side {
        Side::Local => "endpoint here",
        Side::Remote => "endpoint on another node",
    };
    let pod = SocketAddr::new(lab.host(side.endpoint().0)?.address.of(family), BACKEND_PORT);
    let request = |name: String, flags, action| Case {
        name,
        frame: Box::new(move |client| segment(family, side, client, flags).frame()),
        action,
        opens: flags == SYN,
    };
    let known = format!("known flow, {place}");
    Ok(match (hook, side) {
        (Hook::Ingress, _) => {
            let action = if side == Side::Local { TC_NEXT } else { TC_REDIRECT };
            vec![request(format!("new flow, {place}"), SYN, action), request(known, ACK, action)]
        }
        (Hook::Egress, Side::Local) => {
            let name = format!("reply, {place}");
            let frame = Box::new(move |client| {
                let to = segment(family, side, client, ACK).source;
                Segment::new(pod, to, Transport::Tcp(ACK)).frame()
            });
            vec![Case { name, frame, action: TC_NEXT, opens: false }]
        }
        // Replies of other nodes' endpoints come in, and are redirected.
        (Hook::Egress, Side::Remote) => Vec::new(),
        (Hook::Xdp, Side::Local) => vec![request(format!("{known}: left to tc"), ACK, XDP_PASS)],
        (Hook::Xdp, Side::Remote) => vec![request(known, ACK, XDP_REDIRECT)],
    })
}

pub(super) struct Programs {
    ebpf: Ebpf,
    context: [u8; SK_BUFF],
}

impl Programs {
    pub(super) fn load(bpffs: &Path, config: &Config, uplink: u32) -> Result<Self> {
        let pins = Pins::at(bpffs).maps();
        let entries =
            std::fs::read_dir(&pins).with_context(|| format!("list {}", pins.display()))?;
        let names: Vec<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into()).collect();
        let paths: Vec<_> = names.iter().map(|name| (name, pins.join(name))).collect();
        let mut loader = EbpfLoader::new();
        loader.override_global("CONFIG", bytes_of(config), true);
        for (name, path) in &paths {
            loader.map_pin_path(name, path);
        }
        let mut ebpf = loader.load(lb_agent::bpf::OBJECT).context("load the kernel object")?;
        for hook in [Hook::Ingress, Hook::Egress] {
            let program = ebpf.program_mut(hook.name()).context("no such program")?;
            <&mut SchedClassifier>::try_from(program)?.load().context("load a tc program")?;
        }
        let program = ebpf.program_mut(Hook::Xdp.name()).context("no such program")?;
        <&mut Xdp>::try_from(program)?.load().context("load the XDP program")?;
        let mut context = [0; SK_BUFF];
        for (to, from) in context.iter_mut().skip(SK_BUFF_IFINDEX).zip(uplink.to_ne_bytes()) {
            *to = from;
        }
        Ok(Self { ebpf, context })
    }

    /// Says of every device that XDP may send to it, as if its driver could.
    pub(super) fn allow_xdp(&mut self) -> Result<()> {
        let map = self.ebpf.map_mut(map::DEVICES).context("the object has no DEVICES")?;
        let mut devices = HashMap::<_, u32, [u8; size_of::<Device>()]>::try_from(map)?;
        let known: Vec<_> = devices.iter().collect::<Result<_, _>>().context("list DEVICES")?;
        for (index, value) in known {
            let mut device: Device = pod_read_unaligned(&value);
            device.flags |= DeviceFlags::XDP;
            let value: [u8; size_of::<Device>()] = bytemuck::cast(device);
            devices.insert(index, value, 0).context("write to DEVICES")?;
        }
        Ok(())
    }

    /// One run per frame.
    fn single(&self, hook: Hook, frame: impl Fn(u16) -> Vec<u8>, action: i32) -> Result<Samples> {
        let runs = (0..RUNS).map(|client| self.run(hook, &frame(client), 1, action));
        Ok(Samples(runs.collect::<Result<_>>()?))
    }

    /// Mean of many runs on one frame.
    fn repeated(&self, hook: Hook, frame: &[u8], action: i32) -> Result<u64> {
        self.run(hook, frame, REPEATED, action)
    }

    pub(super) fn run(&self, hook: Hook, frame: &[u8], repeat: u32, action: i32) -> Result<u64> {
        let program = self.ebpf.program(hook.name()).context("no such program")?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = repeat;
        let result = match hook {
            Hook::Ingress | Hook::Egress => {
                options.ctx_in = Some(&self.context);
                <&SchedClassifier>::try_from(program)?.test_run(options)
            }
            Hook::Xdp => <&Xdp>::try_from(program)?.test_run(options),
        };
        let result = result.with_context(|| format!("BPF_PROG_TEST_RUN of {}", hook.name()))?;
        let found = result.return_value as i32;
        ensure!(
            found == action,
            "{} answered {found} instead of {action} to {frame:02x?}",
            hook.name()
        );
        Ok(u64::try_from(result.duration.as_nanos()).unwrap_or(u64::MAX))
    }
}
