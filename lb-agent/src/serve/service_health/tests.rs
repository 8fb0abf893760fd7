//! Health check ports with real sockets, of both families.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{ServiceHealth, Trouble};
use crate::cluster::snapshot::ObjectName;
use crate::config::NodePortAddresses;
use crate::node::facts::NodeFacts;
use crate::plan::desired::HealthCheck;
use crate::serve::health::Health;

const LOOPBACKS: [&str; 2] = ["127.0.0.1", "::1"];

/// Servers and everything they are connected to.
struct Bench {
    checks: Arc<ServiceHealth>,
    proxy: Arc<Health>,
    /// Sockets that couldn't be opened, in words.
    troubles: Arc<Mutex<Vec<String>>>,
    /// How many can't be opened at the moment.
    closed: Arc<Mutex<usize>>,
    task: JoinHandle<()>,
}

impl Bench {
    /// Every address of the node, or those that `facts` will name.
    fn start(nodeport_addresses: NodePortAddresses) -> Self {
        let checks = Arc::new(ServiceHealth::new(nodeport_addresses));
        let proxy = Arc::new(Health::new(false));
        let (troubles, closed) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let (their_troubles, their_closed) = (troubles.clone(), closed.clone());
        let report =
            move |trouble: Trouble| their_troubles.lock().unwrap().push(trouble.to_string());
        let count = move |closed| *their_closed.lock().unwrap() = closed;
        let task = tokio::spawn(super::serve(checks.clone(), proxy.clone(), report, count));
        Self { checks, proxy, troubles, closed, task }
    }

    /// On both loopback addresses only.
    fn on_loopback() -> Self {
        let bench = Self::start(NodePortAddresses::Primary);
        bench.checks.set_addresses(&facts(&LOOPBACKS));
        bench
    }

    fn set(&self, name: &str, check: Option<HealthCheck>) {
        self.checks.update(&[(ObjectName::new("ns", name), check)].into());
    }

    fn closed(&self) -> usize {
        *self.closed.lock().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn facts(addresses: &[&str]) -> NodeFacts {
    let addresses = addresses.iter().map(|text| (text.parse().unwrap(), true)).collect();
    NodeFacts { addresses, ..NodeFacts::default() }
}

fn check(port: u16, v4: Option<usize>, v6: Option<usize>) -> Option<HealthCheck> {
    Some(HealthCheck { port, local_ready4: v4, local_ready6: v6 })
}

/// A port that is free in both families, as far as one can know.
async fn free_port() -> u16 {
    loop {
        let v4 = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = v4.local_addr().unwrap().port();
        if TcpListener::bind(("::1", port)).await.is_ok() {
            return port;
        }
    }
}

/// What is answered to these bytes, until the server closes; `None` if nobody listens.
async fn ask(address: &str, port: u16, request: &str) -> Option<String> {
    let address: IpAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect(SocketAddr::new(address, port)).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    Some(text)
}

const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";

/// The status that a load balancer sees; `None` if nobody listens.
async fn status(address: &str, port: u16) -> Option<u16> {
    ask(address, port, GET).await?.split(' ').nth(1)?.parse().ok()
}

/// Waits until both families' statuses are these.
async fn until(port: u16, expected: [Option<u16>; 2]) {
    let mut seen = [None, None];
    for _ in 0..1_000 {
        seen = [status("127.0.0.1", port).await, status("::1", port).await];
        if seen == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    unreachable!("not in time: {seen:?} instead of {expected:?}");
}

#[tokio::test]
async fn any_method_and_path_is_answered_byte_for_byte_as_kube_proxy_does() {
    let (bench, port) = (Bench::on_loopback(), free_port().await);
    bench.set("web", check(port, Some(2), Some(0)));
    until(port, [Some(200), Some(503)]).await;
    let expected = |status: &str, count: usize| {
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"web\"\n\t}},\n\
             \t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": true\n}}"
        );
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\
             X-Content-Type-Options: nosniff\r\nX-Load-Balancing-Endpoint-Weight: {count}\r\n"
        );
        (head, body)
    };
    for (address, status, count) in
        [("127.0.0.1", "200 OK", 2), ("::1", "503 Service Unavailable", 0)]
    {
        let (head, body) = expected(status, count);
        for (request, has_body) in [
            (GET.to_owned(), true),
            (GET.replace("GET /", "GET /healthz?x=y"), true),
            (GET.replace("GET /", "DELETE /any/path"), true),
            (
                GET.replace("GET /", "POST /")
                    .replace("\r\n\r\n", "\r\nContent-Length: 2\r\n\r\n{}"),
                true,
            ),
            (GET.replace("GET /", "HEAD /"), false),
            (GET.replace("GET /", "PURGE /"), true),
        ] {
            let text = ask(address, port, &request).await.unwrap();
            let (said, page) = text.split_once("\r\n\r\n").unwrap();
            assert!(said.starts_with(&head), "{address} {request}: {said}");
            let length = format!("\r\nContent-Length: {}", body.len());
            assert!(said.contains(&length), "{address} {request}: {said}");
            assert_eq!(page, if has_body { &body } else { "" }, "{address} {request}");
        }
    }
}

#[tokio::test]
async fn a_changed_count_is_the_next_answer_on_a_connection_that_stays_open() {
    let (bench, port) = (Bench::on_loopback(), free_port().await);
    bench.set("web", check(port, Some(1), Some(1)));
    until(port, [Some(200), Some(200)]).await;
    for address in LOOPBACKS {
        let address: IpAddr = address.parse().unwrap();
        let mut stream = TcpStream::connect(SocketAddr::new(address, port)).await.unwrap();
        for (count, expected) in [(3, "HTTP/1.1 200 OK"), (0, "HTTP/1.1 503 "), (1, "HTTP/1.1 200")]
        {
            bench.set("web", check(port, Some(count), Some(count)));
            stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer).await.unwrap();
            let text = String::from_utf8_lossy(&buffer[..length]);
            assert!(text.starts_with(expected), "{text}");
            assert!(text.contains(&format!("Endpoint-Weight: {count}\r\n")), "{text}");
        }
    }
}

#[tokio::test]
async fn a_datapath_that_is_late_fails_every_check() {
    let (bench, port) = (Bench::on_loopback(), free_port().await);
    bench.set("web", check(port, Some(2), Some(2)));
    until(port, [Some(200), Some(200)]).await;
    bench.proxy.has_waited(Duration::from_secs(61));
    for address in LOOPBACKS {
        let text = ask(address, port, GET).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        assert!(text.contains("Endpoint-Weight: 2\r\n"), "{text}");
        assert!(text.ends_with("\"serviceProxyHealthy\": false\n}"), "{text}");
    }
    bench.proxy.applied();
    until(port, [Some(200), Some(200)]).await;
}

#[tokio::test]
async fn sockets_follow_ports_families_and_addresses() {
    let bench = Bench::on_loopback();
    let (first, second, other) = (free_port().await, free_port().await, free_port().await);
    bench.set("web", check(first, Some(1), Some(1)));
    bench.set("other", check(other, Some(1), Some(1)));
    until(first, [Some(200), Some(200)]).await;
    until(other, [Some(200), Some(200)]).await;
    let mut lost = TcpStream::connect(("127.0.0.1", first)).await.unwrap();

    bench.set("web", check(second, Some(1), None));
    until(second, [Some(200), None]).await;
    until(first, [None, None]).await;
    assert_eq!(lost.read(&mut [0; 64]).await.unwrap_or(0), 0, "closed with its socket");

    bench.set("web", None);
    until(second, [None, None]).await;

    bench.checks.set_addresses(&facts(&["::1"]));
    until(other, [None, Some(200)]).await;
    bench.checks.set_addresses(&facts(&LOOPBACKS));
    until(other, [Some(200), Some(200)]).await;
    assert_eq!(bench.closed(), 0, "{:?}", bench.troubles.lock().unwrap());

    let all = [(ObjectName::new("ns", "web"), check(second, None, Some(1)).unwrap())];
    bench.checks.replace(&all.into());
    until(second, [None, Some(200)]).await;
    until(other, [None, None]).await;
}

#[tokio::test]
async fn a_socket_that_stays_keeps_its_connections_while_others_come_and_go() {
    let bench = Bench::on_loopback();
    let (stays, moves, later) = (free_port().await, free_port().await, free_port().await);
    bench.set("stays", check(stays, Some(1), Some(1)));
    bench.set("moves", check(moves, Some(1), Some(1)));
    until(stays, [Some(200), Some(200)]).await;
    let mut kept = TcpStream::connect(("::1", stays)).await.unwrap();
    for port in [later, moves, later] {
        bench.set("moves", check(port, Some(1), Some(1)));
        until(port, [Some(200), Some(200)]).await;
    }
    bench.set("moves", None);
    until(later, [None, None]).await;
    kept.write_all(GET.as_bytes()).await.unwrap();
    let mut text = String::new();
    kept.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
}

#[tokio::test]
async fn two_services_may_exchange_their_ports() {
    let bench = Bench::on_loopback();
    let (first, second) = (free_port().await, free_port().await);
    for (one, two) in [(first, second), (second, first), (first, second)] {
        let name = |name: &str| ObjectName::new("ns", name);
        let changes = [
            (name("one"), check(one, Some(1), Some(1))),
            (name("two"), check(two, Some(0), Some(0))),
        ];
        bench.checks.update(&changes.into());
        until(one, [Some(200), Some(200)]).await;
        until(two, [Some(503), Some(503)]).await;
    }
    assert_eq!(*bench.troubles.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_port_in_use_is_reported_once_and_opened_when_it_is_free() {
    let bench = Bench::on_loopback();
    let squatter = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = squatter.local_addr().unwrap().port();
    bench.set("web", check(port, Some(1), Some(1)));
    for _ in 0..1_000 {
        if bench.closed() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Another look at it, and nothing new to say.
    bench.set("other", check(free_port().await, Some(1), Some(1)));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(status("::1", port).await, Some(200), "the other family isn't affected");
    let troubles = bench.troubles.lock().unwrap().clone();
    assert_eq!(troubles.len(), 1, "{troubles:?}");
    for part in ["ns/web", &format!("127.0.0.1:{port}"), "in use", "another healthCheckNodePort"] {
        assert!(troubles[0].contains(part), "{part} in {troubles:?}");
    }
    drop(squatter);
    until(port, [Some(200), Some(200)]).await;
    assert_eq!(bench.closed(), 0);
}

#[tokio::test]
async fn without_restriction_every_address_of_the_families_that_a_service_has_answers() {
    for (v4, v6) in [(Some(1), Some(1)), (Some(1), None), (None, Some(1))] {
        let (bench, port) = (Bench::start(NodePortAddresses::All), free_port().await);
        bench.set("web", check(port, v4, v6));
        until(port, [v4.map(|_| 200), v6.map(|_| 200)]).await;
    }
}
