//! Where this network namespace sends packets to one address: questions to the routing table, and to
//! bridges.

use std::net::IpAddr;

use futures::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteType};
use nix::net::if_::if_indextoname;
use rtnetlink::{Handle, RouteMessageBuilder, new_connection};
use tokio::runtime::Runtime;

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To this node itself.
    Here,
    /// Through a device.
    Device {
        /// Interface index.
        index: u32,
        /// The source that packets without one get.
        source: Option<IpAddr>,
    },
    /// No route.
    Nowhere,
    /// A route that forbids (blackhole, unreachable, prohibit).
    Forbidden,
}

/// Why the question wasn't answered.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No socket or no runtime for it.
    #[error("ask for routes by rtnetlink: {0}; the sandbox must allow AF_NETLINK")]
    Socket(#[from] std::io::Error),
    /// The kernel's answer.
    #[error("ask by rtnetlink for the route to {0}: {1}")]
    Answer(IpAddr, #[source] rtnetlink::Error),
    /// The kernel's answer about neighbours.
    #[error("ask by rtnetlink for the neighbours on {0}: {1}")]
    Neighbours(String, #[source] rtnetlink::Error),
}

/// The routing table.
pub struct Routes {
    runtime: Runtime,
    handle: Handle,
}

impl Routes {
    /// Of the calling thread's network namespace.
    pub fn open() -> Result<Self, RouteError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.block_on(async {
            let (connection, handle, _) = new_connection()?;
            tokio::spawn(connection);
            Ok::<_, std::io::Error>(handle)
        })?;
        Ok(Self { runtime, handle })
    }

    /// Where packets of this node to `address` go. Rules that look at a packet's source or device are
    /// not asked.
    pub fn to(&self, address: IpAddr) -> Result<Way, RouteError> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let question = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, bits);
        let Ok(question) = question else { return Ok(Way::Nowhere) };
        let mut answers = self.handle.route().get(question.build()).execute();
        let answer = self.runtime.block_on(answers.try_next());
        let message = match answer {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(Way::Nowhere),
            Err(rtnetlink::Error::NetlinkError(error)) => {
                return match -error.raw_code() {
                    libc::ENETUNREACH => Ok(Way::Nowhere),
                    libc::EINVAL | libc::EHOSTUNREACH | libc::EACCES => Ok(Way::Forbidden),
                    _ => Err(RouteError::Answer(address, rtnetlink::Error::NetlinkError(error))),
                };
            }
            Err(error) => return Err(RouteError::Answer(address, error)),
        };
        if message.header.kind == RouteType::Local {
            return Ok(Way::Here);
        }
        let mut way = (None, None);
        for attribute in &message.attributes {
            if let RouteAttribute::Oif(index) = attribute {
                way.0 = Some(*index);
            } else if let RouteAttribute::PrefSource(source) = attribute {
                way.1 = match source {
                    RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
                    RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
                    _ => None,
                };
            }
        }
        Ok(way.0.map_or(Way::Nowhere, |index| Way::Device { index, source: way.1 }))
    }

    /// The port of a bridge that has this neighbour behind it; `None` for other devices, and for
    /// neighbours that haven't been heard of late.
    pub fn port(&self, bridge: u32, address: IpAddr) -> Result<Option<u32>, RouteError> {
        let is_it = |attribute: &NeighbourAttribute| match (attribute, address) {
            (NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)), IpAddr::V4(own)) => {
                *ip == own
            }
            (NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)), IpAddr::V6(own)) => {
                *ip == own
            }
            _ => false,
        };
        let failed = |error| RouteError::Neighbours(device_name(bridge), error);
        let neighbours = self.neighbours(AddressFamily::Unspec).map_err(failed)?;
        let link_address = neighbours
            .iter()
            .filter(|entry| entry.header.ifindex == bridge && entry.attributes.iter().any(is_it))
            .find_map(link_address);
        let Some(link_address) = link_address else { return Ok(None) };
        let is_bridges = |entry: &&NeighbourMessage| {
            entry.attributes.contains(&NeighbourAttribute::Controller(bridge))
        };
        let ports = self.neighbours(AddressFamily::Bridge).map_err(failed)?;
        let mut ports = ports.iter().filter(is_bridges);
        let port = ports.find(|entry| self::link_address(entry) == Some(link_address));
        Ok(port.map(|entry| entry.header.ifindex))
    }

    /// Entries for addresses of a family, or with [`AddressFamily::Bridge`] those of bridges.
    fn neighbours(&self, family: AddressFamily) -> Result<Vec<NeighbourMessage>, rtnetlink::Error> {
        let request = self.handle.neighbours().get().set_address_family(family);
        self.runtime.block_on(request.execute().try_collect())
    }
}

fn link_address(entry: &NeighbourMessage) -> Option<&[u8]> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(address) => Some(&address[..]),
        _ => None,
    })
}

/// The name of a device, or its number when it is gone.
pub fn device_name(index: u32) -> String {
    if_indextoname(index)
        .map_or_else(|_| format!("device {index}"), |name| name.to_string_lossy().into_owned())
}

/// Whether packets of this family that come in through a device are passed on.
pub fn forwards(device: &str, ipv4: bool) -> bool {
    let family = if ipv4 { "ipv4" } else { "ipv6" };
    let path = format!("/proc/sys/net/{family}/conf/{device}/forwarding");
    // Unreadable: let the rest of the answer be given.
    std::fs::read_to_string(path).map_or(true, |text| text.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routing_table_of_a_namespace_of_ones_own_answers() {
        let asked = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            let ip = |arguments: &str| {
                let mut command = std::process::Command::new("ip");
                assert!(command.args(arguments.split(' ')).status().unwrap().success());
            };
            ip("link set lo up");
            ip("address add 192.0.2.1/24 dev lo");
            ip("route add 198.51.100.0/24 dev lo src 192.0.2.1");
            ip("route add blackhole 203.0.113.0/24");
            ip("route add unreachable 2001:db8::/64");
            let routes = Routes::open().unwrap();
            ["192.0.2.1", "198.51.100.7", "203.0.113.1", "2001:db8::1", "10.0.0.1", "fd00::1"]
                .map(|text| routes.to(text.parse().unwrap()).unwrap())
        });
        let source = Some("192.0.2.1".parse().unwrap());
        let expected = [
            Way::Here,
            Way::Device { index: 1, source },
            Way::Forbidden,
            Way::Forbidden,
            Way::Nowhere,
            Way::Nowhere,
        ];
        assert_eq!(asked.join().unwrap(), expected);
    }

    #[test]
    fn a_bridge_knows_behind_which_port_a_neighbour_is() {
        let asked = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            let run = |program: &str, arguments: &str| {
                let mut command = std::process::Command::new(program);
                assert!(command.args(arguments.split(' ')).status().unwrap().success());
            };
            run("ip", "link add name br index 10 type bridge");
            for (index, peer) in [(21, 31), (22, 32)] {
                let ends = format!("name p{index} index {index} type veth peer index {peer}");
                run("ip", &format!("link add {ends}"));
                run("ip", &format!("link set p{index} master br up"));
                run(
                    "bridge",
                    &format!("fdb add 02:00:00:00:00:{index} dev p{index} master static"),
                );
            }
            run("ip", "link set dev br up");
            for (address, port) in [("192.0.2.1", 21), ("192.0.2.2", 22), ("2001:db8::2", 22)] {
                run("ip", &format!("neigh add {address} lladdr 02:00:00:00:00:{port} dev br"));
            }
            let routes = Routes::open().unwrap();
            let at = |bridge| {
                ["192.0.2.1", "192.0.2.2", "2001:db8::2", "192.0.2.3"]
                    .map(|text| routes.port(bridge, text.parse().unwrap()).unwrap())
            };
            (at(10), at(21))
        });
        let (bridge, other) = asked.join().unwrap();
        assert_eq!(bridge, [Some(21), Some(22), Some(22), None]);
        assert_eq!(other, [None; 4], "no bridge");
    }
}
