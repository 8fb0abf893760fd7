//! Runs a program to its end and turns a failure into an error that names the program and what it
//! said. Knows nothing of labs.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

/// Runs `command` with `input` on its standard input; a non-zero exit status is an error that
/// quotes its output and, for a batch, the line that failed.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| missing(&program))?;
    let output = thread::scope(|scope| {
        if let Some(mut stdin) = child.stdin.take() {
            // Beside the reading of its output, so that neither side waits for the other. A
            // program that stops reading has failed, which its exit status tells better.
            scope.spawn(move || stdin.write_all(input.as_bytes()));
        }
        child.wait_with_output()
    });
    check(&program, &output.with_context(|| format!("wait for {program}"))?, input)
}

/// Runs `command` without input and collects its output, whatever its exit status.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).output().with_context(|| missing(&program))
}

fn missing(program: &str) -> String {
    format!("start {program} (if it is missing: cargo xtask setup)")
}

fn check(program: &str, output: &Output, input: &str) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let failed_line = said
        .lines()
        .find_map(|line| line.strip_prefix("Command failed -:"))
        .and_then(|number| number.trim().parse::<usize>().ok())
        .and_then(|number| input.lines().nth(number.saturating_sub(1)));
    match failed_line {
        Some(line) => bail!("{program} {line}: {}", said.trim()),
        None => bail!("{program}: {}: {}", output.status, said.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_batch_names_the_line_that_failed() {
        let input = "link show lo\nlink show does-not-exist\n";
        let error = run_with_input(Command::new("ip").args(["-batch", "-"]), input).unwrap_err();
        assert!(error.to_string().contains("ip link show does-not-exist"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named_with_the_remedy() {
        let error = run_with_input(&mut Command::new("no-such-program"), "").unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
        assert!(error.to_string().contains("cargo xtask setup"), "{error}");
    }
}
