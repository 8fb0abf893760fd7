//! The agent's maps and the host build of the datapath against the model of kube-proxy's contract.

use lb_agent::contract::{Place, Source, Verdict};
use lb_tests::contract::case::{Case, How};
use lb_tests::contract::host::Host;
use lb_tests::contract::lasting;
use lb_tests::contract::play::{answers, play};
use lb_tests::contract::{cases, random};
use std::collections::BTreeMap;

/// A minute's work.
const CASES: u32 = 1_500;

#[test]
fn whatever_happens_to_a_cluster_the_datapath_does_what_the_contract_says() {
    if let Err(difference) = random(cases(CASES), |case| play(case, &mut Host::default())) {
        panic!("{difference:#}");
    }
}

#[test]
fn no_datagram_of_a_flow_that_goes_on_reaches_an_endpoint_that_has_left() {
    let mut moved = 0;
    let result = random(cases(CASES), |case| {
        moved += lasting::play(case)?;
        Ok(())
    });
    if let Err(difference) = result {
        panic!("{difference:#}");
    }
    // Else nothing was asked for.
    assert!(moved >= 100, "of all flows only {moved} lost their endpoint");
}

/// Agreement says nothing about what is never asked for.
#[test]
fn random_cases_ask_for_everything() {
    let mut counts = BTreeMap::<String, u32>::new();
    random(3_000, |case| {
        for (ask, answer) in answers(case) {
            let verdict = match &answer.verdict {
                Verdict::NotOurs => "not ours".to_owned(),
                Verdict::Refuse(how) => format!("{how:?}"),
                Verdict::Drop => "dropped".to_owned(),
                Verdict::Translate(to) => format!("{} endpoints", to.backends.len().min(4)),
            };
            let how = match ask.how {
                How::Packet => format!("Packet from {:?}", ask.place),
                How::Connect | How::Send => format!("{:?}", ask.how),
            };
            *counts.entry(format!("{how}, {:?}: {verdict}", ask.protocol)).or_default() += 1;
            *counts.entry(format!("{how}: {verdict}")).or_default() += 1;
            if let (How::Packet, Place::Pod, Verdict::Translate(to)) =
                (ask.how, ask.place, &answer.verdict)
                && to.backends.values().any(|source| *source == Source::Node)
            {
                *counts.entry("a pod that reaches itself".to_owned()).or_default() += 1;
            }
            for reason in answer.because {
                *counts.entry(reason.rule.to_owned()).or_default() += 1;
            }
        }
        Ok(())
    })
    .unwrap();
    println!("{counts:#?}");
    let from_outside_and_pods = ["Packet from Outside", "Packet from Pod"];
    let verdicts = ["not ours", "dropped", "1 endpoints", "2 endpoints", "3 endpoints"];
    let calls = ["Connect", "Send"];
    let wanted = from_outside_and_pods
        .into_iter()
        .chain(calls)
        .flat_map(|how| verdicts.map(|verdict| format!("{how}: {verdict}")));
    let refusals = ["Tcp: Reset", "Udp: PortUnreachable", "Sctp: PortUnreachable"];
    let sctp = ["Sctp: not ours", "Sctp: 1 endpoints", "Sctp: 2 endpoints"];
    let by_protocol = from_outside_and_pods
        .into_iter()
        .flat_map(|how| refusals.into_iter().chain(sctp).map(move |what| format!("{how}, {what}")));
    let wanted = wanted.chain(by_protocol).chain(calls.map(|how| format!("{how}: Call")));
    let rules = [
        "a pod that reaches itself",
        "a ClusterIP refuses on ports that no Service has there",
        "clients on this node aren't bound by externalTrafficPolicy",
        "session affinity keeps an endpoint that is allowed",
        "source ranges come first",
        "all is masqueraded but what externalTrafficPolicy Local spares",
        "usable endpoints elsewhere mean silence, none at all a refusal",
    ];
    for what in wanted.chain(rules.map(str::to_owned)) {
        assert!(counts.get(&what).is_some_and(|count| *count >= 5), "{what}: too rare");
    }
}

#[test]
fn cases_survive_being_written_and_read() {
    random(64, |case| {
        let text = format!("{case:?}");
        assert_eq!(format!("{:?}", Case::read(&text)?), text);
        Ok(())
    })
    .unwrap();
}

/// A case as a failure prints it; those that were found are kept here.
#[test]
fn kept_cases_are_answered_as_the_contract_says() {
    for text in [
        // Policy Local with a ready endpoint elsewhere: the terminating one here is used.
        "
node_ports: [10.0.0.1]
steps:
- !service
  metadata: {name: a, namespace: default}
  spec:
    type: NodePort
    clusterIP: 10.96.0.10
    externalTrafficPolicy: Local
    ports: [{port: 80, nodePort: 30080}]
- !slice
  metadata: {name: s, namespace: default, labels: {kubernetes.io/service-name: a}}
  addressType: IPv4
  ports: [{name: '', port: 8080}]
  endpoints:
  - addresses: [10.244.1.5]
    nodeName: node-a
    conditions: {ready: false, serving: true, terminating: true}
  - {addresses: [10.244.2.5], nodeName: node-b}
- !ask packet tcp from outside 192.0.2.10 to 10.0.0.1:30080
- !ask connect tcp from pod 10.244.1.5 to 10.0.0.1:30080
",
        // All endpoints leave and another one comes: affinity has forgotten them.
        "
steps:
- !service
  metadata: {name: a, namespace: default}
  spec:
    clusterIP: 10.96.0.10
    sessionAffinity: ClientIP
    ports: [{port: 80}]
- !slice
  metadata: {name: s, namespace: default, labels: {kubernetes.io/service-name: a}}
  addressType: IPv4
  ports: [{name: '', port: 8080}]
  endpoints: [{addresses: [10.244.1.5]}, {addresses: [10.244.2.5]}]
- !ask connect tcp from pod 10.244.1.5 to 10.96.0.10:80
- !no-slice s
- !ask connect tcp from pod 10.244.1.5 to 10.96.0.10:80
- tidy
- !slice
  metadata: {name: s, namespace: default, labels: {kubernetes.io/service-name: a}}
  addressType: IPv4
  ports: [{name: '', port: 8080}]
  endpoints: [{addresses: [10.244.2.6]}]
- !ask connect tcp from pod 10.244.1.5 to 10.96.0.10:80
",
    ] {
        let played = Case::read(text).and_then(|case| play(&case, &mut Host::default()));
        played.unwrap_or_else(|error| panic!("{error:#}\nin{text}"));
    }
}
