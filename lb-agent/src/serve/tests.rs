//! The two servers, asked by real sockets on loopback.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// The answer to one request to a server that listens on `address`, asked at `from`'s own loopback.
async fn answer(router: &Router, address: &str, from: &str, path: &str, header: &str) -> String {
    let listener = socket::listen(address.parse().unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(axum::serve(listener, router.clone()).into_future());
    let to = SocketAddr::new(from.parse().unwrap(), port);
    let mut stream = TcpStream::connect(to).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n{header}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    server.abort();
    text
}

#[tokio::test]
async fn healthz_answers_with_the_headers_of_kube_proxy_on_both_families() {
    for (address, from) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
        let health = Arc::new(Health::new(false));
        let router = health_router(health.clone(), Metrics::new(Vec::new()));
        let before = answer(&router, address, from, "/healthz", "").await;
        assert!(before.starts_with("HTTP/1.1 503 "), "{before}");
        health.applied();
        let after = answer(&router, address, from, "/healthz", "").await;
        assert!(after.starts_with("HTTP/1.1 200 OK\r\n"), "{after}");
        assert!(after.contains("content-type: application/json\r\n"), "{after}");
        assert!(after.contains("x-content-type-options: nosniff\r\n"), "{after}");
        assert!(after.contains("\"lastUpdated\":"), "{after}");
    }
}

#[tokio::test]
async fn the_unspecified_address_of_either_family_listens_on_both() {
    let router = metrics_router(Metrics::new(Vec::new()));
    for address in ["0.0.0.0:0", "[::]:0"] {
        for from in ["127.0.0.1", "::1"] {
            let text = answer(&router, address, from, "/healthz", "").await;
            assert!(text.ends_with("\r\n\r\nok"), "{address} from {from}: {text}");
        }
    }
}

#[tokio::test]
async fn an_address_of_one_family_alone_leaves_the_other_family_to_others() {
    let v4 = socket::listen_only("0.0.0.0:0".parse().unwrap()).unwrap();
    let port = v4.local_addr().unwrap().port();
    let v6 = socket::listen_only(SocketAddr::new("::".parse().unwrap(), port)).unwrap();
    for (to, listener) in [("127.0.0.1", &v4), ("::1", &v6)] {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let (stream, accepted) = tokio::join!(TcpStream::connect(to), listener.accept());
        assert_eq!(stream.unwrap().local_addr().unwrap(), accepted.unwrap().1);
    }
}

#[tokio::test]
async fn the_metrics_server_answers_what_kube_proxys_does() {
    let router = metrics_router(Metrics::new(Vec::new()));
    let open_metrics = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    for (path, header, status, expected) in [
        ("/healthz", "", "200 OK", "ok"),
        ("/proxyMode", "", "200 OK", "ebpf"),
        ("/proxyMode", "", "200 OK", "x-content-type-options: nosniff"),
        ("/metrics", "", "200 OK", "# TYPE lb_agent_build_info gauge"),
        ("/metrics", "", "200 OK", "content-type: text/plain; version=0.0.4; charset=utf-8"),
        ("/metrics", open_metrics, "200 OK", "# TYPE lb_agent_build info"),
        (
            "/metrics",
            open_metrics,
            "200 OK",
            "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        (
            "/metrics/slis",
            "",
            "200 OK",
            "kubernetes_healthchecks_total{name=\"ping\",type=\"healthz\",status=\"success\"} 1\n",
        ),
        ("/nothing", "", "404 Not Found", ""),
    ] {
        let text = answer(&router, "127.0.0.1:0", "127.0.0.1", path, header).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {text}");
        assert!(text.contains(expected), "{path}: {expected} in {text}");
    }
}
