//! An API server as far as a list and a watch go: what a node's agent sees of one with ten thousand
//! Services. It runs inside the node, over HTTP/1.1 without TLS.
//!
//! `N M` on standard input replaces endpoint 0 of Service N with its M-th replacement and sends the
//! event to the watch.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::peer::READY;
use super::scale::NODE;
use super::{SERVICES, objects};

/// Where it listens, inside the node.
pub(super) const PORT: u16 = 6_443;

/// Streams of the watches of EndpointSlices.
type Watches = Arc<Mutex<Vec<TcpStream>>>;

/// Serves until standard input ends.
pub(super) fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).context("listen")?;
    let watches = Watches::default();
    println!("{READY}");
    let accepted = Arc::clone(&watches);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let watches = Arc::clone(&accepted);
            // A client that goes away is no error.
            std::thread::spawn(move || answer(stream, &watches));
        }
    });
    for line in std::io::stdin().lines() {
        let line = line.context("read an order")?;
        let (service, replaced) = line.split_once(' ').context("an order of two numbers")?;
        let object = objects::slice(service.parse()?, replaced.parse()?);
        let event = json!({"type": "MODIFIED", "object": object}).to_string() + "\n";
        let mut watches = watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain_mut(|stream| send_chunk(stream, &event).is_ok());
    }
    Ok(())
}

fn send_chunk(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}

/// Answers the requests of one connection.
fn answer(stream: TcpStream, watches: &Watches) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(request) = lines.next() {
        let request = request?;
        while lines.next().transpose()?.is_some_and(|header| !header.is_empty()) {}
        let target = request.split(' ').nth(1).context("a request without a target")?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: BTreeMap<_, _> =
            query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        if query.get("watch").is_some_and(|value| matches!(*value, "true" | "1")) {
            writer.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
                  Transfer-Encoding: chunked\r\n\r\n",
            )?;
            if path.ends_with("/endpointslices") {
                watches.lock().unwrap_or_else(PoisonError::into_inner).push(writer.try_clone()?);
            }
            continue;
        }
        let number = |name: &str| query.get(name).and_then(|text| text.parse::<u32>().ok());
        let first = number("continue").unwrap_or(0);
        let end = first.saturating_add(number("limit").unwrap_or(SERVICES)).min(SERVICES);
        let body = list(path, first, end).to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        writer.write_all(head.as_bytes())?;
        writer.write_all(body.as_bytes())?;
    }
    Ok(())
}

/// One page of a list.
fn list(path: &str, first: u32, end: u32) -> Value {
    let (version, kind, items): (_, _, Vec<_>) = if path.ends_with("/services") {
        ("v1", "ServiceList", (first..end).map(objects::service).collect())
    } else if path.ends_with("/endpointslices") {
        let slices = (first..end).map(|service| objects::slice(service, 0));
        ("discovery.k8s.io/v1", "EndpointSliceList", slices.collect())
    } else {
        // The node itself, without which the agent isn't healthy.
        ("v1", "NodeList", vec![json!({"metadata": {"name": NODE, "resourceVersion": "1"}})])
    };
    let is_whole = end == SERVICES || path.ends_with("/nodes");
    let more = if is_whole { String::new() } else { end.to_string() };
    json!({
        "apiVersion": version, "kind": kind, "items": items,
        "metadata": {"resourceVersion": "1", "continue": more},
    })
}
