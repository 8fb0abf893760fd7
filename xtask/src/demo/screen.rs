//! How the demo looks: headings, bars and verdicts on standard output, a spinner on a terminal.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::board::{Board, Entry};

/// Length of the longest bar, in characters.
const BAR: u64 = 40;
/// Text is wrapped at this column.
const WIDTH: usize = 92;

const INTRODUCTION: &str = "
                        site on the Internet 203.0.113.10
                             │
  client 10.240.0.100 ───────┴──────────────┐
                             │              │
                  node-a 10.240.0.11   node-b 10.240.0.12
                     pod-a1 a2 a3         pod-b1 b2 b3

Each box is a network namespace of this machine; nothing leaves it. One lb-agent runs per node and
follows a directory of manifests. Every connection below is a real socket's.";

/// Where the demo is shown, and its score so far.
pub(super) struct Screen {
    colour: bool,
    started: Instant,
    passed: usize,
    failed: usize,
}

/// A spinner that goes away when this is dropped; invisible unless on a terminal.
pub(super) struct Working(ProgressBar);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Screen {
    /// Decides on colours: on a terminal, unless NO_COLOR says otherwise (<https://no-color.org>).
    pub fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let colour = wanted && std::io::stdout().is_terminal();
        Self { colour, started: Instant::now(), passed: 0, failed: 0 }
    }

    /// Says what the reader is going to see.
    pub fn introduce(&self) {
        println!("{INTRODUCTION}");
    }

    /// Shows that something goes on.
    pub fn working(&self, what: &str) -> Working {
        // Draws on standard error and hides itself where that is no terminal.
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} … {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Working(bar)
    }

    /// Begins a step.
    pub fn open(&self, number: usize, of: usize, title: &str, why: &str) {
        println!("\n{}", self.paint("1", &format!("{number}/{of}  {title}")));
        for line in wrap(why, WIDTH - 5) {
            println!("     {line}");
        }
    }

    /// Shows what a step found out.
    pub fn close(&mut self, board: &Board) {
        for entry in board.entries() {
            match entry {
                Entry::Bars { title, counts } => self.bars(title, counts),
                Entry::Check { claim, verdict: Ok(()) } => {
                    println!("  {} {claim}", self.paint("32", "ok    "));
                }
                Entry::Check { claim, verdict: Err(seen) } => {
                    println!("  {} {claim}", self.paint("31", "FAILED"));
                    println!("         {seen}");
                }
            }
        }
        let (passed, failed) = board.score();
        self.passed += passed;
        self.failed += failed;
    }

    fn bars(&self, title: &str, counts: &BTreeMap<String, u64>) {
        println!("  {title}:");
        let most = counts.values().copied().max().unwrap_or(0).max(1);
        let width = counts.keys().map(|name| name.chars().count()).max().unwrap_or(0);
        for (name, count) in counts {
            let length = usize::try_from((count * BAR).div_ceil(most)).unwrap_or(0);
            println!("    {name:width$}  {} {count}", self.paint("36", &"█".repeat(length)));
        }
    }

    /// Checks that failed so far.
    pub fn failed(&self) -> usize {
        self.failed
    }

    /// Shows the end of each agent's log.
    pub fn logs(&self, logs: &[(PathBuf, String)]) {
        for (path, tail) in logs {
            println!("\nLast lines of {}:\n{tail}", path.display());
        }
    }

    /// The last line of the demo.
    pub fn result(&self) {
        let (passed, failed) = (self.passed, self.failed);
        let colour = if failed == 0 { "1;32" } else { "1;31" };
        let seconds = self.started.elapsed().as_secs_f32();
        let score = self.paint(colour, &format!("{passed} passed, {failed} failed"));
        println!("\nin {seconds:.1} s:\n{score}");
    }

    /// Says how to look around in a network that stays up.
    pub fn look_around(&self, hints: &[(&str, String)]) {
        println!("\nThe network stays up.");
        print_hints(hints);
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Prints commands with what each shows.
pub(crate) fn print_hints(hints: &[(&str, String)]) {
    for (what, command) in hints {
        println!("  # {what}\n  {command}");
    }
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::wrap;

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("", 7), [""]);
        assert_eq!(wrap("incomprehensible", 7), ["incomprehensible"]);
    }
}
