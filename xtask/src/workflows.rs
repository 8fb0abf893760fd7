//! The workflows in `.github`, which run elsewhere: what can be known of them here.

use super::{Cli, Parser as _, documents};
use crate::go::{Family, Kind};
use crate::workspace;
use serde_yaml_ng::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ACTIONLINT: Family = Family {
    name: "actionlint",
    module: "github.com/rhysd/actionlint",
    linker_flags: "-s -w",
    programs: &[("actionlint", "github.com/rhysd/actionlint/cmd/actionlint", Kind::Program)],
};
/// What the workflow ci runs, and a developer.
const OURS: &str = ".ci/run";

/// Path and content.
fn workflows() -> Vec<(PathBuf, Value)> {
    let folder = workspace::root().join(".github/workflows");
    let files = fs::read_dir(&folder).expect("the workflows' folder");
    let workflows: Vec<_> = files
        .map(|file| {
            let path = file.expect("a workflow").path();
            let text = fs::read_to_string(&path).expect("a workflow's text");
            let parsed = serde_yaml_ng::from_str(&text);
            (path.clone(), parsed.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        })
        .collect();
    assert!(workflows.len() >= 2, "{} workflows were found", workflows.len());
    workflows
}

/// Every shell script of the steps, and the one that they call.
fn scripts() -> Vec<(PathBuf, String)> {
    let mut scripts = Vec::new();
    for (path, workflow) in workflows() {
        let jobs = workflow["jobs"].as_mapping().expect("jobs");
        let steps = jobs.values().flat_map(|job| job["steps"].as_sequence().expect("steps"));
        let runs = steps.filter_map(|step| step["run"].as_str());
        scripts.extend(runs.map(|run| (path.clone(), run.to_owned())));
    }
    let ours = workspace::root().join(OURS);
    let text = fs::read_to_string(&ours).expect("the script that CI runs");
    scripts.push((ours, text));
    scripts
}

/// The commands of a script, each by its words; not those of a substitution.
fn commands(script: &str) -> Vec<Vec<String>> {
    let joined = script.replace("\\\n", " ");
    let words = joined.lines().map(documents::words);
    let is_between = |word: &String| ["&&", "||", ";", "|"].contains(&word.as_str());
    words
        .flat_map(|words| words.split(is_between).map(<[String]>::to_vec).collect::<Vec<_>>())
        .collect()
}

#[test]
fn actionlint_finds_nothing_to_complain_about() {
    let folder = ACTIONLINT.ensure(&["actionlint"]).expect("actionlint");
    let mut lint = Command::new(folder.join("actionlint"));
    // Which other linters a machine happens to have must not decide.
    lint.args(["-no-color", "-shellcheck=", "-pyflakes="]).current_dir(workspace::root());
    lint.args(workflows().iter().map(|(path, _)| path));
    let output = lint.output().expect("actionlint runs");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn every_change_starts_them() {
    for (path, workflow) in workflows() {
        let on = &workflow["on"];
        let branches = on["push"]["branches"].as_sequence();
        let branches = branches.unwrap_or_else(|| panic!("{}: no push", path.display()));
        assert!(branches.contains(&"main".into()), "{}: {branches:?}", path.display());
        // Without conditions: of no path, to whatever branch.
        let requests = on.get("pull_request");
        assert_eq!(requests, Some(&Value::Null), "{}: pull_request", path.display());
    }
}

#[test]
fn every_command_of_ours_in_them_is_one() {
    let mut parsed = 0;
    for (path, script) in scripts() {
        let path = path.display();
        for words in commands(&script) {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["cargo", "xtask", arguments @ ..] => {
                    let words = ["cargo xtask"].iter().chain(arguments);
                    if let Err(error) = Cli::try_parse_from(words) {
                        panic!("{path}: {}: {error}", arguments.join(" "));
                    }
                    parsed += 1;
                }
                [program, ..] if program.starts_with('.') => {
                    let file = workspace::root().join(program);
                    assert!(file.is_file(), "{path}: {program} is not there");
                }
                _ => {}
            }
        }
    }
    assert!(parsed >= 4, "{parsed} commands were found");
}

#[test]
fn their_scripts_are_a_shells() {
    for (path, script) in scripts() {
        let output = Command::new("bash").args(["-n", "-c", &script]).output().expect("bash");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}\n{script}", path.display());
    }
}

/// A key of no file would keep a cache for ever.
#[test]
fn their_caches_are_named_after_files_that_exist() {
    let mut found = 0;
    for (path, workflow) in workflows() {
        let text = serde_yaml_ng::to_string(&workflow).expect("a workflow");
        for files in text.split("hashFiles(").skip(1) {
            let files = files.split(')').next().unwrap_or_default().replace("''", "'");
            for pattern in files.split(',').map(|file| file.trim().trim_matches('\'')) {
                let place = pattern.split("/**").next().unwrap_or(pattern);
                let place = workspace::root().join(Path::new(place));
                assert!(place.exists(), "{}: {pattern} matches nothing", path.display());
                found += 1;
            }
        }
    }
    assert!(found >= 6, "{found} names were found");
}
