//! Kubernetes objects to plain values: every rule of what an object means is decided here.
//!
//! One file per kind. A conversion never fails and never panics: the part of an object that can't
//! be used is left out and becomes a [`Problem`] that names the object, the part and the remedy;
//! the rest works. Knows nothing of other objects, of the datapath, or where an object came from.

pub mod cidr;
pub mod endpoints;
pub mod node;
pub mod service;
pub mod slice;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::snapshot::{ObjectName, Problem, Protocol};

/// The namespace of an object that doesn't say (only manifests can do that).
const DEFAULT_NAMESPACE: &str = "default";

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted<T> {
    /// The object's own namespace and name.
    pub name: ObjectName,
    /// Its value; `None` when it doesn't belong into the datapath (not always a problem).
    pub value: Option<T>,
    /// The object as problems name it: `Service default/web`.
    pub object: String,
    /// What could not be used.
    pub problems: Vec<Problem>,
}

/// Gathers the problems of one object.
struct Findings {
    object: String,
    problems: Vec<Problem>,
}

impl Findings {
    fn new(kind: &str, name: &ObjectName) -> Self {
        Self { object: format!("{kind} {name}"), problems: Vec::new() }
    }

    fn add(&mut self, reason: impl Into<String>) {
        self.problems.push(Problem { object: self.object.clone(), reason: reason.into() });
    }

    fn finish<T>(self, name: ObjectName, value: Option<T>) -> Converted<T> {
        Converted { name, value, object: self.object, problems: self.problems }
    }
}

/// One problem for many bad parts of the same sort: 10⁵ bad endpoints are one line, not 10⁵.
#[derive(Default)]
struct Repeated {
    first: Option<String>,
    count: usize,
}

impl Repeated {
    /// Counts a bad part; only the first one is described.
    fn add(&mut self, describe: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.is_none() {
            self.first = Some(describe());
        }
    }

    fn report(self, findings: &mut Findings) {
        if let Some(first) = self.first {
            match self.count - 1 {
                0 => findings.add(first),
                more => findings.add(format!("{first} (and {more} more like it)")),
            }
        }
    }
}

/// Namespace and name; an object without namespace is in `default`.
pub fn object_name(metadata: &ObjectMeta) -> ObjectName {
    let namespace = metadata.namespace.as_deref().filter(|text| !text.is_empty());
    ObjectName::new(
        namespace.unwrap_or(DEFAULT_NAMESPACE),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

/// The value of a label or annotation.
fn lookup<'a>(map: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    map?.get(key).map(String::as_str)
}

/// A protocol as the API writes it; missing means TCP.
fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

/// A port number that can be used: 1 to 65535.
fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|&port| port != 0)
}

#[cfg(test)]
mod tests;
