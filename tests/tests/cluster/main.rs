//! The load balancer against a real Kubernetes API server with its real controllers, on two nodes
//! that are namespaces of this machine.
//!
//! `cargo test -p lb-tests --test cluster`. Needs root and Go; the first run builds the control plane
//! (about ten minutes). All tests share one cluster and each has a namespace of its own in it.

mod bad_input;
mod chart;
mod chart_monitoring;
mod control_plane;
mod documents;
mod examples;
mod health_checks;
mod kube_proxy;
mod outages;
mod ranges;
mod swap;
mod takeover;
mod uninstall;
mod updates;
