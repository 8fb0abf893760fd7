//! `lb-agent completion` in the shells themselves: each loads its script, and completes with it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what a test meets is a finding, and its text says where"
)]

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lb_lab::Terminal;

const AGENT: &str = env!("CARGO_BIN_EXE_lb-agent");
const PATIENCE: Duration = Duration::from_secs(20);

/// What is typed behind `lb-agent`, and what its last word can only become: a command, a flag, a value.
const CASES: [(&[&str], &str); 4] = [
    (&["st"], "status"),
    (&["services", "--na"], "--namespace"),
    (&["run", "--pod-path", "s"], "socket"),
    (&["top", "--sort", "c"], "connections"),
];
/// A value that no flag announces, which clap's script for fish leaves out.
const POSITIONAL: (&[&str], &str) = (&["completion", "f"], "fish");

/// A shell that reads no file of the user's and finds the agent by its name.
fn shell(name: &str, home: &Path) -> Command {
    let folder = Path::new(AGENT).parent().unwrap();
    let mut path = OsString::from(folder);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    let mut shell = Command::new(name);
    shell.env("PATH", path).env("HOME", home).env("LC_ALL", "C.UTF-8");
    shell.env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME").env_remove("ZDOTDIR");
    shell
}

fn said(mut shell: Command) -> String {
    let output = shell
        .output()
        .unwrap_or_else(|error| panic!("{shell:?}: {error}: `cargo xtask setup` installs it"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{shell:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// What bash offers for the last word of a line: asked as bash asks, through the function that the script
/// registers.
fn offered_by_bash(words: &[&str]) -> Vec<String> {
    const ASK: &str = r#"
        source <(lb-agent completion bash)
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        registered=$(complete -p lb-agent)
        [[ $registered =~ -F\ ([^ ]+) ]]
        "${BASH_REMATCH[1]}" lb-agent "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let home = tempfile::tempdir().unwrap();
    let mut bash = shell("bash", home.path());
    bash.args(["-euc", ASK, "bash", "lb-agent"]).args(words);
    said(bash).split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    for (words, expected) in CASES.into_iter().chain([POSITIONAL]) {
        assert_eq!(offered_by_bash(words), [expected], "{words:?}");
    }
    let formats = offered_by_bash(&["flows", "--output", ""]);
    assert_eq!(formats, ["table", "wide", "json", "yaml"]);
}

/// What fish offers for the end of a line; it explains each behind a tab.
fn offered_by_fish(line: &str) -> Vec<String> {
    const ASK: &str = "lb-agent completion fish | source; complete --do-complete $argv[1]";
    let home = tempfile::tempdir().unwrap();
    let mut fish = shell("fish", home.path());
    fish.args(["--no-config", "--command", ASK, line]);
    let said = said(fish);
    said.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

#[test]
fn fish_completes_commands_flags_and_values() {
    for (words, expected) in CASES {
        let line = format!("lb-agent {}", words.join(" "));
        assert_eq!(offered_by_fish(&line), [expected], "{line}");
    }
    let formats = offered_by_fish("lb-agent flows --output ");
    // It sorts them.
    assert_eq!(formats, ["json", "table", "wide", "yaml"]);
}

/// zsh completes nowhere but on a terminal.
#[test]
fn zsh_completes_commands_flags_and_values() {
    let home = tempfile::tempdir().unwrap();
    let mut zsh = shell("zsh", home.path());
    zsh.args(["-f", "-i"]);
    let mut terminal = Terminal::start(zsh, 30, 100).unwrap();
    // -u: whoever owns the machine's own completions, no question is asked.
    let begin =
        "autoload -Uz compinit; compinit -D -u; source <(lb-agent completion zsh); PS1='now '";
    terminal.press(&format!("{begin}\r")).unwrap();
    let is_ready = |text: &str| text.lines().any(|line| line.trim_end() == "now");
    terminal.wait_for("the prompt", PATIENCE, is_ready).unwrap();
    for (words, expected) in CASES.into_iter().chain([POSITIONAL]) {
        let (_, given) = words.split_last().unwrap();
        let line = [&["now", "lb-agent"], given, &[expected]].concat().join(" ");
        terminal.press(&format!("lb-agent {}\t", words.join(" "))).unwrap();
        // Behind some flags it puts what follows them.
        let is_complete =
            |text: &str| text.lines().any(|shown| shown.trim_end_matches(['=', ' ']) == line);
        terminal.wait_for(&line, PATIENCE, is_complete).unwrap();
        // Ctrl-U: the line is given up.
        terminal.press("\x15").unwrap();
    }
    terminal.press("lb-agent flows --output \t").unwrap();
    let shows =
        |text: &str| ["table", "wide", "json", "yaml"].iter().all(|word| text.contains(word));
    terminal.wait_for("every format", PATIENCE, shows).unwrap();
    assert!(!terminal.text().contains("command not found"), "{}", terminal.text());
}
