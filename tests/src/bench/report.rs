//! What the reader sees: lines on the terminal while it is measured, and Markdown in the end.

use std::fmt::Write as _;
use std::fs;

/// Sections in the order in which they were measured.
pub(super) struct Report {
    environment: Vec<(&'static str, String)>,
    warnings: Vec<String>,
    text: String,
    goals: Vec<(String, bool)>,
}

impl Report {
    /// An empty report of this machine.
    pub fn new(commit: &str, rustc: &str) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let environment = vec![
            ("Kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
            ("CPU", model.map_or("unknown", |(_, name)| name).to_owned()),
            ("Cores", cores.to_string()),
            ("Compiler", rustc.to_owned()),
            ("Commit", commit.to_owned()),
            ("Load average at the start", read("/proc/loadavg").trim().to_owned()),
        ];
        Self { environment, warnings: Vec::new(), text: String::new(), goals: Vec::new() }
    }

    /// Something that makes the figures doubtful.
    pub fn warn(&mut self, warning: &str) {
        eprintln!("bench: WARNING: {warning}");
        self.warnings.push(warning.to_owned());
    }

    /// A headline and what was measured how.
    pub fn section(&mut self, title: &str, method: &str) {
        println!("\n{title}");
        let _ = write!(self.text, "\n## {title}\n\n{method}\n");
    }

    /// Rows of figures.
    pub fn table<const N: usize>(&mut self, head: [&str; N], rows: &[[String; N]]) {
        let _ = writeln!(self.text, "\n| {} |", head.join(" | "));
        let _ = writeln!(self.text, "|---{}|", "|---:".repeat(N - 1));
        for row in rows {
            let _ = writeln!(self.text, "| {} |", row.join(" | "));
        }
        print_table(head, rows);
    }

    /// Whether a goal of the project was reached.
    pub fn goal(&mut self, goal: &str, found: &str, met: bool) {
        let line = format!("{} ({goal}): {found}", if met { "goal met" } else { "GOAL MISSED" });
        println!("  {line}");
        let _ = write!(self.text, "\n{line}\n");
        self.goals.push((format!("{goal}: {found}"), met));
    }

    /// All of it.
    pub fn markdown(&self) -> String {
        let mut text =
            "# Benchmarks\n\nWritten by `cargo xtask bench`; every figure is of one run, \
             and every ratio is between two things measured in turns within it.\n\n"
                .to_owned();
        text.push_str("| Environment | |\n|---|---|\n");
        for (name, value) in &self.environment {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        for warning in &self.warnings {
            let _ = write!(text, "\n**Warning:** {warning}\n");
        }
        text.push_str("\n| Goal | |\n|---|---|\n");
        for (goal, met) in &self.goals {
            let _ = writeln!(text, "| {goal} | {} |", if *met { "met" } else { "**missed**" });
        }
        text + &self.text
    }
}

fn print_table<const N: usize>(head: [&str; N], rows: &[[String; N]]) {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (index, (cell, width)) in cells.zip(widths).enumerate() {
            let _ = match index {
                0 => write!(text, "  {cell:width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        println!("{}", text.trim_end());
    };
    line(&mut head.into_iter());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}
