//! A tunnel whose device has no link header, as IPIP and WireGuard have: a TUN device's packets as datagrams
//! between nodes.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::protocol::{Far, Tunnel};
use crate::sys;

/// Larger than any packet.
const LONGEST: usize = 1 << 16;

/// Carries packets until the process ends.
pub fn start(tunnel: Tunnel) -> Result<()> {
    let device = Arc::new(sys::open_tun(&tunnel.device)?);
    let socket = UdpSocket::bind(tunnel.local);
    let socket = Arc::new(socket.with_context(|| format!("bind to {}", tunnel.local))?);
    let (inwards, from) = (Arc::clone(&device), Arc::clone(&socket));
    thread::spawn(move || {
        let mut packet = vec![0; LONGEST];
        while let Ok(length) = from.recv(&mut packet) {
            // What the kernel doesn't want is lost, as on any device.
            drop((&*inwards).write(&packet[..length]));
        }
    });
    thread::spawn(move || outwards(&device, &socket, &tunnel));
    Ok(())
}

fn outwards(device: &File, socket: &UdpSocket, tunnel: &Tunnel) {
    let mut packet = vec![0; LONGEST];
    loop {
        match (&*device).read(&mut packet) {
            Ok(length) => {
                let far = far_end(&packet[..length], tunnel);
                // What is for nobody, or too much for the fabric, is lost.
                drop(far.map(|far| socket.send_to(&packet[..length], far)));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The device is down for now.
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => thread::yield_now(),
            Err(_) => return,
        }
    }
}

/// The node whose pods have the packet's destination.
fn far_end(packet: &[u8], tunnel: &Tunnel) -> Option<SocketAddr> {
    let is_its = |far: &&Far| match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(16..19) == Some(&far.pods.v4.octets()[..3]),
        Some(6) => packet.get(24..32) == Some(&far.pods.v6.octets()[..8]),
        _ => false,
    };
    tunnel.far.iter().find(is_its).map(|far| far.node)
}
