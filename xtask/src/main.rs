//! `cargo xtask`: the project's own commands, one file each.
//!
//! This file decides only how a command is named and where it goes. A command ends in an error whose
//! text is all that the reader gets, so every error names the thing, the call and the remedy.

mod apt;
mod artifacts;
mod bench;
mod build_ebpf;
#[path = "../../tests/src/cluster/chart.rs"]
mod chart;
mod demo;
#[path = "../../tests/src/documents.rs"]
mod documents;
mod e2e;
#[path = "../../lb-agent/build/ebpf.rs"]
mod ebpf;
#[path = "../../tests/src/cluster/go.rs"]
mod go;
mod image;
mod lab;
mod manifests;
#[cfg(test)]
#[path = "../../tests/src/mentions.rs"]
mod mentions;
mod oci;
mod picture;
mod privilege;
mod process;
mod progress;
#[path = "../../tests/src/promtool.rs"]
mod promtool;
mod setup;
mod test;
mod vm;
#[cfg(test)]
mod workflows;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Build, try, test and measure the load balancer.
///
/// On a fresh machine start with `cargo xtask demo` (the main job, shown step by step) or
/// `cargo xtask test` (everything). Both set the machine up first.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    BuildEbpf(build_ebpf::Args),
    Demo(demo::Args),
    Test(test::Args),
    Lab(lab::Args),
    Image(image::Args),
    Manifests(manifests::Args),
    Picture(picture::Args),
    E2e(e2e::Args),
    Bench(bench::Args),
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Lab(args) => lab::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Manifests(args) => manifests::run(&args),
        Command::Picture(args) => picture::run(&args),
        Command::E2e(args) => e2e::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Vm(args) => vm::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<Reported>() {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// A failure that was reported in full already: nothing may follow its last line, `N passed, N failed`.
#[derive(Debug)]
struct Reported;

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("some tests failed")
    }
}

impl std::error::Error for Reported {}

#[cfg(test)]
mod tests {
    use super::{Cli, Parser as _, documents, mentions};

    #[test]
    fn every_command_of_ours_in_the_documents_is_one() {
        let commands = documents::commands().into_iter().chain(mentions::mentions());
        let ours = commands
            .filter(|command| command.words.starts_with(&["cargo".into(), "xtask".into()]))
            .filter(|command| command.words.len() > 2);
        let mut parsed = 0;
        for command in ours {
            let words =
                ["cargo xtask"].into_iter().chain(command.words[2..].iter().map(String::as_str));
            let result = Cli::try_parse_from(words);
            assert!(
                result.is_ok(),
                "{command}: {}",
                result.err().map_or_else(String::new, |error| error.to_string())
            );
            parsed += 1;
        }
        assert!(parsed > 10, "{parsed} commands were found");
    }
}
