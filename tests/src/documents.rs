//! The commands that the documents show. Shared with `cargo xtask`, so it may use nothing but std.
//!
//! A command is a line of a fenced block whose first word is one of [`PROGRAMS`], and each command of a
//! line that `&&` joins. Other blocks (figures, output, YAML) have no such lines.

use std::path::Path;

/// What a reader may run.
pub(crate) const PROGRAMS: [&str; 10] = [
    "lb-agent",
    "cargo",
    "kubectl",
    "helm",
    "kind",
    "ctr",
    "docker",
    "promtool",
    "curl",
    "systemctl",
];
/// Where commands are shown (the others have figures and results); one that isn't there yet shows none.
const DOCUMENTS: [&str; 5] =
    ["README.md", "CONTRIBUTING.md", "docs/operations.md", "docs/security.md", "docs/migrate.md"];

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The document.
    pub document: &'static str,
    /// Its words, without quotes.
    pub words: Vec<String>,
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.document, self.words.join(" "))
    }
}

/// Every command of every document.
#[must_use]
pub fn commands() -> Vec<Shown> {
    in_documents(of)
}

/// What `found` finds in every document.
pub(crate) fn in_documents(found: fn(&str) -> Vec<Vec<String>>) -> Vec<Shown> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = package.parent().unwrap_or(package);
    DOCUMENTS
        .into_iter()
        .flat_map(|document| {
            let text = std::fs::read_to_string(root.join(document)).unwrap_or_default();
            let found = found(&text).into_iter();
            found.map(|words| Shown { document, words }).collect::<Vec<_>>()
        })
        .collect()
}

fn of(text: &str) -> Vec<Vec<String>> {
    let (mut commands, mut fenced, mut line) = (Vec::new(), false, String::new());
    for part in text.lines() {
        if part.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if !fenced {
            continue;
        }
        line.push_str(part.trim());
        if let Some(begun) = line.strip_suffix('\\') {
            line = begun.to_owned();
            continue;
        }
        let words = words(&std::mem::take(&mut line));
        let parts = words.split(|word| word == "&&").map(<[String]>::to_vec);
        let is_ours = |words: &Vec<String>| {
            words.first().is_some_and(|first| PROGRAMS.contains(&first.as_str()))
        };
        commands.extend(parts.filter(is_ours));
    }
    commands
}

/// As a shell splits them; a comment ends the line.
pub(crate) fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars() {
        match (letter, quote) {
            ('\'' | '"', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (letter, Some(open)) if letter == open => quote = None,
            ('#', None) if word.is_none() => break,
            (' ', None) => words.extend(word.take()),
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_fences_alone_and_split_as_a_shell_does() {
        let text = "lb-agent no\n```\nlb-agent a 'b c' \"\"   # what\ncargo xtask x && kind y\n\
                    lb-agent d \\\n   -e\n+-- figure\n```\ncargo no\n";
        let expected: [&[&str]; 4] = [
            &["lb-agent", "a", "b c", ""],
            &["cargo", "xtask", "x"],
            &["kind", "y"],
            &["lb-agent", "d", "-e"],
        ];
        assert_eq!(of(text), expected);
    }
}
