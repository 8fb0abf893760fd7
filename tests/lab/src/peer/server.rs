//! Servers inside a host: they answer with their name and the address they saw.
//!
//! A request is a line `lab <nonce> <payload> <answer payload> <fragments>` (lengths in bytes; the last
//! is how the answer is fragmented, and may be left out) followed by the payload; an answer is a [`Greeting`]
//! as a JSON line followed by its payload. TCP connections may carry several, UDP datagrams exactly one.
//! For people a TCP server also answers an HTTP GET.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{Backlog, listen, setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};

use super::fragments;
use super::protocol::{Fragments, Serve, Transport};

/// How often a waiting thread looks whether it shall stop.
const TICK: Duration = Duration::from_millis(50);
/// A connection without requests for this long is closed.
const IDLE: Duration = Duration::from_secs(300);
/// A request that began must be complete within this time.
const STALL: Duration = Duration::from_secs(10);
/// Largest payload in bytes.
pub(super) const LARGEST_PAYLOAD: usize = 64 << 20;
/// Largest HTTP header in bytes.
const LARGEST_HEADER: u64 = 16 << 10;
/// Largest UDP datagram in bytes.
pub(super) const LARGEST_DATAGRAM: usize = 65_535;

/// First line of an answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Greeting {
    /// That of the request: a late answer is told from the right one by it.
    pub nonce: u64,
    /// The server's name.
    pub server: String,
    /// The client's address as the server saw it.
    pub seen: SocketAddr,
    /// The request's payload arrived as it was sent.
    pub intact: bool,
    /// Bytes of payload that follow.
    pub payload: usize,
}

/// First line of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Repeated in the answer.
    pub nonce: u64,
    /// Bytes of payload that follow.
    pub payload: usize,
    /// Bytes of payload wanted in the answer.
    pub answer: usize,
    /// How the answer is sent.
    pub fragments: Fragments,
}

impl Header {
    /// The line, with its end.
    pub fn line(&self) -> String {
        let Self { nonce, payload, answer, fragments } = self;
        let word = match fragments {
            Fragments::AsTheKernelDoes => "".to_owned(),
            ours => format!(" {ours:?}"),
        };
        format!("lab {nonce} {payload} {answer}{word}\n")
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("lab ")?.trim_end().split(' ');
        let nonce = words.next()?.parse().ok()?;
        let mut length = || words.next()?.parse().ok().filter(|&n| n <= LARGEST_PAYLOAD);
        let (payload, answer) = (length()?, length()?);
        let fragments = match words.next() {
            Some(word) => Fragments::OURS.into_iter().find(|ours| format!("{ours:?}") == word)?,
            None => Fragments::AsTheKernelDoes,
        };
        Some(Self { nonce, payload, answer, fragments })
    }
}

/// The bytes that every payload of this length must be.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..=250_u8).cycle().take(length).collect()
}

/// A running server.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Binds and starts to answer.
    pub fn start(serve: Serve) -> Result<Self> {
        let Serve { transport, address, port, name } = serve;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let context = || format!("bind {transport} {}", SocketAddr::new(address, port));
        let thread = match transport {
            Transport::Tcp => {
                let listener = TcpListener::bind((address, port)).with_context(context)?;
                // As many as the kernel allows: where others have the processors, the 128 of std are soon
                // there, and the kernel drops the SYNs that come then.
                listen(&listener, Backlog::MAXALLOWABLE).with_context(context)?;
                // On Linux `accept` keeps to the receive timeout.
                setsockopt(&listener, ReceiveTimeout, &tick())?;
                thread::spawn(move || accept(&listener, &name, &told))
            }
            Transport::Udp => {
                let socket = UdpSocket::bind((address, port)).with_context(context)?;
                socket.set_read_timeout(Some(TICK))?;
                thread::spawn(move || datagrams(&socket, &name, &told))
            }
        };
        Ok(Self { stop, thread })
    }

    /// Stops it; the port is closed when this returns.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed by itself.
        let _ = self.thread.join();
    }
}

fn tick() -> TimeVal {
    TimeVal::milliseconds(i64::try_from(TICK.as_millis()).unwrap_or(50))
}

fn accept(listener: &TcpListener, name: &str, stop: &Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok((stream, from)) = listener.accept() {
            let (name, stop) = (name.to_owned(), Arc::clone(stop));
            // The client sees a broken connection as a failure of its own.
            thread::spawn(move || connection(stream, from, &name, &stop));
        }
    }
}

/// Answers the requests of one connection.
fn connection(
    stream: TcpStream,
    from: SocketAddr,
    name: &str,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut idle_since = Instant::now();
    while !stop.load(Ordering::Relaxed) && idle_since.elapsed() < IDLE {
        if reader.buffer().is_empty() {
            reader.get_ref().set_read_timeout(Some(TICK))?;
            match reader.get_ref().peek(&mut [0]) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
            reader.get_ref().set_read_timeout(Some(STALL))?;
        }
        let mut line = String::new();
        (&mut reader).take(4096).read_line(&mut line)?;
        if line.starts_with("GET ") {
            return page(&mut reader, &mut writer, name, from);
        }
        let Some(header) = Header::parse(&line) else { return Ok(()) };
        let mut payload = vec![0; header.payload];
        reader.read_exact(&mut payload)?;
        writer.write_all(&answer(&header, &payload, name, from))?;
        idle_since = Instant::now();
    }
    Ok(())
}

/// Answers `curl` with a line of text.
fn page(
    reader: &mut BufReader<TcpStream>,
    writer: &mut TcpStream,
    name: &str,
    from: SocketAddr,
) -> std::io::Result<()> {
    for line in reader.take(LARGEST_HEADER).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let body = format!("{name} sees you as {}\n", canonical(from));
    let length = body.len();
    write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn datagrams(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = vec![0; LARGEST_DATAGRAM];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let datagram = buffer.get(..length).unwrap_or_default();
        let Some(end) = datagram.iter().position(|&byte| byte == b'\n') else { continue };
        let (line, payload) = datagram.split_at(end + 1);
        let header = std::str::from_utf8(line).ok().and_then(Header::parse);
        let Some(header) = header else { continue };
        let message = answer(&header, payload, name, from);
        let sent = match header.fragments {
            Fragments::AsTheKernelDoes => socket.send_to(&message, from).map(drop),
            ours => fragments::send(ours, socket, from, &message),
        };
        // A client that went away is no matter of the server's.
        let _ = sent;
    }
}

fn answer(header: &Header, payload: &[u8], name: &str, from: SocketAddr) -> Vec<u8> {
    let greeting = Greeting {
        nonce: header.nonce,
        server: name.to_owned(),
        seen: canonical(from),
        intact: payload == pattern(header.payload),
        payload: header.answer,
    };
    let mut bytes = serde_json::to_vec(&greeting).unwrap_or_default();
    bytes.push(b'\n');
    bytes.extend(pattern(header.answer));
    bytes
}

/// `::ffff:10.0.0.1` of a server for both families is 10.0.0.1.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_line_survives_the_way_and_nonsense_is_refused() {
        for fragments in [Fragments::AsTheKernelDoes, Fragments::Shuffled] {
            let header = Header { nonce: 7, payload: 0, answer: 1000, fragments };
            assert_eq!(Header::parse(&header.line()), Some(header));
        }
        for nonsense in
            ["", "lab", "lab 1 2", "lab x 1 2", "lab 1 1 1 x", "get / http", "lab 1 99999999999 0"]
        {
            assert_eq!(Header::parse(nonsense), None, "{nonsense:?}");
        }
    }
}
