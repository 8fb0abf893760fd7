//! What the kernel counts as lost in a network namespace.

use std::fs;

/// Parts of the names of the counters that tell it.
const LOSSES: [&str; 8] =
    ["Errors", "Discards", "Drop", "Fail", "Overflow", "NoRoutes", "NoPorts", "ReasmTimeout"];

/// The counters of the calling thread's namespace that tell a loss and are not zero; those of the
/// processors are the whole machine's.
pub(crate) fn counted() -> Vec<(String, u64)> {
    let mut counters: Vec<(String, u64)> = Vec::new();
    for text in ["snmp", "netstat"].map(read) {
        let mut lines = text.lines().map(str::split_whitespace);
        while let (Some(names), Some(counts)) = (lines.next(), lines.next()) {
            counters.extend(names.zip(counts).filter_map(counter));
        }
    }
    for line in read("snmp6").lines() {
        counters.extend(line.split_once('\t').and_then(counter));
    }
    counters.retain(|(name, _)| LOSSES.iter().any(|part| name.contains(part)));
    for (cpu, line) in read("softnet_stat").lines().enumerate() {
        let dropped = line.split_whitespace().nth(1).unwrap_or_default();
        let dropped = u64::from_str_radix(dropped, 16).unwrap_or_default();
        counters.push((format!("the backlog of processor {cpu}"), dropped));
    }
    for line in read("dev").lines() {
        if let Some((device, counts)) = line.split_once(':') {
            let counts: Vec<u64> =
                counts.split_whitespace().filter_map(|count| count.parse().ok()).collect();
            let dropped = [2, 3, 10, 11].iter().filter_map(|&column| counts.get(column)).sum();
            counters.push((device.trim().to_owned(), dropped));
        }
    }
    let conntrack = read("stat/nf_conntrack");
    let mut lines = conntrack.lines().map(str::split_whitespace);
    let names: Vec<&str> = lines.next().into_iter().flatten().collect();
    for counts in lines {
        for (name, count) in names.iter().zip(counts) {
            if ["insert_failed", "drop", "early_drop"].contains(name) {
                let count = u64::from_str_radix(count, 16).unwrap_or_default();
                counters.push((format!("conntrack's {name}"), count));
            }
        }
    }
    counters.retain(|(_, count)| *count != 0);
    counters
}

/// What this kernel doesn't count is empty.
fn read(name: &str) -> String {
    fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default()
}

fn counter((name, count): (&str, &str)) -> Option<(String, u64)> {
    Some((name.trim().to_owned(), count.trim().parse().ok()?))
}
