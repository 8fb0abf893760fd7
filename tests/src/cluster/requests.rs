//! Requests by every way to a Service.

use anyhow::Result;
use lb_lab::{Family, Request, Transport};

use super::namespace::TestNamespace;
use super::reach::{Expect, Target};
use super::test_cluster::{NODES, OUTSIDE, TestCluster};

/// Who asks, and for what.
pub type Asked = (&'static str, Request);

/// What `clients` ask of the ClusterIPs of a Service on port 80: by each hook of a socket.
///
/// # Errors
/// The Service has no address.
pub fn inside(
    namespace: &TestNamespace,
    service: &str,
    clients: &[&'static str],
) -> Result<Vec<Asked>> {
    let mut requests = Vec::new();
    for family in Family::BOTH {
        let address = namespace.cluster_ip(service, family)?;
        for from in clients {
            requests.push((*from, Request::tcp(address, 80)));
            requests.push((*from, Request::udp(address, 80)));
            requests.push((*from, Request::udp(address, 80).connected()));
        }
    }
    Ok(requests)
}

/// What the client outside asks of a NodePort, through either node.
///
/// # Errors
/// The lab has no such node.
pub fn outside(cluster: &TestCluster, node_port: u16) -> Result<Vec<Asked>> {
    let mut requests = Vec::new();
    for family in Family::BOTH {
        for node in NODES {
            let address = cluster.address(node, family)?;
            for transport in Transport::BOTH {
                requests.push((OUTSIDE, Request::new(transport, address, node_port)));
            }
        }
    }
    Ok(requests)
}

/// Waits until each of them is answered by all `servers` and nobody else.
///
/// # Errors
/// One isn't; the error says who answered instead.
pub fn reach_all(cluster: &TestCluster, requests: &[Asked], servers: &[&str]) -> Result<()> {
    requests.iter().try_for_each(|(from, Request { transport, to, .. })| {
        let target = Target { transport: *transport, address: to.ip(), port: to.port() };
        cluster.reach(from, target, Expect::Servers(servers))
    })
}
