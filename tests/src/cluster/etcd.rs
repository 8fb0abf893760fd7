//! Two requests to etcd's JSON gateway: its revision, and compaction up to it.
//!
//! Compaction makes the API server forget old versions, which is how a client gets `410 Gone`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::process::Namespace;

/// Port for clients, on loopback inside the control plane's namespace.
pub const CLIENT_PORT: u16 = 2379;
/// Port for the (absent) other members.
pub const PEER_PORT: u16 = 2380;

/// Discards every version but the newest of everything in the etcd inside `namespace`; returns the
/// revision up to which it did.
///
/// # Errors
/// etcd can't be reached or refuses.
pub fn compact(namespace: &Namespace) -> Result<i64> {
    namespace.run(|| {
        // "AA==" is the key "\0": the answer is about no key, its header carries the revision.
        let answer = post("/v3/kv/range", &json!({"key": "AA==", "limit": "1"}))?;
        let revision = answer["header"]["revision"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .with_context(|| format!("etcd's answer names no revision: {answer}"))?;
        post("/v3/kv/compaction", &json!({"revision": revision, "physical": true}))?;
        Ok(revision)
    })?
}

fn post(path: &str, body: &Value) -> Result<Value> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, CLIENT_PORT))
        .context("connecting to etcd on loopback")?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).context("bounding etcd's answer")?;
    let body = body.to_string();
    // HTTP/1.0: the answer ends with the connection and has no chunks to take apart.
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).with_context(|| format!("POST {path} to etcd"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("reading etcd's {path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("etcd's answer has no body")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    ensure!(status == "200", "etcd refused {path}: {answer}");
    serde_json::from_str(body).with_context(|| format!("etcd's answer to {path}: {body}"))
}
