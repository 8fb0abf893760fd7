//! The loaded socket hooks: real sockets in a cgroup and a network namespace of their own.
//!
//! Every endpoint is an address of the loopback device with a real server behind it. No files and no other
//! programs, so that it runs in the virtual machines too.

mod cases;
mod cgroup;
mod contract;
mod servers;

use crate::packet::network;
use crate::packet::programs::{FLOWS, Programs};
use crate::report::Outcome;
use anyhow::{Context, Result};
use aya::programs::{CgroupAttachMode, Program};
use cgroup::OwnCgroup;
use lb_agent::node::namespace::netns_cookie;
use lb_common::abi::Config;
use lb_common::family::{Family, V4, V6};
use lb_common::model::scene::{self, Role, port};
use lb_common::model::world::World;
use std::net::{IpAddr, SocketAddr};
use std::thread;

/// How an application names an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
    /// AF_INET6 with an IPv4 address in mapped form.
    Mapped,
}

/// The hooks attached to this process, and servers behind every endpoint.
struct Bench {
    style: Style,
    programs: Programs,
    world: World,
}

impl Bench {
    /// The address of `role` as the application names it.
    fn at(&self, role: Role, port: u16) -> SocketAddr {
        let ip = match self.style {
            Style::V4 => scene::ip::<V4>(role),
            Style::V6 => scene::ip::<V6>(role),
            Style::Mapped => match scene::ip::<V4>(role) {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
                v6 @ IpAddr::V6(_) => v6,
            },
        };
        SocketAddr::new(ip, port)
    }

    /// The endpoint of `role`, as its server names itself.
    fn endpoint(&self, role: Role) -> String {
        SocketAddr::new(self.at(role, 0).ip().to_canonical(), port::BACKEND).to_string()
    }
}

/// Runs every case in all three styles.
pub fn run_all() -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for style in [Style::V4, Style::V6, Style::Mapped] {
        let name = |case: &str| format!("socket: {style:?}: {case}");
        // The namespace is the thread's, and ends with it.
        let ran = thread::spawn(move || match style {
            Style::V4 | Style::Mapped => run::<V4>(style),
            Style::V6 => run::<V6>(style),
        });
        match ran.join() {
            Ok(Ok(results)) => {
                outcomes.extend(results.into_iter().map(|(case, result)| (name(case), result)))
            }
            Ok(Err(error)) => {
                outcomes.push((name("the bench is set up"), Err(format!("{error:#}"))));
            }
            Err(_) => {
                outcomes.push((name("the cases run to their end"), Err("one panicked".to_owned())));
            }
        }
    }
    outcomes
}

fn run<F: Family>(style: Style) -> Result<Vec<(&'static str, Result<(), String>)>> {
    network::enter()?;
    let roles = [
        Role::Node,
        Role::Management,
        Role::LocalPod,
        Role::RemotePod,
        Role::SecondRemotePod,
        Role::ThirdRemotePod,
        Role::Site,
        Role::UnknownPod,
    ];
    network::own(&roles.map(|role| scene::ip::<F>(role)))?;
    network::lead_out()?;
    let world = scene::world::<F>();
    let config = Config { host_netns_cookie: netns_cookie()?, ..Config::default() };
    let mut programs = Programs::load(&config, FLOWS, |name| {
        !name.starts_with("tc_") && !name.starts_with("xdp_")
    })?;
    programs.fill(&world)?;
    let cgroup = OwnCgroup::enter()?;
    let folder = cgroup.open()?;
    for (name, program) in programs.ebpf().programs_mut() {
        // A link always lets other programs be attached; asking for that is refused.
        let attached = match program {
            Program::CgroupSockAddr(program) => {
                program.attach(&folder, CgroupAttachMode::Single).map(drop)
            }
            Program::CgroupSock(program) => {
                program.attach(&folder, CgroupAttachMode::Single).map(drop)
            }
            _ => continue,
        };
        attached.with_context(|| format!("attach {name}"))?;
    }
    servers::start(&roles.map(|role| SocketAddr::new(scene::ip::<F>(role), port::BACKEND)))?;
    let mut bench = Bench { style, programs, world };
    let mut results = Vec::new();
    for (case, run) in cases::CASES {
        bench.programs.forget()?;
        bench.programs.fill(&bench.world)?;
        results.push((case, run(&mut bench).map_err(|error| format!("{error:#}"))));
    }
    Ok(results)
}
