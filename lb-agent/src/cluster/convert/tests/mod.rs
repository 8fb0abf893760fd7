//! Kubernetes YAML → values: every rule of kube-proxy's contract about what an object means.

mod cidr;
mod endpoints;
mod node;
mod service;
mod slice;

use super::Converted;

/// Reads a manifest as the API server would store it.
fn yaml<K: serde::de::DeserializeOwned>(text: &str) -> K {
    serde_yaml_ng::from_str(text).unwrap_or_else(|error| panic!("{error} in:\n{text}"))
}

/// The reasons of all problems; each must name its object.
fn reasons<T>(converted: &Converted<T>) -> Vec<&str> {
    for problem in &converted.problems {
        assert_eq!(problem.object, converted.object, "a problem names its object");
    }
    converted.problems.iter().map(|problem| problem.reason.as_str()).collect()
}

/// Exactly one problem per expected text, in order, each containing it.
fn assert_reasons<T>(converted: &Converted<T>, expected: &[&str], what: &str) {
    let found = reasons(converted);
    let matches = found.len() == expected.len()
        && found.iter().zip(expected).all(|(reason, part)| reason.contains(part));
    assert!(matches, "{what}: expected problems with {expected:?}, found {found:#?}");
}
