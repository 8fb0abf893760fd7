//! What a suite's output says: numbers, failed tests, skipped ones.

use std::collections::BTreeMap;

/// How many of a failed test's last lines tell the cause.
const CAUSE_LINES: usize = 5;
/// A line of a cause is cut here, in characters.
const CAUSE_WIDTH: usize = 800;

/// The sums of a suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub passed: u32,
    pub failed: u32,
    /// Marked `#[ignore]`.
    pub ignored: u32,
    /// Names of tests that failed, in the order of the output.
    pub failures: Vec<String>,
    /// What failed tests of libtest printed last, by name.
    pub causes: BTreeMap<String, Vec<String>>,
    /// Tests that could not run here and said so with a line `skipped: REASON`.
    pub skipped: Vec<String>,
}

impl Outcome {
    /// Reads an output of libtest (any number of runs), or of a program whose last line with results is
    /// `N passed, N failed`, possibly after one word and a colon.
    pub fn read(output: &str) -> Self {
        let mut outcome = Self { causes: causes(output), ..Self::default() };
        let mut plain = None;
        for line in output.lines().map(str::trim) {
            if let Some(result) = line.strip_prefix("test result: ") {
                outcome.add_libtest(result);
            } else if let Some(name) = failed_test(line) {
                outcome.failures.push(name.to_owned());
            } else if let Some(reason) = line.strip_prefix("skipped: ") {
                outcome.skipped.push(reason.to_owned());
            } else {
                plain = plain_result(line).or(plain);
            }
        }
        if let Some((passed, failed)) = plain {
            outcome.passed += passed;
            outcome.failed += failed;
        }
        outcome
    }

    fn add_libtest(&mut self, result: &str) {
        let counts = result.split_once(". ").map_or(result, |(_, counts)| counts);
        for count in counts.split("; ") {
            match count.split_once(' ').map(|(number, what)| (number.parse::<u32>(), what)) {
                Some((Ok(number), "passed")) => self.passed += number,
                Some((Ok(number), "failed")) => self.failed += number,
                Some((Ok(number), "ignored")) => self.ignored += number,
                Some(_) | None => {}
            }
        }
    }

    /// Adds another suite's sums.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.failures.extend(other.failures);
        self.causes.extend(other.causes);
        self.skipped.extend(other.skipped);
    }
}

/// The last lines of what each failed test printed, which libtest repeats under `---- NAME stdout ----`.
fn causes(output: &str) -> BTreeMap<String, Vec<String>> {
    let mut causes = BTreeMap::<String, Vec<String>>::new();
    let mut test = None;
    for line in output.lines().map(str::trim_end) {
        let heading = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = heading {
            test = Some(name);
        } else if line == "failures:" || line.starts_with("test result: ") {
            test = None;
        } else if let Some(name) = test
            && !line.is_empty()
            && !line.starts_with("note: run with `RUST_BACKTRACE")
        {
            let lines = causes.entry(name.to_owned()).or_default();
            // What comes before it are logs.
            if line.starts_with("the cause: ") {
                lines.clear();
            }
            lines.push(line.chars().take(CAUSE_WIDTH).collect());
            if lines.len() > CAUSE_LINES {
                lines.remove(0);
            }
        }
    }
    causes
}

/// The name in `test NAME ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// `N passed, N failed` as the whole line, after `word: ` or not, `, N skipped` after it or not.
fn plain_result(line: &str) -> Option<(u32, u32)> {
    let counts = match line.split_once(": ") {
        Some((word, counts)) if !word.contains(' ') => counts,
        Some(_) => return None,
        None => line,
    };
    let mut parts = counts.split(", ");
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_summed_up() {
        let sums =
            |passed, failed, ignored| Outcome { passed, failed, ignored, ..Outcome::default() };
        let result = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out";
        for (name, output, expected) in [
            ("nothing", String::new(), sums(0, 0, 0)),
            ("one run of libtest", format!("{result}\n"), sums(3, 0, 1)),
            ("two runs of libtest", format!("{result}\n{result}"), sums(6, 0, 2)),
            ("a plain line", "18 passed, 1 failed\r\n".to_owned(), sums(18, 1, 0)),
            (
                "only the last plain line",
                "a: 1 passed, 0 failed\n3 passed, 0 failed".to_owned(),
                sums(3, 0, 0),
            ),
            ("prose is no result", "all of 3 passed, 0 failed".to_owned(), sums(0, 0, 0)),
            ("kernel and count", "x 6.1: 1 passed, 0 failed".to_owned(), sums(0, 0, 0)),
        ] {
            assert_eq!(Outcome::read(&output), expected, "{name}");
        }
    }

    #[test]
    fn the_cause_of_a_failure_is_what_its_test_printed_last() {
        let outcome = Outcome::read(
            "test a::b ... FAILED\n\nfailures:\n\n---- a::b stdout ----\n1\n2\n3\n\n4\n5\nlast\n\
             note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n\n\n\
             failures:\n    a::b\n\ntest result: FAILED. 0 passed; 1 failed",
        );
        let causes: Vec<_> = outcome.causes.into_iter().collect();
        let lines = ["2", "3", "4", "5", "last"].map(str::to_owned).to_vec();
        assert_eq!(causes, [("a::b".to_owned(), lines)]);
    }

    #[test]
    fn failed_and_skipped_tests_are_named() {
        let outcome = Outcome::read(
            "test a::b ... ok\ntest the reply is translated ... FAILED\nskipped: not root\n",
        );
        assert_eq!(outcome.failures, ["the reply is translated"]);
        assert_eq!(outcome.skipped, ["not root"]);
    }
}
