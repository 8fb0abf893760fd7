//! What the demo shows: a list of steps, each with its explanation and its checks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use lb_lab::{Dual, EXTERNAL_IP, LOAD_BALANCER, Request};

use super::board::{Board, expect};
use super::change::{Event, Load};
use super::probe::{Probe, RefusedBy, Seen, peculiar, refused};
use super::stage::{POD_PORT, Stage};

/// One step.
pub(super) struct Step {
    /// Its heading.
    pub title: &'static str,
    /// Why it matters and how it works, in a few sentences.
    pub why: &'static str,
    show: fn(&Stage, &mut Board) -> Result<()>,
}

/// Carries a step out; what went wrong with the step itself is a failed check.
pub(super) fn run(step: &Step, stage: &Stage) -> Board {
    let mut board = Board::default();
    if let Err(error) = (step.show)(stage, &mut board) {
        board.check("the step came to its end", Err(format!("{error:#}")));
    }
    board
}

/// The ClusterIPs of the examples: 10.96.0.N and fd00:96::N.
const fn cluster_ip(v4: u8, v6: u16) -> Dual {
    Dual::new(Ipv4Addr::new(10, 96, 0, v4), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, v6))
}

const CLUSTERIP1: Dual = cluster_ip(11, 0x11);
const ENDPOINT1: Dual = cluster_ip(15, 0x15);
const ENDPOINT2: Dual = cluster_ip(16, 0x16);
const ENDPOINT3: Dual = cluster_ip(17, 0x17);
const NOENDPOINTS1: Dual = cluster_ip(19, 0x19);
const LOOPBACK: Dual = Dual::new(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
/// Port of every Service.
const PORT: u16 = 80;
/// NodePort of nodeport1, whose pods are all on node-b.
const NODE_PORT: u16 = 30080;
const EVERY_BACKEND: &[&str] = &["pod-a1", "pod-a2", "pod-b1", "pod-b2"];
const ON_NODE_B: &[&str] = &["pod-b1", "pod-b2"];

/// The steps, in the order of the Service types in every textbook.
pub(super) const STEPS: &[Step] = &[
    Step {
        title: "ClusterIP from a pod",
        why: "A Service's address exists nowhere. When pod-a3 connects to it, a program at the \
              connect call puts a pod's address in its place: no packet is ever translated, and \
              the pod at the other end sees pod-a3 itself.",
        show: cluster_ip_from_a_pod,
    },
    Step {
        title: "ClusterIP from a node",
        why: "The same for the node's own processes, such as kubelet.",
        show: |stage, board| {
            let probe = Probe { from: "node-b", ..clusterip1() };
            Probe { seen: Seen::Any, ..probe }.run(stage, board)
        },
    },
    Step {
        title: "What the application sees",
        why: "getpeername and recvfrom tell the Service's address, as DNS clients insist on. IPv6 \
              sockets that talk IPv4 and connected UDP sockets work too.",
        show: what_the_application_sees,
    },
    Step {
        title: "NodePort from outside, on both nodes",
        why: "nodeport1's pods are on node-b. node-b hands packets to its own pods; node-a has none \
              and sends them on to node-b, as itself, so that the replies come back its way.",
        show: node_port_from_outside,
    },
    Step {
        title: "NodePort from inside",
        why: "Pods and nodes reach it too: on their own node, on another, and a node on its \
              loopback. A pod's loopback is the pod's own affair.",
        show: node_port_from_inside,
    },
    Step {
        title: "LoadBalancer address and externalIP from outside",
        why: "The network routes these addresses to some node; no node owns them.",
        show: |stage, board| service_addresses(stage, board, "client"),
    },
    Step {
        title: "LoadBalancer address and externalIP from a pod",
        why: "From inside the cluster such an address is served on the client's own node: the way \
              out to the load balancer and back is saved.",
        show: |stage, board| service_addresses(stage, board, "pod-b3"),
    },
    Step {
        title: "Services with and without a selector",
        why: "endpoint1 selects its pod; the Endpoints of endpoint2 were written by hand for a \
              pod, those of endpoint3 for a site outside the cluster.",
        show: with_and_without_a_selector,
    },
    Step {
        title: "Headless and ExternalName: DNS only",
        why: "Neither has an address to translate, so the kernel's tables, read back with `lb-agent \
              services`, hold every other Service and not these two.",
        show: dns_only,
    },
    Step {
        title: "A backend goes and comes while requests run",
        why: "A changed endpoint list is published by one store into the kernel's memory. Requests \
              from a pod and from outside go on at full speed meanwhile; none may be lost.",
        show: a_backend_goes_and_comes,
    },
    Step {
        title: "An agent is replaced while requests run",
        why: "Programs and tables stay in the kernel when the agent ends; the next one adopts them. \
              Without it Services only stop to change.",
        show: an_agent_is_replaced,
    },
    Step {
        title: "Nobody there: refused at once",
        why: "A Service without endpoints answers with \"connection refused\" rather than silence, \
              so that clients fail fast.",
        show: |stage, board| {
            refused(stage, board, "pod-a3", (NOENDPOINTS1, PORT), RefusedBy::Service)?;
            refused(stage, board, "node-b", (NOENDPOINTS1, PORT), RefusedBy::Service)
        },
    },
];

fn clusterip1() -> Probe<'static> {
    Probe {
        from: "pod-a3",
        what: "clusterip1",
        to: CLUSTERIP1,
        port: PORT,
        servers: EVERY_BACKEND,
        seen: Seen::Client,
    }
}

fn cluster_ip_from_a_pod(stage: &Stage, board: &mut Board) -> Result<()> {
    clusterip1().run(stage, board)
}

fn what_the_application_sees(stage: &Stage, board: &mut Board) -> Result<()> {
    let v4 = IpAddr::V4(CLUSTERIP1.v4);
    let mapped = SocketAddr::new(CLUSTERIP1.v4.to_ipv6_mapped().into(), PORT);
    for address in CLUSTERIP1.both() {
        let told = SocketAddr::new(address, PORT);
        let cases = [
            ("TCP", Request::tcp(address, PORT)),
            ("UDP, connected", Request::udp(address, PORT).connected()),
            ("UDP, unconnected", Request::udp(address, PORT)),
        ];
        for (claim, request) in cases {
            peculiar(stage, board, "pod-a3", claim, &request, told)?;
        }
    }
    let cases = [
        ("TCP, IPv6 socket", Request::tcp(v4, PORT).mapped()),
        ("UDP, IPv6 socket, connected", Request::udp(v4, PORT).mapped().connected()),
        ("UDP, IPv6 socket, unconnected", Request::udp(v4, PORT).mapped()),
    ];
    for (claim, request) in cases {
        peculiar(stage, board, "pod-a3", claim, &request, mapped)?;
    }
    Ok(())
}

/// nodeport1 at `node`'s own address.
fn node_port(stage: &Stage, node: &str) -> Result<Probe<'static>> {
    let to = stage.lab().host(node)?.address;
    let what = if node == "node-a" { "nodeport1 on node-a" } else { "nodeport1 on node-b" };
    let servers = ON_NODE_B;
    Ok(Probe { from: "client", what, to, port: NODE_PORT, servers, seen: Seen::Any })
}

fn node_port_from_outside(stage: &Stage, board: &mut Board) -> Result<()> {
    node_port(stage, "node-b")?.run(stage, board)?;
    node_port(stage, "node-a")?.run(stage, board)
}

fn node_port_from_inside(stage: &Stage, board: &mut Board) -> Result<()> {
    Probe { from: "pod-a3", ..node_port(stage, "node-a")? }.run(stage, board)?;
    Probe { from: "pod-a3", ..node_port(stage, "node-b")? }.run(stage, board)?;
    let loopback =
        Probe { to: LOOPBACK, what: "nodeport1 on loopback", ..node_port(stage, "node-a")? };
    Probe { from: "node-a", ..loopback }.run(stage, board)?;
    refused(stage, board, "pod-a3", (LOOPBACK, NODE_PORT), RefusedBy::ClosedPort)
}

fn service_addresses(stage: &Stage, board: &mut Board, from: &str) -> Result<()> {
    let cases = [
        ("loadbalancer1", LOAD_BALANCER, ["pod-a1", "pod-b1"]),
        ("externalip1", EXTERNAL_IP, ["pod-a2", "pod-b2"]),
    ];
    for (what, to, servers) in cases {
        let probe = Probe { from, what, to, port: PORT, servers: &servers, seen: Seen::Any };
        probe.run(stage, board)?;
    }
    Ok(())
}

fn with_and_without_a_selector(stage: &Stage, board: &mut Board) -> Result<()> {
    let cases = [
        ("endpoint1", ENDPOINT1, "pod-a1"),
        ("endpoint2", ENDPOINT2, "pod-a2"),
        ("endpoint3", ENDPOINT3, "site"),
    ];
    for (what, to, server) in cases {
        let servers = &[server];
        let probe = Probe { from: "pod-b3", what, to, port: PORT, servers, seen: Seen::Any };
        probe.run(stage, board)?;
    }
    Ok(())
}

fn dns_only(stage: &Stage, board: &mut Board) -> Result<()> {
    let expected = [
        "clusterip1",
        "endpoint1",
        "endpoint2",
        "endpoint3",
        "externalip1",
        "loadbalancer1",
        "nodeport1",
        "noendpoints1",
    ];
    for node in ["node-a", "node-b"] {
        let text = stage.agent_says(node, &["services", "--output", "json"])?;
        let rows: Vec<serde_json::Value> =
            serde_json::from_str(&text).context("parse what `lb-agent services` printed")?;
        let name = |row: &serde_json::Value| Some(row.get("name")?.as_str()?.to_owned());
        let mut names: Vec<_> = rows.iter().filter_map(name).collect();
        names.sort();
        names.dedup();
        let claim = format!("{node}'s tables hold {} Services, these two not", expected.len());
        board.check(claim, expect(names == expected, || format!("they hold {}", names.join(", "))));
    }
    // What DNS would answer for headless1: the pods themselves.
    let pod = stage.lab().host("pod-b1")?.address;
    let what = "headless1's pod-b1, by its own address";
    let servers = &["pod-b1"];
    let direct =
        Probe { from: "pod-a3", what, to: pod, port: POD_PORT, servers, seen: Seen::Client };
    direct.run(stage, board)
}

const FROM_INSIDE: Load<'static> = Load { from: "pod-a3", to: CLUSTERIP1, port: PORT };
const FROM_OUTSIDE: Load<'static> = Load { from: "client", to: LOAD_BALANCER, port: PORT };

fn a_backend_goes_and_comes(stage: &Stage, board: &mut Board) -> Result<()> {
    let event = Event::Endpoint { manifest: "clusterip1.yaml", backend: "pod-b2" };
    FROM_INSIDE.during(&event, stage, board)?;
    let event = Event::Endpoint { manifest: "loadbalancer1.yaml", backend: "pod-b1" };
    FROM_OUTSIDE.during(&event, stage, board)
}

fn an_agent_is_replaced(stage: &Stage, board: &mut Board) -> Result<()> {
    let event = Event::AgentRestart { node: "node-a" };
    FROM_INSIDE.during(&event, stage, board)?;
    FROM_OUTSIDE.during(&event, stage, board)
}
