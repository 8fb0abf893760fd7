//! The connections of IPVS, as the kernel lists them (net/netfilter/ipvs/ip_vs_conn.c).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::cluster::snapshot::Protocol;
use crate::takeover::conntrack::{Stage, Translated, Tuple};

const LIST: &str = "/proc/thread-self/net/ip_vs_conn";

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who opened it.
    pub client: SocketAddr,
    /// The virtual server.
    pub frontend: SocketAddr,
    /// Where it leads.
    pub backend: SocketAddr,
    /// How far it is.
    pub stage: Stage,
    /// Forgotten after so many seconds without a packet.
    pub expires: u32,
}

/// Those of all virtual servers.
pub fn list() -> io::Result<Vec<Connection>> {
    match std::fs::read_to_string(LIST) {
        Ok(list) => Ok(list.lines().filter_map(read).collect()),
        // The module isn't loaded.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// `TCP C0000202 9C40 0A600001 0050 0AF40102 1F90 ESTABLISHED 899`. None for the headline, and for what
/// stands for all connections of a client (session affinity): that is no connection.
fn read(line: &str) -> Option<Connection> {
    let mut words = line.split_whitespace();
    let protocol = match words.next()? {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => return None,
    };
    let mut next = || socket_address(words.next()?, words.next()?);
    let (client, frontend, backend) = (next()?, next()?, next()?);
    let stage = stage(protocol, words.next()?);
    let expires = words.next()?.parse().ok()?;
    (client.port() != 0).then_some(Connection {
        protocol,
        client,
        frontend,
        backend,
        stage,
        expires,
    })
}

fn socket_address(address: &str, port: &str) -> Option<SocketAddr> {
    let address: IpAddr = if address.contains(':') {
        address.parse().ok()?
    } else {
        Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into()
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

fn stage(protocol: Protocol, state: &str) -> Stage {
    match (protocol, state) {
        (Protocol::Udp, _) | (_, "ESTABLISHED") => Stage::Open,
        (Protocol::Tcp, "NONE" | "SYN_SENT" | "SYN_RECV" | "SYNACK") => Stage::Opening,
        (Protocol::Tcp, _) | (_, "REJECTED" | "CLOSED") => Stage::Closing,
        (Protocol::Sctp, state) if state.starts_with("SHUTDOWN") => Stage::Closing,
        (Protocol::Sctp, _) => Stage::Opening,
    }
}

impl Connection {
    /// As a translated flow, with where conntrack says that the backend answers to.
    pub fn answered_by(self, answered: &HashMap<Tuple, SocketAddr>) -> Translated {
        let Self { protocol, client, frontend, backend, stage, expires } = self;
        let tuple = Tuple { protocol, source: client, destination: frontend };
        let answered = answered.get(&tuple).copied().unwrap_or(client);
        Translated { protocol, client, frontend, backend, answered, stage, expires }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_families_are_read_and_others_are_no_connections() {
        let line = "TCP C0000202 9C40 0A600001 0050 0AF40102 1F90 ESTABLISHED     899";
        let connection = read(line).unwrap();
        assert_eq!(connection.client, "192.0.2.2:40000".parse().unwrap());
        assert_eq!(connection.frontend, "10.96.0.1:80".parse().unwrap());
        assert_eq!(connection.backend, "10.244.1.2:8080".parse().unwrap());
        assert_eq!((connection.stage, connection.expires), (Stage::Open, 899));
        let line = "UDP 2001:0db8:0000:0000:0000:0000:0000:0002 9C40 \
            fd00:0096:0000:0000:0000:0000:0000:0001 0035 fd00:0244:0000:0000:0000:0000:0000:0001 0035 \
            UDP             299 pe data";
        let connection = read(line).unwrap();
        assert_eq!(connection.frontend, "[fd00:96::1]:53".parse().unwrap());
        assert_eq!(connection.protocol, Protocol::Udp);
        for odd in [
            "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData",
            "TCP C0000202 0000 0A600001 0050 0AF40102 1F90 NONE            899",
            "IP  C0000202 0001 0A600001 0050 0AF40102 1F90 NONE            899",
            "TCP C0000202 9C40 0A600001",
            "TCP C000020Z 9C40 0A600001 0050 0AF40102 1F90 ESTABLISHED     899",
            "",
        ] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }

    #[test]
    fn connections_that_begin_to_end_are_closing() {
        for (protocol, state, expected) in [
            (Protocol::Tcp, "SYN_RECV", Stage::Opening),
            (Protocol::Tcp, "FIN_WAIT", Stage::Closing),
            (Protocol::Tcp, "CLOSE", Stage::Closing),
            (Protocol::Tcp, "ESTABLISHED", Stage::Open),
            (Protocol::Sctp, "COOKIE_ECHOED", Stage::Opening),
            (Protocol::Sctp, "ESTABLISHED", Stage::Open),
            (Protocol::Sctp, "SHUTDOWN_SENT", Stage::Closing),
            (Protocol::Sctp, "CLOSED", Stage::Closing),
            (Protocol::Udp, "UDP", Stage::Open),
        ] {
            assert_eq!(stage(protocol, state), expected, "{protocol:?} {state}");
        }
    }
}
