//! Who asks whom while the picture is taken: the manifests of deploy/examples, at paces that differ.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Result;
use lb_lab::{Dual, Family, LOAD_BALANCER, Lab, Load, Request, Transport};

/// As long as rows remember, and a little more.
const SECONDS: u32 = 36;

/// Requests from one host to one address, in waves.
struct Wave {
    from: &'static str,
    to: To,
    port: u16,
    transport: Transport,
    family: Family,
    workers: u32,
    pause_ms: u64,
    answer: u32,
    /// Every so many seconds, so many after the first, for so many.
    every: u32,
    after: u32,
    lasts: u64,
}

#[derive(Clone, Copy)]
enum To {
    /// 10.96.0.N and fd00:96::N.
    ClusterIp(u8),
    LoadBalancer,
    Node(&'static str),
}

impl To {
    fn address(self, lab: &Lab) -> Result<Dual> {
        Ok(match self {
            Self::ClusterIp(last) => Dual::new(
                Ipv4Addr::new(10, 96, 0, last),
                Ipv6Addr::new(
                    0xfd00,
                    0x96,
                    0,
                    0,
                    0,
                    0,
                    0,
                    u16::from_str_radix(&last.to_string(), 16)?,
                ),
            ),
            Self::LoadBalancer => LOAD_BALANCER,
            Self::Node(name) => lab.host(name)?.address,
        })
    }
}

const QUIET: Wave = Wave {
    from: "pod-a1",
    to: To::ClusterIp(11),
    port: 80,
    transport: Transport::Tcp,
    family: Family::V4,
    workers: 1,
    pause_ms: 20,
    answer: 2_000,
    every: SECONDS,
    after: 0,
    lasts: SECONDS as u64,
};

const WAVES: [Wave; 12] = [
    Wave {
        from: "client",
        to: To::Node("node-a"),
        port: 30_080,
        pause_ms: 10,
        answer: 60_000,
        ..QUIET
    },
    Wave {
        from: "client",
        to: To::Node("node-a"),
        port: 30_080,
        workers: 4,
        pause_ms: 15,
        answer: 60_000,
        every: 9,
        after: 2,
        lasts: 4,
        ..QUIET
    },
    Wave {
        from: "client",
        to: To::Node("node-a"),
        port: 30_080,
        family: Family::V6,
        pause_ms: 30,
        answer: 20_000,
        ..QUIET
    },
    Wave {
        from: "client",
        to: To::LoadBalancer,
        workers: 2,
        pause_ms: 25,
        every: 6,
        after: 1,
        lasts: 5,
        ..QUIET
    },
    Wave {
        from: "client",
        to: To::LoadBalancer,
        transport: Transport::Udp,
        answer: 500,
        pause_ms: 50,
        ..QUIET
    },
    Wave { pause_ms: 12, ..QUIET },
    Wave { from: "pod-a2", workers: 3, every: 12, after: 5, lasts: 6, ..QUIET },
    Wave { from: "pod-a2", family: Family::V6, pause_ms: 40, ..QUIET },
    Wave { from: "pod-a3", transport: Transport::Udp, answer: 500, pause_ms: 60, ..QUIET },
    Wave { from: "pod-a3", to: To::ClusterIp(15), pause_ms: 80, ..QUIET },
    // What is not served: no endpoints, and a port that the Service doesn't have.
    Wave {
        from: "pod-a3",
        to: To::ClusterIp(19),
        pause_ms: 150,
        every: 8,
        after: 3,
        lasts: 5,
        ..QUIET
    },
    Wave { from: "pod-a1", port: 81, pause_ms: 400, ..QUIET },
];

/// Sends them all.
pub fn run(lab: &Lab) -> Result<()> {
    for second in 0..SECONDS {
        for wave in WAVES.iter().filter(|wave| second % wave.every == wave.after) {
            start(lab, wave)?;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

fn start(lab: &Lab, wave: &Wave) -> Result<()> {
    let to = wave.to.address(lab)?.of(wave.family);
    let request = Request::new(wave.transport, to, wave.port).payloads(200, wave.answer);
    let load = Load {
        workers: wave.workers,
        pause: Duration::from_millis(wave.pause_ms),
        at_most: Duration::from_secs(wave.lasts),
        ..Load::new(request)
    };
    lab.peer(wave.from)?.start_load(load).map(drop)
}
