//! A helper process inside a host: [`Peer`] is the lab's handle, [`process`] what runs inside.
//!
//! A process of its own rather than a thread, because the cgroup decides which socket hooks see a
//! socket, and a thread cannot be in another cgroup than its process.

mod client;
mod fragments;
mod load;
pub mod process;
pub mod protocol;
mod server;
mod tunnel;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::Lab;
use crate::binary::peer_binary;
use protocol::{
    Failure, FromPeer, Load, LoadReport, Order, Outcome, Page, Report, Request, Serve, ToPeer,
    Transport, Tunnel,
};

/// What an order may take beyond the patience of its requests.
const GRACE: Duration = Duration::from_secs(10);

type Waiting = Mutex<HashMap<u64, Sender<Result<Report, String>>>>;

/// A helper process inside a host. Several threads may use it at once. Ends with its handle.
pub struct Peer {
    host: String,
    child: Mutex<Child>,
    input: Mutex<Option<ChildStdin>>,
    waiting: Arc<Waiting>,
    next: AtomicU64,
}

impl Peer {
    pub(crate) fn start(lab: &Lab, host: &str) -> Result<Self> {
        let mut command = lab.daemon(host, peer_binary()?)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start lab-peer in {host}"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let waiting = Arc::<Waiting>::default();
        let output = output.context("lab-peer has no standard output")?;
        let readers = Arc::clone(&waiting);
        std::thread::spawn(move || deliver(output, &readers));
        Ok(Self {
            host: host.to_owned(),
            child: Mutex::new(child),
            input: Mutex::new(input),
            waiting,
            next: AtomicU64::new(1),
        })
    }

    /// Starts a server that answers with the host's name. Its number is for [`Peer::stop_server`].
    pub fn serve(&self, transport: Transport, address: IpAddr, port: u16) -> Result<u64> {
        self.serve_as(Serve { transport, address, port, name: self.host.clone() })
    }

    /// Starts a server.
    pub fn serve_as(&self, serve: Serve) -> Result<u64> {
        match self.order(Order::Serve(serve), GRACE)? {
            Report::Serving(number) => Ok(number),
            other => unexpected(&other),
        }
    }

    /// Stops a server and closes its connections.
    pub fn stop_server(&self, number: u64) -> Result<()> {
        self.done(Order::StopServer(number))
    }

    /// Sends requests; one outcome for each.
    pub fn request(&self, request: &Request) -> Result<Vec<Outcome>> {
        let patience = request.timeout.saturating_mul(2).saturating_mul(request.count);
        match self.order(Order::Request(request.clone()), patience + GRACE)? {
            Report::Outcomes(outcomes) => Ok(outcomes),
            other => unexpected(&other),
        }
    }

    /// Sends one request.
    pub fn ask(&self, request: &Request) -> Result<Outcome> {
        let one = request.clone().times(1);
        self.request(&one)?.pop().context("lab-peer returned no outcome")
    }

    /// Waits on the UDP socket that a request kept under `name` until the kernel says that it is of
    /// no use any more, and closes it. `ETIMEDOUT` if the kernel doesn't.
    pub fn await_failure(&self, name: &str, timeout: Duration) -> Result<Failure> {
        let order = Order::AwaitFailure { name: name.to_owned(), timeout };
        match self.order(order, timeout + GRACE)? {
            Report::Failed(failure) => Ok(failure),
            other => unexpected(&other),
        }
    }

    /// Closes the socket that a request kept under `name`.
    pub fn forget(&self, name: &str) -> Result<()> {
        self.done(Order::Forget(name.to_owned()))
    }

    /// Starts requests that go on until [`Peer::stop_load`] is called with the returned number.
    pub fn start_load(&self, load: Load) -> Result<u64> {
        match self.order(Order::StartLoad(load), GRACE)? {
            Report::Loading(number) => Ok(number),
            other => unexpected(&other),
        }
    }

    /// What a load has done so far.
    pub fn read_load(&self, number: u64) -> Result<LoadReport> {
        self.load_report(Order::ReadLoad(number), GRACE)
    }

    /// Ends a load, waits for its last requests, and returns what it has done.
    pub fn stop_load(&self, number: u64) -> Result<LoadReport> {
        self.load_report(Order::StopLoad(number), Load::PATIENCE + GRACE)
    }

    /// HTTP GET from inside the host.
    pub fn get(&self, address: SocketAddr, path: &str) -> Result<Page> {
        let timeout = Duration::from_secs(2);
        match self.order(Order::Get { address, path: path.to_owned(), timeout }, GRACE)? {
            Report::Page(page) => Ok(page),
            other => unexpected(&other),
        }
    }

    /// Carries the packets of a device without link header to other nodes, as long as the process lives.
    pub(crate) fn tunnel(&self, tunnel: Tunnel) -> Result<()> {
        self.done(Order::Tunnel(tunnel))
    }

    /// Lets the process outlive this handle: its servers go on until the lab is removed.
    pub fn detach(&self) -> Result<()> {
        self.done(Order::Detach)
    }

    fn done(&self, order: Order) -> Result<()> {
        match self.order(order, GRACE)? {
            Report::Done => Ok(()),
            other => unexpected(&other),
        }
    }

    fn load_report(&self, order: Order, patience: Duration) -> Result<LoadReport> {
        match self.order(order, patience)? {
            Report::Load(report) => Ok(report),
            other => unexpected(&other),
        }
    }

    fn order(&self, command: Order, patience: Duration) -> Result<Report> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = channel();
        lock(&self.waiting).insert(id, sender);
        let mut line = serde_json::to_vec(&ToPeer { id, command })?;
        line.push(b'\n');
        if let Some(input) = lock(&self.input).as_mut() {
            input.write_all(&line).with_context(|| format!("write to {}", self.name()))?;
        }
        let answer = self.wait(&receiver, patience);
        lock(&self.waiting).remove(&id);
        answer?.map_err(|error| anyhow!("{}: {error}", self.name()))
    }

    fn wait(
        &self,
        receiver: &Receiver<Result<Report, String>>,
        patience: Duration,
    ) -> Result<Result<Report, String>> {
        receiver
            .recv_timeout(patience)
            .map_err(|error| anyhow!("{} gave no answer within {patience:?}: {error}", self.name()))
    }

    fn name(&self) -> String {
        format!("lab-peer in {}", self.host)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The end of its input is the peer's sign to leave (or, detached, to stop listening to us).
        lock(&self.input).take();
        let mut child = lock(&self.child);
        let deadline = Instant::now() + Duration::from_millis(100);
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // Still there: detached, or busy. The removal of the lab kills it with its cgroup; the
        // thread collects it so that it does not stay as a zombie.
        let pid = child.id();
        drop(child);
        std::thread::spawn(move || {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap_or(-1));
            let _ = nix::sys::wait::waitpid(pid, None);
        });
    }
}

/// Hands each answer to whoever waits for it, until the peer's output ends.
fn deliver(output: ChildStdout, waiting: &Waiting) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { break };
        let Ok(FromPeer { id, answer }) = serde_json::from_str(&line) else { continue };
        if let Some(sender) = lock(waiting).remove(&id) {
            // Nobody waits any more after a timeout.
            let _ = sender.send(answer);
        }
    }
    // Wakes everybody who still waits, with an error.
    lock(waiting).clear();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unexpected<T>(report: &Report) -> Result<T> {
    bail!("lab-peer answered something else: {report:?}")
}
