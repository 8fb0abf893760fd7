//! `process_…`: what the agent itself takes of the node, under the names that Prometheus' clients
//! have agreed on, and that kube-proxy's dashboards show.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads them when Prometheus asks. What can't be read is left out.
#[derive(Debug)]
pub struct Process {
    started: Option<Duration>,
    scope: Scope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    All,
    Start,
}

impl Process {
    /// All metrics of this process.
    pub fn new() -> Self {
        Self { started: started(), scope: Scope::All }
    }

    /// When this process started, and nothing else.
    pub(super) fn start_only() -> Self {
        Self { scope: Scope::Start, ..Self::new() }
    }
}

impl Default for Process {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Some(started) = self.started {
            gauge(
                &mut encoder,
                "process_start_time_seconds",
                "When the process started, in seconds since the epoch",
                started.as_secs_f64(),
            )?;
        }
        if self.scope == Scope::Start {
            return Ok(());
        }
        if let Some(stat) = Stat::read() {
            encode_stat(&mut encoder, &stat)?;
        }
        if let Some(open) = open_descriptors() {
            let help = "Open file descriptors";
            gauge(&mut encoder, "process_open_fds", help, open)?;
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let help = "File descriptors that may be open";
            gauge(&mut encoder, "process_max_fds", help, float(soft))?;
        }
        Ok(())
    }
}

fn encode_stat(encoder: &mut DescriptorEncoder<'_>, stat: &Stat) -> Result<(), std::fmt::Error> {
    let cpu = encoder.encode_descriptor(
        "process_cpu_seconds",
        "Time on processors, in the kernel and outside",
        None,
        MetricType::Counter,
    )?;
    ConstCounter::new(stat.cpu_seconds).encode(cpu)?;
    gauge(encoder, "process_virtual_memory_bytes", "Address space in use", stat.virtual_bytes)?;
    gauge(encoder, "process_resident_memory_bytes", "Memory in use", stat.resident_bytes)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: f64,
) -> Result<(), std::fmt::Error> {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// What we want of `/proc/self/stat`, proc_pid_stat(5).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    start_ticks: u64,
    virtual_bytes: f64,
    resident_bytes: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(
            &fs::read_to_string("/proc/self/stat").ok()?,
            setting(SysconfVar::CLK_TCK)?,
            setting(SysconfVar::PAGE_SIZE)?,
        )
    }

    fn parse(text: &str, ticks: u64, page: u64) -> Option<Self> {
        // The program's name, in parentheses, may hold anything; field 3 follows it.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_seconds: float(field(14)? + field(15)?) / float(ticks),
            start_ticks: field(22)?,
            virtual_bytes: float(field(23)?),
            resident_bytes: float(field(24)?.saturating_mul(page)),
        })
    }
}

/// Since the epoch. The kernel tells it since the boot.
fn started() -> Option<Duration> {
    let since_boot = Stat::read()?.start_ticks;
    let ticks = setting(SysconfVar::CLK_TCK)?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime = Duration::from_secs_f64(uptime.split(' ').next()?.parse().ok()?);
    let booted = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.checked_sub(uptime)?;
    Some(booted + Duration::from_secs_f64(float(since_boot) / float(ticks)))
}

/// Those of reading the directory included, as everybody counts.
fn open_descriptors() -> Option<f64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64)
}

fn setting(variable: SysconfVar) -> Option<u64> {
    u64::try_from(sysconf(variable).ok()??).ok().filter(|&value| value > 0)
}

/// Exact up to 2⁵³: 9 PB, or 292 million years of CPU time.
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn fields_are_counted_behind_a_name_that_holds_parentheses() {
        let text = "4711 (lb) agent) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 4 0 900 8192 3 0\n";
        let expected = Stat {
            cpu_seconds: 4.0,
            start_ticks: 900,
            virtual_bytes: 8192.0,
            resident_bytes: 12288.0,
        };
        assert_eq!(Stat::parse(text, 100, 4096), Some(expected));
        assert_eq!(Stat::parse("4711 (lb-agent) S 1", 100, 4096), None);
    }

    #[test]
    fn this_process_has_all_metrics_and_plausible_values() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process::new()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| unreachable!("{name} in {text}")).parse().unwrap()
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 3600.0..=now).contains(&value("process_start_time_seconds")), "{text}");
        assert!(value("process_resident_memory_bytes") > 1e6, "{text}");
        assert!(
            value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"),
            "{text}"
        );
        assert!(value("process_open_fds") >= 3.0, "{text}");
        assert!(value("process_max_fds") >= value("process_open_fds"), "{text}");
        assert!(value("process_cpu_seconds_total") >= 0.0, "{text}");
    }
}
