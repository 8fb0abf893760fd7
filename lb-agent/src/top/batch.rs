//! Plain tables, one after the other, for what is no terminal.

use std::io::{self, Write as _};
use std::time::{Instant, SystemTime};

use anyhow::Context as _;

use super::list::Entry;
use super::model::Model;
use super::node::{self, Node};
use super::rate::Metric;
use super::sample::{Row as _, Sample};
use super::words;
use crate::args::TopArgs;
use crate::inspect::rows::{ServiceRow, family_name, protocol_name};
use crate::inspect::table;

const HEADER: [&str; 15] = [
    "SERVICE",
    "PROTOCOL",
    "FAMILY",
    "TYPE",
    "ADDRESS",
    "ENDPOINTS",
    "CONNECTIONS/S",
    "PACKETS/S",
    "BYTES/S",
    "DROPS/S",
    "CONNECTIONS",
    "PACKETS",
    "BYTES",
    "DROPS",
    "REASONS",
];

/// Prints a table after each interval, until there were as many as asked for, or nobody reads them.
pub fn run(args: &TopArgs, mut model: Model) -> anyhow::Result<()> {
    let (mut printed, mut asked) = (0, Instant::now());
    while args.frames.is_none_or(|frames| printed < frames) {
        std::thread::sleep(args.interval);
        model.look(Sample::take(args).map_err(|error| error.to_string()));
        if asked.elapsed() >= node::PAUSE {
            model.node = Node::look(args);
            asked = Instant::now();
        }
        let gap = if printed == 0 { "" } else { "\n" };
        if !print(&format!("{gap}{}", frame(&model, SystemTime::now())))? {
            break;
        }
        printed += 1;
    }
    Ok(())
}

/// Whether somebody reads on.
fn print(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("write to standard output"),
    }
}

fn frame(model: &Model, now: SystemTime) -> String {
    let node = &model.node;
    let drops = rate(model.totals()[Metric::Drops]);
    let flows = table::count(node.flows);
    let mut text = format!(
        "{}  node {}  {}  services {}  endpoints {}  flows {flows}  drops/s {drops}\n",
        humantime::format_rfc3339_seconds(now),
        node.name,
        node.state_word(),
        model.services.len(),
        model.backend_count(),
    );
    for problem in node.problems.iter().chain(&model.trouble) {
        text.push_str(&format!("problem: {problem}\n"));
    }
    text.push_str(&table::render(&HEADER, model.services.shown().map(line)));
    text
}

fn line(entry: &Entry<ServiceRow>) -> Vec<String> {
    let Entry { row, counts, track } = entry;
    let mut line = vec![
        row.name(),
        protocol_name(row.protocol).into(),
        family_name(row.family).into(),
        words::kind(row).into(),
        words::address(row),
        row.backends.len().to_string(),
    ];
    line.extend(track.rates().0.map(rate));
    line.extend(counts.0.map(table::count));
    let reasons = row.drops.keys().copied().collect::<Vec<_>>().join(",");
    line.push(table::or_dash(reasons));
    line
}

fn rate(rate: Option<f64>) -> String {
    table::or_dash(rate.map(|rate| format!("{rate:.1}")).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::testing::{Looks, service};

    #[test]
    fn a_table_has_all_rows_with_rates_counts_and_why_something_was_dropped() {
        let mut looks = Looks::new();
        looks.look(vec![service("a", 10, 0), service("b", 0, 1)], &[("no_endpoints", 1)]);
        looks.look(vec![service("a", 14, 0), service("b", 20, 3)], &[("no_endpoints", 3)]);
        looks.model.node.problems = vec!["no agent runs".into()];
        let text = frame(&looks.model, SystemTime::UNIX_EPOCH);
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines[0].join(" "),
            "1970-01-01T00:00:00Z node node-a ok services 2 endpoints 2 flows 3 drops/s 2.0"
        );
        assert_eq!(lines[1].join(" "), "problem: no agent runs");
        assert_eq!(lines[2], HEADER);
        assert_eq!(
            lines[3].join(" "),
            "default/b:http TCP IPv4 NodePort 10.96.0.11:80 1 20.0 - - 2.0 20 - - 3 no_endpoints"
        );
        assert_eq!(lines[4][6..14].join(" "), "4.0 - - 0.0 14 - - 0");
        assert_eq!(lines.len(), 5);
    }
}
