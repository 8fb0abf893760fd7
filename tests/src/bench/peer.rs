//! The two ends of a measured connection, each a process inside its pod: a server, and a client that
//! measures several ways to it in turns.
//!
//! The client is one tight loop, so that what is measured is the kernel. A way is an address and the
//! cgroup that its sockets are made in: outside the agent's cgroup no socket hook runs.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::sample::{Samples, nanos};

/// Connections to this port are served one after the other.
pub(super) const SHORT_PORT: u16 = 9000;
/// Connections to this port are served at the same time.
pub(super) const LONG_PORT: u16 = 9001;
/// Printed by the server once it listens.
pub(super) const READY: &str = "ready";

/// Operations of one turn; fewer connects than the server's backlog (128 in std) has places.
pub(super) const CONNECTS: usize = 100;
const REQUESTS: usize = 100;
const PINGS: usize = 300;
/// No answer takes longer unless something is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the client measures.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Ways to the server; each is measured once in each round.
    pub ways: Vec<Way>,
    /// Rounds.
    pub rounds: usize,
}

/// One way to the server.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Way {
    /// Address of the server or of a Service in front of it.
    pub address: IpAddr,
    /// cgroup2 directory of the client's sockets.
    pub cgroup: PathBuf,
}

/// What the client found of one way.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Found {
    /// socket, connect and close; each sample is the mean of one turn.
    pub connects: Samples,
    /// The same; each operation.
    pub connect: Samples,
    /// socket, connect, one byte there and one back, and close; each operation.
    pub requests: Samples,
    /// One byte there and one back on an established connection; each operation.
    pub pings: Samples,
}

/// Serves until it is killed.
pub(super) fn serve() -> Result<()> {
    // Takes IPv4 too.
    let any = IpAddr::from([0_u16; 8]);
    let short = TcpListener::bind((any, SHORT_PORT)).context("listen")?;
    let long = TcpListener::bind((any, LONG_PORT)).context("listen")?;
    println!("{READY}");
    std::thread::spawn(move || {
        for stream in long.incoming().flatten() {
            std::thread::spawn(move || echo(stream));
        }
    });
    for stream in short.incoming().flatten() {
        echo(stream);
    }
    Ok(())
}

/// A client that resets its connection is no error.
fn echo(mut stream: TcpStream) {
    let mut byte = [0];
    let _ = stream.set_nodelay(true);
    while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
}

/// Measures the plan on standard input and prints a list of [`Found`].
pub(super) fn measure() -> Result<()> {
    let plan: Plan = serde_json::from_reader(std::io::stdin()).context("read the plan")?;
    let mut found: Vec<Found> = plan.ways.iter().map(|_| Found::default()).collect();
    let mut established = Vec::new();
    for way in &plan.ways {
        enter(way)?;
        established.push(connect(way, LONG_PORT)?);
        // Neighbours, routes and caches are warm before the first round.
        turn(way, established.last_mut().context("no connection")?, &mut Found::default())?;
    }
    for round in 0..plan.rounds {
        for place in 0..plan.ways.len() {
            // Everyone is first, last and everyone's successor equally often.
            let count = plan.ways.len();
            let index = if round % 2 == 0 { round + place } else { round + count - place } % count;
            let (Some(way), Some(stream), Some(found)) =
                (plan.ways.get(index), established.get_mut(index), found.get_mut(index))
            else {
                continue;
            };
            enter(way)?;
            turn(way, stream, found).with_context(|| format!("measure {}", way.address))?;
        }
    }
    serde_json::to_writer(std::io::stdout(), &found).context("print the results")
}

fn turn(way: &Way, established: &mut TcpStream, found: &mut Found) -> Result<()> {
    let started = Instant::now();
    let mut before = started;
    for _ in 0..CONNECTS {
        drop(connect(way, SHORT_PORT)?);
        let now = Instant::now();
        found.connect.0.push(nanos(now - before));
        before = now;
    }
    found.connects.0.push(nanos(before - started) / CONNECTS as u64);
    // Answered only after the server has taken all of them from its backlog.
    ping(&mut connect(way, SHORT_PORT)?)?;
    for _ in 0..REQUESTS {
        let started = Instant::now();
        ping(&mut connect(way, SHORT_PORT)?)?;
        found.requests.0.push(nanos(started.elapsed()));
    }
    for _ in 0..PINGS {
        let started = Instant::now();
        ping(established)?;
        found.pings.0.push(nanos(started.elapsed()));
    }
    Ok(())
}

/// Makes this process a member of the way's cgroup. Sockets stay in the one they were made in.
fn enter(way: &Way) -> Result<()> {
    let path = way.cgroup.join("cgroup.procs");
    let write = || File::options().write(true).open(&path)?.write_all(b"0");
    write().with_context(|| format!("move into the cgroup of {}", path.display()))
}

fn connect(way: &Way, port: u16) -> Result<TcpStream> {
    let to = SocketAddr::new(way.address, port);
    let stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    // Closed by a reset: otherwise thousands of ports would wait in TIME_WAIT.
    let reset = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream.as_fd(), sockopt::Linger, &reset).context("set SO_LINGER")?;
    Ok(stream)
}

fn ping(stream: &mut TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [1];
    stream.write_all(&byte).context("send")?;
    stream.read_exact(&mut byte).context("receive")
}
