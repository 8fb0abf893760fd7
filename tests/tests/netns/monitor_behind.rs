//! `lb-agent monitor` that doesn't keep up: what it missed is said, and it goes on.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lb_lab::{Family, Options, Request};
use nix::sys::signal::Signal;

use crate::manifest::{PORT, Service};
use crate::monitor::{EXPIRED, Monitor, paces, until};
use crate::stage::{Stage, eventually};

/// More than the ring buffer and the pipe to the reader hold together.
const FLOOD: u32 = 4_000;

/// What node-a's programs had no room for, ever.
fn lost(stage: &Stage) -> u64 {
    paces(stage).iter().map(|pace| pace.lost).sum()
}

/// The number in a line of this form, which stands there once.
fn number(errors: &str, line: &str) -> u64 {
    let mut lines = errors.lines().filter(|said| said.contains(line));
    let found = lines.next().unwrap_or_else(|| panic!("no {line:?} in {errors:?}"));
    assert_eq!(lines.next(), None, "{errors}");
    found.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn events_that_nobody_reads_are_counted_as_lost_and_the_others_are_shown() {
    let service = Service::new(1, &["pod-a1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    let to = service.cluster_ip().of(Family::V4);
    let before = lost(&stage);
    // Nobody reads its output: the pipe fills, then it waits, then the ring buffer fills.
    let monitor = Monitor::start(&stage, &["--rate", "1000000"]);
    stage.all_answered("pod-a2", &Request::udp(to, PORT).times(FLOOD));
    let lost = lost(&stage) - before;
    assert!(lost > 0, "it kept up");
    let (events, errors) = monitor.stop();
    assert_eq!(number(&errors, "events were lost: what is printed isn't read fast enough"), lost);
    assert!(!errors.contains("events were not shown"), "{errors}");
    assert_eq!(events.len() as u64 + lost, u64::from(FLOOD), "{errors}");
}

#[test]
fn a_monitor_that_was_stopped_says_for_how_long_nothing_was_watched_and_goes_on() {
    let service = Service::new(1, &["pod-a1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    let ask = |port| {
        let to = service.cluster_ip().of(Family::V6);
        stage.answer("pod-a2", &Request::tcp(to, PORT).from_port(port));
    };
    let mut monitor = Monitor::start(&stage, &[]);
    let began = Instant::now();
    monitor.signal(Signal::SIGSTOP);
    ask(40_001);
    sleep(EXPIRED);
    ask(40_002);
    let before = until(&stage);
    monitor.signal(Signal::SIGCONT);
    eventually("it watches again", || until(&stage) != before);
    let stopped = began.elapsed();
    ask(40_003);
    // What came while it was stopped and its filter was good has waited; then came nothing.
    assert_eq!(monitor.next()["client_port"], 40_001);
    assert_eq!(monitor.next()["client_port"], 40_003);
    let (rest, errors) = monitor.stop();
    assert_eq!(rest.len(), 0, "{rest:?}");
    let said = errors.lines().next().unwrap();
    let gap = said.strip_prefix("lb-agent: nothing was watched for ").unwrap();
    let (gap, why) = gap.split_once(": ").unwrap();
    assert_eq!(why, "what is printed isn't read fast enough");
    let gap = humantime::parse_duration(gap).unwrap();
    assert!(gap > Duration::ZERO && gap < stopped, "{gap:?} of {stopped:?}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}
