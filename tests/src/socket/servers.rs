//! What listens behind the endpoints: each server says who it is.

use anyhow::{Context, Result};
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

/// How long a client may keep its server.
const PATIENCE: Duration = Duration::from_secs(3);

/// Starts a TCP and a UDP server on each address, in the calling thread's namespace; they end with the
/// process.
///
/// # Errors
/// Names the address that can't be bound.
pub fn start(addresses: &[SocketAddr]) -> Result<()> {
    for address in addresses {
        let name = address.to_string();
        let listener = TcpListener::bind(address).with_context(|| format!("listen on {name}"))?;
        let socket = UdpSocket::bind(address).with_context(|| format!("bind {name}"))?;
        let banner = name.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that left early is its own business.
                let _ = greet(stream, &banner);
            }
        });
        thread::spawn(move || {
            let mut datagram = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut datagram) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    }
    Ok(())
}

/// Says the banner, and waits for the client to close: to close with data unread would reset it.
fn greet(mut stream: TcpStream, banner: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(banner.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    std::io::copy(&mut stream, &mut std::io::sink())?;
    Ok(())
}
