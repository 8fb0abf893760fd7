//! Prints the rows of tables as libtest prints tests, for `cargo test` and `cargo xtask test`.

use std::process::ExitCode;

/// The name of a row and how it ended.
pub type Outcome = (String, Result<(), String>);

/// Prints the rows whose name contains the first argument that is no option; the status says whether all
/// of them passed.
pub fn print(outcomes: impl IntoIterator<Item = Outcome>) -> ExitCode {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let (mut passed, mut failed, mut others) = (0_u32, 0_u32, 0_u32);
    for (name, result) in outcomes {
        if filter.as_ref().is_some_and(|filter| !name.contains(filter)) {
            others += 1;
            continue;
        }
        match result {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok");
            }
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED");
                println!("    {error}");
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {others} filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
