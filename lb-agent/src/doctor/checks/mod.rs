//! The verdicts: each check is a function of what was seen, and asks nothing.

mod datapath;
mod host;
mod network;
mod ports;
mod proxies;

use super::facts::Facts;
use super::{Finding, Severity};
pub(super) use datapath::{agent, attachments, fill, services};
pub(super) use host::{capabilities, kernel, mounts, programs};
pub(super) use network::{addresses, devices, forwarding, mtu, reverse_path};
pub(super) use ports::ports;
pub(super) use proxies::proxies;

fn finding(
    severity: Severity,
    check: &'static str,
    finding: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { severity, check, finding: finding.into(), remedy: remedy.into() }
}

/// An error of the agent's as a finding: its remedy is its last part. `remedy` is for one that has none.
fn from_error(
    severity: Severity,
    check: &'static str,
    error: &str,
    remedy: impl Into<String>,
) -> Finding {
    match error.rsplit_once("; ") {
        Some((what, remedy)) => finding(severity, check, what, remedy),
        None => finding(severity, check, error, remedy),
    }
}

fn or_fine(found: Vec<Finding>, check: &'static str, text: &str) -> Vec<Finding> {
    if found.is_empty() { vec![finding(Severity::Ok, check, text, "")] } else { found }
}

/// All findings.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let checks: [fn(&Facts) -> Vec<Finding>; 16] = [
        host::flags,
        kernel,
        programs,
        capabilities,
        mounts,
        forwarding,
        reverse_path,
        ports,
        proxies,
        devices,
        attachments,
        mtu,
        addresses,
        fill,
        services,
        agent,
    ];
    checks.iter().flat_map(|check| check(facts)).collect()
}
