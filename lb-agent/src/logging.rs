//! Log lines on standard error, for people or for machines.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::args::{LogFormat, LoggingArgs};

/// `--log-level` can't be understood.
#[derive(Debug, thiserror::Error)]
#[error(
    "--log-level {value:?}: {source}; write error, warn, info, debug or trace, or for one module \
     `info,lb_agent::node=debug`"
)]
pub struct LogLevelError {
    value: String,
    #[source]
    source: tracing_subscriber::filter::ParseError,
}

/// kube logs an error for each request of each retry (its watcher, each 403);
/// [`crate::cluster::watch`] says a loss once.
const REPEAT_THEMSELVES: [&str; 2] = ["kube_client", "kube_runtime"];

/// Begins to log as asked.
pub fn start(args: &LoggingArgs) -> Result<(), LogLevelError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&args.log_level)?)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

fn filter(level: &str) -> Result<EnvFilter, LogLevelError> {
    let mut directives = level.to_owned();
    for module in REPEAT_THEMSELVES {
        if !level.contains(module) {
            directives.push_str(&format!(",{module}=off"));
        }
    }
    EnvFilter::builder()
        .parse(directives)
        .map_err(|source| LogLevelError { value: level.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_none_is_refused_with_a_remedy() {
        let error = filter("info,lb_agent=loud").expect_err("refused").to_string();
        assert!(error.contains("--log-level \"info,lb_agent=loud\""), "{error}");
        assert!(error.contains("; write error, warn"), "{error}");
    }

    #[test]
    fn what_kube_repeats_is_silent_unless_it_is_asked_for() {
        for (level, expected) in [
            ("info", "kube_runtime=off,kube_client=off,info"),
            (
                "warn,lb_agent::node=debug",
                "lb_agent::node=debug,kube_runtime=off,kube_client=off,warn",
            ),
            ("info,kube_client=debug", "kube_runtime=off,kube_client=debug,info"),
        ] {
            assert_eq!(filter(level).unwrap().to_string(), expected, "{level}");
        }
    }
}
