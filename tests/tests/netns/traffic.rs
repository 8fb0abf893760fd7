//! What `lb-agent services` and `backends` say of traffic, compared with what the endpoints themselves
//! saw: their namespaces count each packet, and its IP length, where it comes in and leaves.

use std::ops::AddAssign;

use lb_lab::{Family, Options, Request, Transport, Xdp};
use serde_json::Value;

use crate::manifest::{PORT, Service};
use crate::stage::{Pods, Stage, each, eventually, for_both};
use crate::xdp;

for_both! {
    every_way_is_counted_to_the_packet,
    counts_outlive_the_agent_and_go_with_the_service,
    a_full_table_loses_no_packet_and_says_so,
    switched_off_nothing_is_counted_or_shown,
}

/// Connections of each kind.
const CONNECTIONS: u64 = 5;
/// Requests of each connection.
const REQUESTS: u64 = 3;
/// Request and answer, bytes.
const SIZES: (u32, u32) = (100, 300);

/// Counts at an endpoint, whoever translated.
const WITNESS: &str = "
table inet witness {
    counter IPv4_TCP_to {}
    counter IPv4_TCP_from {}
    counter IPv4_UDP_to {}
    counter IPv4_UDP_from {}
    counter IPv6_TCP_to {}
    counter IPv6_TCP_from {}
    counter IPv6_UDP_to {}
    counter IPv6_UDP_from {}
    chain to {
        type filter hook input priority 0
        meta nfproto ipv4 tcp dport 8080 counter name IPv4_TCP_to
        meta nfproto ipv4 udp dport 8080 counter name IPv4_UDP_to
        meta nfproto ipv6 tcp dport 8080 counter name IPv6_TCP_to
        meta nfproto ipv6 udp dport 8080 counter name IPv6_UDP_to
    }
    chain from {
        type filter hook output priority 0
        meta nfproto ipv4 tcp sport 8080 counter name IPv4_TCP_from
        meta nfproto ipv4 udp sport 8080 counter name IPv4_UDP_from
        meta nfproto ipv6 tcp sport 8080 counter name IPv6_TCP_from
        meta nfproto ipv6 udp sport 8080 counter name IPv6_UDP_from
    }
}
";

/// Packets and bytes to endpoints, and from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Carried {
    packets: [u64; 2],
    bytes: [u64; 2],
}

impl AddAssign for Carried {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in [(&mut self.packets, other.packets), (&mut self.bytes, other.bytes)] {
            sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
    }
}

/// What the agent says of a Service port or an endpoint; packets only where some were translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    connections: u64,
    sockets: u64,
    carried: Option<Carried>,
}

impl Counted {
    fn read(row: &Value) -> Self {
        let traffic = &row["traffic"];
        let number = |name: &str| traffic[name].as_u64();
        let carried = || {
            Some(Carried {
                packets: [number("packets_to")?, number("packets_from")?],
                bytes: [number("bytes_to")?, number("bytes_from")?],
            })
        };
        Self {
            connections: number("connections").unwrap(),
            sockets: number("socket_connections").unwrap(),
            carried: carried(),
        }
    }

    /// `connections` that were translated at their socket.
    fn at_sockets(connections: u64) -> Self {
        Self { connections, sockets: connections, carried: None }
    }

    /// `connections` that were translated packet by packet.
    fn by_packet(connections: u64, carried: Carried) -> Self {
        Self { connections, sockets: 0, carried: Some(carried) }
    }
}

/// The rows of `lb-agent <command> -o json` for a port of a Service.
fn rows(
    stage: &Stage,
    command: &str,
    service: &Service,
    family: Family,
    transport: Transport,
) -> Vec<Value> {
    let name = format!("default/{}", service.name());
    let text = stage.agent_says("node-a", &[command, &name, "-o", "json"]);
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    let wanted = |row: &Value| {
        row["family"] == family.to_string() && row["protocol"] == transport.to_string()
    };
    rows.into_iter().filter(wanted).collect()
}

/// What node-a's agent says of a port of a Service.
fn of_service(stage: &Stage, service: &Service, family: Family, transport: Transport) -> Counted {
    let rows = rows(stage, "services", service, family, transport);
    assert_eq!(rows.len(), 1, "{rows:?}");
    Counted::read(&rows[0])
}

/// What it says of each of its endpoints.
fn of_backends(
    stage: &Stage,
    service: &Service,
    family: Family,
    transport: Transport,
) -> Vec<Counted> {
    let rows = rows(stage, "backends", service, family, transport);
    rows.iter().map(Counted::read).collect()
}

/// What an endpoint has seen since it was watched.
fn witnessed(stage: &Stage, pod: &str, family: Family, transport: Transport) -> Carried {
    let text = stage.run(pod, &["nft", "-j", "list", "counters", "table", "inet", "witness"]);
    let listed: Value = serde_json::from_str(&text).unwrap();
    let counters = listed["nftables"].as_array().unwrap();
    let of = |direction: &str, number: &str| {
        let name = format!("{family}_{transport}_{direction}");
        let counter = counters.iter().find(|one| one["counter"]["name"] == name.as_str());
        counter.unwrap()["counter"][number].as_u64().unwrap()
    };
    Carried {
        packets: ["to", "from"].map(|direction| of(direction, "packets")),
        bytes: ["to", "from"].map(|direction| of(direction, "bytes")),
    }
}

fn watch(stage: &Stage, pods: &[&str]) {
    for pod in pods {
        stage.lab().nft(pod, WITNESS).unwrap();
    }
}

/// [`CONNECTIONS`] with [`REQUESTS`] each, from ports that nobody used: a port that is used again
/// would be the flow that it was.
fn connect(stage: &Stage, from: &str, request: &Request, ports: &mut impl Iterator<Item = u16>) {
    for port in ports.take(CONNECTIONS as usize) {
        let request = request.clone().from_port(port).payloads(SIZES.0, SIZES.1).keep("counted");
        for _ in 0..REQUESTS {
            stage.answer(from, &request);
        }
        stage.lab().peer(from).unwrap().forget("counted").unwrap();
    }
}

/// TCP, UDP with a connected socket, and UDP without.
fn kinds(request: &Request) -> Vec<Request> {
    match request.transport {
        Transport::Tcp => vec![request.clone()],
        Transport::Udp => vec![request.clone(), request.clone().connected()],
    }
}

/// A way to a Service of its own.
struct Way {
    from: &'static str,
    service: Service,
    /// At the NodePort of node-a; otherwise at the ClusterIP.
    node_port: bool,
}

impl Way {
    fn request(&self, stage: &Stage, family: Family, transport: Transport) -> Request {
        if self.node_port {
            let port = self.service.node_port_number();
            Request::new(transport, stage.address("node-a", family), port)
        } else {
            Request::new(transport, self.service.cluster_ip().of(family), PORT)
        }
    }
}

fn ways() -> Vec<Way> {
    let way = |number, from, node_port, backends: &[&str]| Way {
        from,
        service: Service::node_port(number, backends),
        node_port,
    };
    vec![
        way(1, "pod-a1", false, &["pod-a2"]),
        way(2, "pod-a1", false, &["pod-b1"]),
        way(3, "pod-a1", false, &["pod-a1"]),
        way(4, "pod-a1", true, &["pod-a2", "pod-b1"]),
        way(5, "node-a", false, &["pod-a2", "pod-b1"]),
        way(6, "client", true, &["pod-a2"]),
        way(7, "client", true, &["pod-b1"]),
        way(8, "client", true, &["pod-a2", "pod-b1"]),
        way(9, "client", false, &["pod-a1", "pod-b1"]),
    ]
}

/// What is counted for a way when it has been used, and nothing of it twice or elsewhere.
fn is_counted(
    stage: &Stage,
    way: &Way,
    at_sockets: bool,
    family: Family,
    transport: Transport,
    ports: &mut impl Iterator<Item = u16>,
) {
    let Way { from, service, .. } = way;
    let what = format!("{} from {from}, {family} {transport}", service.name());
    let saw = |stage: &Stage| -> Carried {
        let mut sum = Carried::default();
        for pod in &service.backends {
            sum += witnessed(stage, pod, family, transport);
        }
        sum
    };
    let before = saw(stage);
    let kinds = kinds(&way.request(stage, family, transport));
    for request in &kinds {
        connect(stage, from, request, ports);
    }
    let connections = CONNECTIONS * kinds.len() as u64;
    let expected = |stage: &Stage| {
        let mut carried = saw(stage);
        for (sum, less) in
            [(&mut carried.packets, before.packets), (&mut carried.bytes, before.bytes)]
        {
            sum.iter_mut().zip(less).for_each(|(sum, less)| *sum -= less);
        }
        if at_sockets {
            Counted::at_sockets(connections)
        } else {
            Counted::by_packet(connections, carried)
        }
    };
    let found = |stage: &Stage| of_service(stage, service, family, transport);
    if transport == Transport::Tcp {
        // The last packets of a connection come when its client has gone on already.
        eventually(&format!("{what}: as the endpoints saw it"), || found(stage) == expected(stage));
    }
    assert_eq!(found(stage), expected(stage), "{what}");
    if let (Some(carried), Transport::Udp) = (found(stage).carried, transport) {
        assert_eq!(carried.packets, [connections * REQUESTS; 2], "{what}");
        let header = if family == Family::V4 { 20 } else { 40 } + 8;
        for (bytes, payload) in carried.bytes.into_iter().zip([SIZES.0, SIZES.1]) {
            let least = connections * REQUESTS * (u64::from(payload) + header);
            assert!(bytes > least, "{what}: {bytes} bytes in {carried:?}, at least {least}");
        }
    }
    let mut sum = 0;
    let mut carried = Carried::default();
    for backend in of_backends(stage, service, family, transport) {
        sum += backend.connections;
        carried += backend.carried.unwrap_or_default();
    }
    assert_eq!(sum, connections, "{what}: of its endpoints");
    assert_eq!(carried, found(stage).carried.unwrap_or_default(), "{what}: of its endpoints");
}

fn every_way_is_counted_to_the_packet(pods: Pods) {
    let ways = ways();
    let services: Vec<_> = ways.iter().map(|way| way.service.clone()).collect();
    let stage = Stage::serving(pods, &Options::default(), &services);
    watch(&stage, &["pod-a1", "pod-a2", "pod-b1"]);
    let mut ports = 33_000..;
    for (family, transport) in each() {
        for way in &ways {
            let at_sockets = way.from != "client" && !pods.asks_by_packet(way.from);
            is_counted(&stage, way, at_sockets, family, transport, &mut ports);
        }
    }
    // What node-a forwarded is none of node-b's.
    let text = stage.agent_says("node-b", &["services", "-o", "json"]);
    for row in serde_json::from_str::<Vec<Value>>(&text).unwrap() {
        assert_eq!(Counted::read(&row), Counted::at_sockets(0), "{row}");
    }
}

#[test]
fn xdp_and_tc_count_each_packet_once_between_them() {
    for mode in [Xdp::Generic, Xdp::Native] {
        let ways: Vec<_> = ways().into_iter().filter(|way| way.from == "client").collect();
        let services: Vec<_> = ways.iter().map(|way| way.service.clone()).collect();
        let stage = xdp::with(mode, Options::default(), &services);
        watch(&stage, &["pod-a1", "pod-a2", "pod-b1"]);
        let mut ports = 33_000..;
        for (family, transport) in each() {
            for way in &ways {
                is_counted(&stage, way, false, family, transport, &mut ports);
            }
        }
    }
}

fn counts_outlive_the_agent_and_go_with_the_service(pods: Pods) {
    let [service, other] = [1, 2].map(|number| Service::node_port(number, &["pod-a2", "pod-b1"]));
    let both = [service.clone(), other.clone()];
    let mut stage = Stage::serving(pods, &Options::default(), &both);
    let mut ports = 33_000..;
    let mut use_it = |stage: &Stage| {
        for (family, transport) in each() {
            let request = Request::new(transport, service.cluster_ip().of(family), PORT);
            connect(stage, "pod-a1", &request, &mut ports);
            let to = stage.address("node-a", family);
            let request = Request::new(transport, to, service.node_port_number());
            connect(stage, "client", &request, &mut ports);
        }
    };
    let connections = |stage: &Stage| -> Vec<u64> {
        each()
            .map(|(family, transport)| of_service(stage, &service, family, transport).connections)
            .collect()
    };
    let open: Vec<_> = Family::BOTH
        .map(|family| {
            let to = stage.address("node-a", family);
            Request::tcp(to, service.node_port_number()).keep(format!("{family}"))
        })
        .into_iter()
        .inspect(|request| drop(stage.answer("client", request)))
        .collect();
    let kept = |transport| u64::from(transport == Transport::Tcp);
    let times = |times: u64| -> Vec<u64> {
        each().map(|(_, transport)| kept(transport) + times * 2 * CONNECTIONS).collect()
    };
    use_it(&stage);
    assert_eq!(connections(&stage), times(1));
    stage.kill_agent("node-a");
    assert_eq!(connections(&stage), times(1), "while no agent runs");
    use_it(&stage);
    stage.start_agent("node-a");
    assert_eq!(connections(&stage), times(2), "with the next one");
    use_it(&stage);
    assert_eq!(connections(&stage), times(3));

    stage.publish(std::slice::from_ref(&other));
    stage.publish(&both);
    for request in &open {
        // It goes on, as the deleted Service's.
        stage.answer("client", request);
    }
    for (family, transport) in each() {
        let found = of_service(&stage, &service, family, transport);
        assert_eq!(found, Counted::at_sockets(0), "of the new one, {family} {transport}");
        for backend in of_backends(&stage, &service, family, transport) {
            assert_eq!(backend, Counted::at_sockets(0), "{family} {transport}");
        }
    }
    use_it(&stage);
    assert_eq!(connections(&stage), vec![2 * CONNECTIONS; 4]);
}

fn a_full_table_loses_no_packet_and_says_so(pods: Pods) {
    // Both families with both ports: four endpoints of each.
    let services: Vec<_> = (1..=5).map(|number| Service::node_port(number, &["pod-b1"])).collect();
    let mut stage = Stage::with(&Options::default(), &services, |agent| {
        pods.tell(agent);
        agent.arguments.extend(["--max-traffic", "16"].map(str::to_owned));
    });
    for service in &services {
        for (family, transport) in each() {
            let request = Request::new(transport, service.cluster_ip().of(family), PORT);
            stage.answer("pod-a1", &request);
            let to = stage.address("node-a", family);
            stage.answer("client", &Request::new(transport, to, service.node_port_number()));
        }
    }
    let counted: Vec<u64> = services
        .iter()
        .flat_map(|service| each().map(move |ways| (service, ways)))
        .map(|(service, (family, transport))| {
            of_service(&stage, service, family, transport).connections
        })
        .collect();
    let (whole, none) = counted.split_at(16);
    assert_eq!((whole, none), (&[2; 16][..], &[0; 4][..]));
    // It looks at its start, and every 20 s.
    stage.stop_agent("node-a");
    stage.start_agent("node-a");
    eventually("the agent says that the table is full", || {
        stage.metric("node-a", "lb_agent_map_entries{map=\"traffic\"}") == 16.0
            && stage.log("node-a").contains("raise --max-traffic")
    });
    assert_eq!(stage.metric("node-a", "lb_agent_map_max_entries{map=\"traffic\"}"), 16.0);
}

fn switched_off_nothing_is_counted_or_shown(pods: Pods) {
    let service = Service::node_port(1, &["pod-a2", "pod-b1"]);
    let mut stage = Stage::with(&Options::default(), std::slice::from_ref(&service), |agent| {
        pods.tell(agent);
        agent.arguments.extend(["--traffic-counters", "on"].map(str::to_owned));
    });
    let mut ports = 33_000..;
    let mut use_it = |stage: &Stage| {
        for (family, transport) in each() {
            for (from, to, port) in [
                ("pod-a1", service.cluster_ip().of(family), PORT),
                ("client", stage.address("node-a", family), service.node_port_number()),
            ] {
                connect(stage, from, &Request::new(transport, to, port), &mut ports);
            }
        }
    };
    use_it(&stage);
    let none = |stage: &Stage| {
        each().all(|(family, transport)| {
            of_service(stage, &service, family, transport) == Counted::at_sockets(0)
        })
    };
    assert!(!none(&stage));
    stage.stop_agent("node-a");
    stage.set_argument("--traffic-counters", "off");
    stage.start_agent("node-a");
    eventually("what was counted before is gone", || none(&stage));
    use_it(&stage);
    assert!(none(&stage));
}
