//! The running agent: its command line.

use clap::Parser as _;

use crate::args::{Args, Command, RunArgs};

/// What the process was told when it was started; `None` when it can't be seen, or was told what this
/// version doesn't understand.
pub fn args_of(process: u32) -> Option<RunArgs> {
    let words = std::fs::read(format!("/proc/{process}/cmdline")).ok()?;
    let words: Option<Vec<String>> = words
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8(word.to_vec()).ok())
        .collect();
    match Args::try_parse_from(words?).ok()?.command {
        Command::Run(args) => Some(*args),
        _ => None,
    }
}

/// Whether the paths that the process was told are ours, too: it is in no other container.
pub fn shares_files(process: u32) -> bool {
    let files = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/mnt"));
    match (files("self"), files(&process.to_string())) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        // Whoever may not see that may not see its files either, and will be told.
        _ => true,
    }
}
