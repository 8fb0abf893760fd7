//! `lb-agent doctor`: what on this node keeps Services from working, and what to do about it.
//!
//! [`facts`] looks at the machine, [`checks`] judges what was seen and asks nothing: a verdict is a
//! function of facts. [`others`] finds other service proxies.

mod agent;
mod checks;
mod diff;
pub mod facts;
pub mod others;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::args::{DoctorArgs, DoctorFormat};
use crate::inspect::table;
use facts::Facts;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Info,
    /// Works less well than it could, or may break later.
    Warning,
    /// Services don't work, or wouldn't after the next start.
    Error,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }

    /// The exit status of a report whose worst finding is this. 1 and 2 mean that there is no report.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Ok | Self::Info => 0,
            Self::Warning => 3,
            Self::Error => 4,
        }
    }
}

/// One line of the report. The fields' names are those of the JSON output: they are an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at.
    pub check: &'static str,
    /// What was seen.
    pub finding: String,
    /// What to do; empty when nothing has to be done.
    pub remedy: String,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// What the agent is told can't be understood.
    #[error(transparent)]
    Config(#[from] crate::config_file::FileError),
    /// The network can't be looked at.
    #[error(transparent)]
    Observe(#[from] crate::node::observe::ObserveError),
    /// No runtime.
    #[error("start a thread: {0}")]
    Runtime(std::io::Error),
}

/// Looks, judges, and returns the findings in the order of the checks.
pub fn examine(args: &DoctorArgs, hostname: &str) -> Result<Vec<Finding>, DoctorError> {
    Ok(checks::judge(&Facts::gather(args.run.clone(), hostname)?))
}

/// The worst of all.
pub fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
}

/// The report as it is printed.
pub fn render(findings: &[Finding], format: DoctorFormat) -> anyhow::Result<String> {
    Ok(match format {
        DoctorFormat::Json => table::json(findings)?,
        DoctorFormat::Yaml => serde_yaml_ng::to_string(findings)?,
        DoctorFormat::Table => {
            let line = |finding: &Finding| {
                let mut text = finding.finding.clone();
                if !finding.remedy.is_empty() {
                    text = format!("{text}\n  → {}", finding.remedy);
                }
                vec![finding.severity.name().to_owned(), finding.check.to_owned(), text]
            };
            table::render(&["SEVERITY", "CHECK", "FINDING"], findings.iter().map(line))
        }
    })
}
