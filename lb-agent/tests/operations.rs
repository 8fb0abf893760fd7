//! `docs/operations.md` and the code say the same.

use lb_agent::inspect::reasons;
use lb_common::lb::DropReason;
use lb_common::maglev;

const PAGE: &str = include_str!("../../docs/operations.md");

/// Cells of the table whose header begins so, without the lines of the header.
fn table(header: &str) -> Vec<Vec<&'static str>> {
    let lines = PAGE.lines().map(str::trim).skip_while(|line| !line.starts_with(header));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[test]
fn every_drop_reason_is_there_with_its_cause_and_its_cure() {
    let expected = DropReason::ALL.map(|reason| {
        [
            format!("`{}`", reason.label()),
            reasons::cause(reason).into(),
            reasons::cure(reason).into(),
        ]
    });
    assert_eq!(table("| reason |"), expected);
}

#[test]
fn hash_tables_are_as_long_as_it_says() {
    let rows = table("| endpoints |");
    assert_eq!(rows.len(), 5);
    for row in rows {
        let [endpoints, slots] = [0, 1].map(|cell| row[cell].parse::<u32>().unwrap());
        assert_eq!(maglev::table_len(endpoints), slots, "{endpoints} endpoints");
    }
}

#[test]
fn the_defaults_are_those_of_the_command_line() {
    use clap::CommandFactory as _;
    let command = lb_agent::args::Args::command();
    let run = command.find_subcommand("run").unwrap();
    for row in table("| flag |") {
        let flag = row[0].trim_matches('`').trim_start_matches("--");
        let argument =
            run.get_arguments().find(|argument| argument.get_long() == Some(flag)).unwrap();
        assert_eq!(argument.get_default_values()[0].to_str(), Some(row[1]), "{flag}");
    }
}
