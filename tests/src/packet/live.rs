//! Answers to frames whose checksum is still to be filled in.
//!
//! `BPF_PROG_TEST_RUN` can't make such frames; a sender at the other end of a veth pair does (its device
//! offers to fill in checksums, and never has to). The kernel treats them differently where a program
//! changes their length.

use super::bench::Bench;
use super::network;
use crate::report::Outcome;
use anyhow::{Context, Result, anyhow, ensure};
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::scene::{self, Role, at, device, port};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::gettid;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// More than any answer of this machine takes.
const PATIENCE: Duration = Duration::from_secs(3);

type Case = (&'static str, fn(&Client) -> Result<()>);

const CASES: [Case; 3] = [
    ("a client's TCP is refused by a Service without endpoints", tcp),
    ("a client's UDP is refused by a Service without endpoints", udp),
    ("a client learns the MTU of the path to the endpoint", path_mtu),
];

/// Where the client's sockets go.
struct Client {
    empty: SocketAddr,
    overlay: SocketAddr,
    any: SocketAddr,
}

/// Runs the cases in two namespaces of their own, node and client.
pub(super) fn outcomes<F: AnswerFormat>(name: &dyn Fn(&str) -> String) -> Vec<Outcome> {
    match thread::scope(|scope| scope.spawn(node::<F>).join()) {
        Ok(Ok(results)) => results.into_iter().map(|(case, result)| (name(case), result)).collect(),
        Ok(Err(error)) => vec![(name("a client is set up"), Err(format!("{error:#}")))],
        Err(_) => vec![(name("the client's cases run to their end"), Err("panic".to_owned()))],
    }
}

/// The node's side: the programs on the uplink, whose other end moves to the client.
fn node<F: AnswerFormat>() -> Result<Vec<(&'static str, Result<(), String>)>> {
    network::enter()?;
    let mut bench = Bench::<F>::new()?;
    let (uplink, _) = network::names(device::UPLINK);
    bench.programs.attach(&uplink, ["tc_ingress", "tc_egress"])?;
    let (tell_thread, thread_is) = mpsc::channel();
    let (tell_ready, is_ready) = mpsc::channel();
    thread::scope(|scope| {
        let client = scope.spawn(move || -> Result<_> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
            tell_thread.send(gettid())?;
            is_ready.recv().context("the device didn't come")?;
            client::<F>()
        });
        let thread = thread_is.recv().context("the client has no namespace")?;
        network::hand_over(device::UPLINK, thread.as_raw().unsigned_abs())?;
        tell_ready.send(())?;
        client.join().unwrap_or_else(|_| Err(anyhow!("the client panicked")))
    })
}

fn client<F: AnswerFormat>() -> Result<Vec<(&'static str, Result<(), String>)>> {
    let frontends = scene::ip::<F>(Role::External);
    network::settle(device::UPLINK, &[scene::ip::<F>(Role::Client)], &[frontends])?;
    let any = if F::HAS_HEADER_CHECKSUM { "0.0.0.0:0" } else { "[::]:0" };
    let client = Client {
        empty: at::<F>(Role::External, port::EMPTY),
        overlay: at::<F>(Role::External, port::OVERLAY),
        any: any.parse()?,
    };
    // A device that was just set up may drop its first packets.
    let before = Instant::now();
    while udp(&client).is_err() && before.elapsed() < PATIENCE * 2 {}
    Ok(CASES
        .into_iter()
        .map(|(case, run)| (case, run(&client).map_err(|error| format!("{error:#}"))))
        .collect())
}

fn tcp(client: &Client) -> Result<()> {
    // Between namespaces of one machine the first answer may arrive while the client is still sending,
    // and IPv6 then waits for the answer to the second SYN (LockDroppedIcmps), a second later.
    let error = TcpStream::connect_timeout(&client.empty, PATIENCE).err().context("connected")?;
    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
    Ok(())
}

fn udp(client: &Client) -> Result<()> {
    let socket = UdpSocket::bind(client.any)?;
    socket.set_read_timeout(Some(PATIENCE / 6))?;
    socket.connect(client.empty)?;
    socket.send(b"anyone?")?;
    let error = socket.recv(&mut [0; 16]).err().context("somebody answered")?;
    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
    Ok(())
}

fn path_mtu(client: &Client) -> Result<()> {
    let socket = UdpSocket::bind(client.any)?;
    socket.connect(client.overlay)?;
    // Fills the client's own link, 1500 bytes, in the family with the longer header.
    socket.send(&[7; 1500 - 40 - 8]).context("send")?;
    let before = Instant::now();
    while before.elapsed() < PATIENCE {
        let learned = if client.any.is_ipv4() {
            getsockopt(&socket, sockopt::IpMtu).context("getsockopt(IP_MTU)")? == 1450
        } else {
            packets_too_big()? > 0
        };
        if learned {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err(anyhow!("it learned nothing"))
}

/// ICMPv6 messages "packet too big" that this thread's namespace accepted.
fn packets_too_big() -> Result<u32> {
    let counters = std::fs::read_to_string("/proc/thread-self/net/snmp6").context("read snmp6")?;
    let line = counters.lines().find_map(|line| line.strip_prefix("Icmp6InPktTooBigs"));
    Ok(line.context("snmp6 has no Icmp6InPktTooBigs")?.trim().parse()?)
}
