//! `lb-agent completion` and the shell that everybody has.

#![expect(clippy::unwrap_used, reason = "what a test meets is a finding, and its text says where")]

use std::process::Command;

/// What bash offers for the last word of a line: asked as bash asks, through the function that the script
/// registers.
fn offered(words: &[&str]) -> Vec<String> {
    const ASK: &str = r#"
        source <("$1" completion bash)
        shift
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        registered=$(complete -p lb-agent)
        [[ $registered =~ -F\ ([^ ]+) ]]
        "${BASH_REMATCH[1]}" lb-agent "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut bash = Command::new("bash");
    bash.args(["-euc", ASK, "bash", env!("CARGO_BIN_EXE_lb-agent"), "lb-agent"]).args(words);
    let output = bash.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    for (words, expected) in [
        (&["st"] as &[_], &["status"] as &[_]),
        (&["services", "--na"], &["--namespace"]),
        (&["run", "--pod-path", "s"], &["socket"]),
        (&["top", "--sort", "c"], &["connections"]),
        (&["flows", "--output", ""], &["table", "wide", "json", "yaml"]),
        (&["completion", "f"], &["fish"]),
    ] {
        assert_eq!(offered(words), expected, "{words:?}");
    }
}
