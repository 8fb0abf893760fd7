//! What runs inside the host: reads orders, carries each out on a thread of its own, answers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, Read, Write, stdin, stdout};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::dup2_stderr;

use super::client::{Socket, ask_many, await_failure};
use super::load::Running;
use super::protocol::{FromPeer, Order, Page, Report, ToPeer};
use super::server::Server;
use super::tunnel;

/// Largest page that [`Order::Get`] reads, in bytes.
const LARGEST_PAGE: u64 = 16 << 20;

#[derive(Default)]
struct State {
    next: u64,
    servers: HashMap<u64, Server>,
    loads: HashMap<u64, Running>,
    sockets: HashMap<String, Socket>,
    detached: bool,
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// Serves orders until standard input ends; then leaves, unless it was told to detach.
pub fn run() -> Result<()> {
    let state = Arc::new(Mutex::new(State::default()));
    for line in stdin().lock().lines() {
        let line = line.context("read an order")?;
        let ToPeer { id, command } = serde_json::from_str(&line).context("parse an order")?;
        let state = Arc::clone(&state);
        thread::spawn(move || {
            let answer = carry_out(&state, command).map_err(|error| format!("{error:#}"));
            say(&FromPeer { id, answer })
        });
    }
    while lock(&state).detached {
        thread::sleep(Duration::from_secs(3600));
    }
    Ok(())
}

fn say(answer: &FromPeer) -> Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut out = stdout().lock();
    out.write_all(&line)?;
    out.flush()?;
    Ok(())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn carry_out(state: &Mutex<State>, order: Order) -> Result<Report> {
    match order {
        Order::Serve(serve) => {
            let server = Server::start(serve)?;
            let mut state = lock(state);
            let number = state.number();
            state.servers.insert(number, server);
            Ok(Report::Serving(number))
        }
        Order::StopServer(number) => {
            let server = lock(state).servers.remove(&number);
            server.with_context(|| format!("no server {number}"))?.stop();
            Ok(Report::Done)
        }
        Order::Request(request) => {
            // Taken out while it is used, so that other orders need not wait for it.
            let mut kept = request.keep.as_ref().and_then(|name| lock(state).sockets.remove(name));
            let outcomes = ask_many(&request, &mut kept)?;
            if let (Some(name), Some(socket)) = (request.keep, kept) {
                lock(state).sockets.insert(name, socket);
            }
            Ok(Report::Outcomes(outcomes))
        }
        Order::AwaitFailure { name, timeout } => {
            let socket = lock(state).sockets.remove(&name);
            let socket = socket.with_context(|| format!("no kept socket `{name}`"))?;
            Ok(Report::Failed(await_failure(&socket, timeout)?))
        }
        Order::Forget(name) => {
            lock(state)
                .sockets
                .remove(&name)
                .with_context(|| format!("no kept socket `{name}`"))?;
            Ok(Report::Done)
        }
        Order::StartLoad(load) => {
            let running = Running::start(load)?;
            let mut state = lock(state);
            let number = state.number();
            state.loads.insert(number, running);
            Ok(Report::Loading(number))
        }
        Order::ReadLoad(number) => {
            let state = lock(state);
            let running = state.loads.get(&number).with_context(|| format!("no load {number}"))?;
            Ok(Report::Load(running.report()))
        }
        Order::StopLoad(number) => {
            let running = lock(state).loads.remove(&number);
            Ok(Report::Load(running.with_context(|| format!("no load {number}"))?.stop()))
        }
        Order::Get { address, path, timeout } => Ok(Report::Page(get(address, &path, timeout)?)),
        Order::Tunnel(tunnel) => {
            tunnel::start(tunnel)?;
            Ok(Report::Done)
        }
        Order::Detach => {
            // Whoever started us may have its standard error read to the end (`lab up | less`).
            let nobody = File::options().write(true).open("/dev/null").context("open /dev/null")?;
            dup2_stderr(nobody).context("redirect standard error")?;
            lock(state).detached = true;
            Ok(Report::Done)
        }
    }
}

/// HTTP/1.0, because then the body ends with the connection.
fn get(address: SocketAddr, path: &str, timeout: Duration) -> Result<Page> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut bytes = Vec::new();
    let read = stream.take(LARGEST_PAGE).read_to_end(&mut bytes);
    read.with_context(|| format!("read http://{address}{path}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no HTTP header")?;
    ensure!(head.starts_with("HTTP/1."), "not an HTTP answer: {head}");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok(Page {
        status: status.context("the answer has no status code")?,
        headers: head.lines().skip(1).map(str::to_owned).collect(),
        body: body.to_owned(),
    })
}
