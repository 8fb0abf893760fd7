//! `lb-agent top`: what it tells of real requests, in plain tables and on a terminal.

use std::collections::HashMap;

use lb_lab::{Family, Load, Options, Request, Terminal, Transport};
use nix::sys::signal::Signal;

use crate::manifest::{PORT, Service};
use crate::stage::{PATIENCE, Stage, eventually};

/// The last table of `lb-agent top --batch`: cells by header, for each row.
fn last_table(text: &str) -> Vec<HashMap<&str, &str>> {
    let table = text.rsplit("\n\n").next().unwrap();
    let mut lines = table.lines().skip_while(|line| !line.starts_with("SERVICE"));
    let header: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    lines.map(|line| header.iter().copied().zip(line.split_whitespace()).collect()).collect()
}

/// The row of a port and family.
fn row<'a>(
    table: &'a [HashMap<&'a str, &'a str>],
    port: &str,
    family: Family,
) -> &'a HashMap<&'a str, &'a str> {
    let family = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let found = table.iter().find(|row| row["SERVICE"] == port && row["FAMILY"] == family);
    found.unwrap_or_else(|| panic!("{port} {family} in {table:#?}"))
}

fn batch(stage: &Stage, arguments: &[&str]) -> String {
    let beginning = ["top", "--batch", "--interval", "500ms"];
    stage.agent_says("node-a", &[&beginning, arguments].concat())
}

#[test]
fn plain_tables_tell_what_was_asked_how_often_and_what_was_not_served() {
    let served = Service::node_port(1, &["pod-a1", "pod-b1"]);
    let empty = Service::node_port(2, &[]);
    let mut stage = Stage::up(&Options::default(), &[served.clone(), empty.clone()]);
    for family in Family::BOTH {
        let node = stage.address("node-a", family);
        for _ in 0..7 {
            stage.answer("client", &Request::tcp(node, served.node_port_number()));
        }
        for _ in 0..4 {
            stage.answer("pod-a1", &Request::tcp(served.cluster_ip().of(family), PORT));
        }
        stage.failure("pod-a1", &Request::tcp(empty.cluster_ip().of(family), PORT));
    }
    // Attachments are told within a second.
    eventually("all is well", || stage.agent_output("node-a", &["status"]).status.success());
    let text = batch(&stage, &["--frames", "1"]);
    assert!(text.contains("  node node-a  ok  services 8  endpoints 8  flows 14  "), "{text}");
    let table = last_table(&text);
    for family in Family::BOTH {
        let web = row(&table, "default/s1:web", family);
        assert_eq!(
            (web["CONNECTIONS"], web["ENDPOINTS"], web["DROPS"]),
            ("11", "2", "0"),
            "{text}"
        );
        assert!(web["PACKETS"].parse::<u64>().unwrap() >= 7 * 6, "{text}");
        assert_eq!((web["CONNECTIONS/S"], web["BYTES/S"]), ("0.0", "0.0"), "now is quiet: {text}");
        let none = row(&table, "default/s2:web", family);
        assert_eq!((none["CONNECTIONS"], none["DROPS"]), ("0", "1"), "{text}");
        assert_eq!(none["REASONS"], "no_endpoints");
        assert_eq!(row(&table, "default/s1:echo", family)["CONNECTIONS"], "0", "{text}");
    }
    stage.stop_agent("node-a");
    let later = batch(&stage, &["--frames", "2", "default/s1", "--protocol", "tcp"]);
    assert!(later.contains("problem: no agent runs"), "{later}");
    let table = last_table(&later);
    assert_eq!(table.len(), 2, "{later}");
    assert_eq!(row(&table, "default/s1:web", Family::V6)["CONNECTIONS"], "11", "{later}");
}

#[test]
fn rates_are_those_of_the_requests_that_run() {
    let services = [Service::node_port(1, &["pod-a1"]), Service::node_port(2, &["pod-a1"])];
    let stage = Stage::up(&Options::default(), &services);
    let to = stage.address("node-a", Family::V6);
    let load = Load::new(Request::new(Transport::Tcp, to, services[1].node_port_number()));
    let client = stage.lab().peer("client").unwrap();
    let number = client.start_load(load).unwrap();
    let before = client.read_load(number).unwrap().ok;
    let text = batch(&stage, &["--frames", "4"]);
    let during = client.stop_load(number).unwrap().ok - before;
    let busiest = &last_table(&text)[0];
    assert_eq!((busiest["SERVICE"], busiest["FAMILY"]), ("default/s2:web", "IPv6"), "{text}");
    // The last of four intervals, and what the command took to begin and to end.
    let rate: f64 = busiest["CONNECTIONS/S"].parse().unwrap();
    assert!(rate > 0.0 && rate <= during as f64 / 0.5, "{rate}/s of {during}\n{text}");
    let bytes: f64 = busiest["BYTES/S"].parse().unwrap();
    assert!(bytes > rate * 100.0, "{text}");
    let quiet = &last_table(&text)[7];
    assert_eq!(quiet["CONNECTIONS/S"], "0.0", "{text}");
}

/// `lb-agent top` on a terminal, once Services are on it.
fn on_a_terminal(stage: &Stage) -> Terminal {
    let mut command = stage.agent_command("node-a", &[]);
    command.args(["top", "--interval", "200ms"]);
    let terminal = Terminal::start(command, 30, 120).unwrap();
    wait_for(&terminal, "default/s1:web");
    terminal
}

fn wait_for(terminal: &Terminal, words: &str) -> String {
    terminal.wait_for(words, PATIENCE, |text| text.contains(words)).unwrap()
}

fn expect_a_clean_end(mut terminal: Terminal) {
    let status = terminal.wait(PATIENCE).unwrap();
    assert!(status.success(), "{status}\n{}", terminal.text());
    eventually("the terminal is as before", || terminal.is_restored().unwrap());
}

#[test]
fn keys_lead_to_endpoints_and_back_and_the_terminal_is_given_back() {
    let services = [Service::node_port(1, &["pod-a1", "pod-b1"]), Service::node_port(2, &[])];
    let stage = Stage::up(&Options::default(), &services);
    let mut terminal = on_a_terminal(&stage);
    assert!(!terminal.is_restored().unwrap(), "it has a screen of its own");
    // What is asked most comes to the top, where the cursor is.
    let to = services[0].cluster_ip().of(Family::V4);
    let pod = stage.lab().peer("pod-a2").unwrap();
    let number = pod.start_load(Load::new(Request::tcp(to, PORT))).unwrap();
    terminal
        .wait_for("the busiest Service on top", PATIENCE, |text| {
            let mut lines = text.lines().skip_while(|line| !line.contains("CONN/S"));
            lines.nth(1).is_some_and(|line| line.contains("s1:web") && line.contains("TCP4"))
        })
        .unwrap();
    terminal.press("\r").unwrap();
    let text = wait_for(&terminal, "Endpoints");
    for host in ["pod-a1", "pod-b1"] {
        let address = format!("{}:8080", stage.address(host, Family::V4));
        assert!(text.contains(&address), "{address} in\n{text}");
    }
    pod.stop_load(number).unwrap();
    // An endpoint that leaves is seen to leave.
    stage.publish(&[Service::node_port(1, &["pod-a1"]), services[1].clone()]);
    let left = format!("{}:8080", stage.address("pod-b1", Family::V4));
    terminal.wait_for("one that left", PATIENCE, |text| !text.contains(&left)).unwrap();
    terminal.press("\x7f").unwrap();
    wait_for(&terminal, "Services ");
    terminal.press("/s2:e").unwrap();
    let text = wait_for(&terminal, "Services: 2 of 8");
    assert!(text.contains("default/s2:echo") && !text.contains("default/s1"), "{text}");
    terminal.press("\r").unwrap();
    terminal.wait_for("the search kept", PATIENCE, |text| text.contains("q quit")).unwrap();
    terminal.press("q").unwrap();
    expect_a_clean_end(terminal);
}

#[test]
fn a_signal_ends_it_as_well_and_a_datapath_that_goes_and_comes_is_followed() {
    let mut stage = Stage::up(&Options::default(), &[Service::node_port(1, &["pod-a1"])]);
    let terminal = on_a_terminal(&stage);
    // Stopped, it would leave a shell with its screen.
    terminal.signal(Signal::SIGTSTP).unwrap();
    stage.stop_agent("node-a");
    stage.agent_says("node-a", &["cleanup"]);
    let text = wait_for(&terminal, "no datapath here");
    assert!(text.contains("default/s1:web"), "what was seen stays:\n{text}");
    stage.start_agent("node-a");
    terminal.wait_for("all is well", PATIENCE, |text| !text.contains("no datapath")).unwrap();
    terminal.signal(Signal::SIGTERM).unwrap();
    expect_a_clean_end(terminal);
}

#[test]
fn without_a_terminal_or_a_datapath_it_says_what_to_do() {
    let mut stage = Stage::up(&Options::default(), &[Service::node_port(1, &["pod-a1"])]);
    let refused = |stage: &Stage, arguments: &[&str]| {
        let output = stage.agent_output("node-a", arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused(&stage, &["top"]);
    assert!(said.contains("no terminal") && said.contains("lb-agent top --batch"), "{said}");
    stage.stop_agent("node-a");
    stage.agent_says("node-a", &["cleanup"]);
    let said = refused(&stage, &["top", "--batch"]);
    assert!(said.contains("no datapath here"), "{said}");
}
