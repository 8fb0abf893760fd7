//! Every command that the documents show: run on a node with a running agent, or at least understood.

use std::path::{Path, PathBuf};
use std::process::Command as Process;

use clap::Parser as _;
use clap::error::ErrorKind;
use lb_agent::args::{Args, Command};
use lb_lab::{Family, Options};
use lb_tests::documents::{Shown, commands};
use lb_tests::mentions::mentions;
use lb_tests::promtool;

use crate::manifest::Service;
use crate::stage::Stage;

/// How commands begin that are run elsewhere, and the test that runs them: its file and its function.
const ELSEWHERE: [(&str, &str, &str); 15] = [
    // Parsed; the suites, the demo and the benchmarks run them.
    ("cargo xtask", "xtask/src/main.rs", "every_command_of_ours_in_the_documents_is_one"),
    // The suites of these packages are these tests.
    ("cargo test -p lb-common -p lb-agent", "xtask/src/test/suite.rs", "libtest"),
    ("kind create cluster --config deploy/kind.yaml", "xtask/src/e2e/cluster.rs", "create"),
    ("kind load image-archive target/oci/lb-agent.tar", "xtask/src/e2e/cluster.rs", "load"),
    // What `kind load` does on each node.
    ("ctr -n k8s.io images import", "xtask/src/e2e/cluster.rs", "load"),
    ("helm install lb-agent deploy/chart", CLUSTER.0, CLUSTER.1),
    ("helm upgrade lb-agent deploy/chart", CLUSTER.0, CLUSTER.1),
    ("helm uninstall lb-agent", CLUSTER.0, CLUSTER.1),
    ("kubectl -n kube-system rollout", CLUSTER.0, CLUSTER.1),
    (
        "kubectl -n kube-system exec -it POD -- /lb-agent top",
        "tests/tests/netns/top.rs",
        "keys_lead_to_endpoints_and_back_and_the_terminal_is_given_back",
    ),
    ("kubectl get", CLUSTER.0, CLUSTER.1),
    ("kubectl apply -f deploy/", CLUSTER.0, CLUSTER.1),
    ("kubectl delete -f deploy/", CLUSTER.0, CLUSTER.1),
    ("kubectl -n kube-system delete daemonset kube-proxy", CLUSTER.0, CLUSTER.1),
    (
        "kubectl -n kube-system delete daemonset,job lb-agent-cleanup",
        "tests/tests/cluster/uninstall.rs",
        "what_is_not_clean_in_time_is_said_and_goes_on_being_cleaned",
    ),
];
/// Takes them from the documents, as this test does, and runs them at a real API server.
const CLUSTER: (&str, &str) =
    ("tests/tests/cluster/documents.rs", "helm_and_kubectl_do_what_the_documents_say");
/// In front of a command that runs in the agent's container.
const EXEC: [&str; 7] = ["kubectl", "-n", "kube-system", "exec", "POD", "--", "/lb-agent"];

/// The words behind `lb-agent`, if it is a command of ours.
fn ours(shown: &Shown) -> Option<&[String]> {
    if shown.words.first().is_some_and(|word| word == "lb-agent") {
        return shown.words.get(1..);
    }
    let is_exec = shown.words.len() > EXEC.len()
        && shown.words.iter().zip(EXEC).all(|(word, exec)| word == exec);
    is_exec.then(|| &shown.words[EXEC.len()..])
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn what_is_run_elsewhere_is_shown_and_has_a_test_there() {
    let shown = commands().into_iter().chain(mentions());
    let shown: Vec<_> = shown.map(|shown| shown.words.join(" ")).collect();
    for (start, file, function) in ELSEWHERE {
        assert!(shown.iter().any(|line| line.starts_with(start)), "no document shows {start}");
        let text = std::fs::read_to_string(root().join(file));
        let text = text.unwrap_or_else(|error| panic!("{start}: {file}: {error}"));
        assert!(text.contains(&format!("fn {function}(")), "{start}: no {function} in {file}");
    }
}

#[test]
fn every_command_in_the_documents_does_what_it_says_on_a_node() {
    let mut stage = Stage::up(&Options::default(), &[Service::node_port(1, &["pod-a1"])]);
    let mut cleanups = Vec::new();
    let (mut run, mut unknown) = (0, Vec::new());
    for shown in commands() {
        let Some(arguments) = ours(&shown) else {
            let line = shown.words.join(" ");
            if shown.words[0] == "promtool" {
                judge_rules(&shown);
            } else if !ELSEWHERE.iter().any(|(start, ..)| line.starts_with(start)) {
                unknown.push(shown);
            }
            continue;
        };
        let words = ["lb-agent"].into_iter().chain(arguments.iter().map(String::as_str));
        let parsed = Args::try_parse_from(words);
        let parsed = parsed.unwrap_or_else(|error| panic!("{shown}: {error}"));
        match parsed.command {
            // It doesn't end, and names files of the reader's; the stage runs it.
            Command::Run(_) => {}
            // The test of `top` runs it on a terminal.
            Command::Top(args) if !args.batch => {}
            Command::Cleanup(_) => cleanups.push(shown),
            // It doesn't end by itself.
            Command::Monitor(args) if args.timeout.is_none() => {
                expect_success(&stage, &shown, &["--timeout", "1s"]);
                run += 1;
            }
            _ => {
                expect_success(&stage, &shown, &[]);
                run += 1;
            }
        }
    }
    assert!(unknown.is_empty(), "neither run nor accounted for: {unknown:#?}");
    assert!(run > 3, "{run} commands were run");
    stage.stop_agent("node-a");
    for shown in &cleanups {
        expect_success(&stage, shown, &[]);
    }
    assert!(!cleanups.is_empty());
}

/// What running text has in a place of something of the reader's, and what the stage has.
fn filled(shown: &Shown, service: &Service) -> Shown {
    let words = shown.words.iter().map(|word| match word.as_str() {
        "IP" => service.cluster_ip().of(Family::V4).to_string(),
        "ENDPOINT" => "127.0.0.1".to_owned(),
        _ => word.clone(),
    });
    Shown { words: words.collect(), ..shown.clone() }
}

/// Nobody finds a command there that doesn't exist, or an option. What lacks arguments is a command's name.
#[test]
fn commands_that_running_text_mentions_exist_and_do_something() {
    let service = Service::node_port(1, &["pod-a1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    let shown_too: Vec<_> = commands().into_iter().map(|shown| shown.words).collect();
    let (mut run, mut unknown) = (0, Vec::new());
    for mention in mentions() {
        let is_shown = shown_too.iter().any(|words| words.starts_with(&mention.words));
        let mention = filled(&mention, &service);
        let Some(arguments) = ours(&mention) else {
            if mention.words[0] == "ip" {
                let words: Vec<_> = mention.words.iter().map(String::as_str).collect();
                stage.run("node-a", &words);
            } else if !is_shown
                && !ELSEWHERE.iter().any(|(start, ..)| mention.words.join(" ").starts_with(start))
            {
                unknown.push(mention);
            }
            continue;
        };
        let words = ["lb-agent"].into_iter().chain(arguments.iter().map(String::as_str));
        let parsed = match Args::try_parse_from(words) {
            Ok(parsed) => parsed,
            Err(error) => {
                let is_name = error.kind() == ErrorKind::MissingRequiredArgument;
                let is_help = error.kind() == ErrorKind::DisplayHelp;
                assert!(is_help || is_name && arguments.len() == 1, "{mention}: {error}");
                continue;
            }
        };
        match parsed.command {
            Command::Run(_) | Command::Top(_) | Command::Cleanup(_) => {}
            Command::Monitor(_) => expect_success(&stage, &mention, &["--timeout", "1s"]),
            _ => {
                expect_success(&stage, &mention, &[]);
                run += 1;
            }
        }
    }
    assert!(unknown.is_empty(), "neither run nor accounted for: {unknown:#?}");
    assert!(run > 3, "{run} commands were run");
}

/// The rules' file is where the documents say.
fn judge_rules(shown: &Shown) {
    let program =
        promtool::find().unwrap_or_else(|| panic!("no promtool: run `cargo xtask setup`"));
    let mut command = Process::new(program);
    let output = command.args(&shown.words[1..]).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{shown}: {}", String::from_utf8_lossy(&output.stderr));
}

fn expect_success(stage: &Stage, shown: &Shown, besides: &[&str]) {
    let arguments = ours(shown).unwrap().iter().map(String::as_str);
    let arguments: Vec<_> = arguments.chain(besides.iter().copied()).collect();
    let output = stage.agent_output("node-a", &arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}: {}\n{text}\n{errors}", output.status);
    assert!(!text.trim().is_empty(), "{shown} prints nothing");
}
