//! The datapath and its agent.

use lb_common::abi::map;

use super::{finding, from_error, or_fine};
use crate::bpf::attached::{Attached, socket_hooks};
use crate::bpf::usage::MapUsage;
use crate::doctor::facts::Facts;
use crate::doctor::{Finding, Severity};
use crate::node::facts::{Device, Role};
use Severity::{Error, Info, Ok as Fine, Warning};

/// Percent of a map from which on it is worth a warning.
const NEARLY_FULL: u64 = 85;
/// Differences that are named one by one.
const NAMED: usize = 20;
/// What is said where the kernel refused a look.
const AS_ROOT: &str = "run it as root, or in the agent's container";
/// The maps that can be too small, and the flags that make them greater.
const SIZES: [(&str, &str); 7] = [
    (map::SERVICES, "--max-services"),
    (map::FRONTENDS, "--max-services"),
    (map::BACKENDS, "--max-backends"),
    (map::SLOTS, "--max-slots"),
    (map::SOURCE_RANGES, "--max-source-ranges"),
    (map::FLOWS4, "--max-flows"),
    (map::FLOWS6, "--max-flows"),
];
/// Those that make room by themselves, at the cost of what was silent longest.
const FORGETFUL: [&str; 2] = [map::FLOWS4, map::FLOWS6];
pub fn attachments(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "attachments";
    let mut found: Vec<Finding> = facts
        .other_versions
        .iter()
        .map(|directory| {
            finding(
                Warning,
                CHECK,
                format!(
                    "the datapath of another version is pinned at {directory}, and may translate"
                ),
                "stop the agent, `lb-agent cleanup`, and start it again",
            )
        })
        .collect();
    match &facts.attachments {
        Err(reason) => found.push(from_error(Error, CHECK, reason, AS_ROOT)),
        Ok(None) => found.push(finding(
            Error,
            CHECK,
            "no datapath: nothing of lb-agent is in this kernel",
            START,
        )),
        Ok(Some(attached)) => {
            found.extend(missing_hooks(facts, attached));
            found.extend(facts.node.devices.values().flat_map(|it| missing_on(it, attached)));
            if serves_sctp(facts) {
                let own = facts.node.own_devices.values();
                found.extend(own.flat_map(|it| missing_on(it, attached)));
            }
            if serves_pod_packets(facts) {
                let pods = facts.node.pod_devices.values();
                found.extend(pods.flat_map(|it| missing_on(it, attached)));
            }
        }
    }
    or_fine(found, CHECK, "socket hooks, and programs on every device that needs them")
}

const START: &str = "start lb-agent on this node, or again if it runs; its log says what fails";

fn serves_sctp(facts: &Facts) -> bool {
    facts.cluster.as_ref().is_ok_and(|cluster| cluster.has_sctp)
}

fn serves_pod_packets(facts: &Facts) -> bool {
    facts.serves_pod_packets || serves_sctp(facts)
}

fn missing_hooks(facts: &Facts, attached: &Attached) -> Option<Finding> {
    let (path, id) = facts.cgroup.as_ref().ok()?;
    let missing: Vec<_> =
        socket_hooks().filter(|hook| attached.sockets.get(hook) != Some(id)).collect();
    let text = format!("not attached to {}: {}", path.display(), missing.join(", "));
    (!missing.is_empty()).then(|| finding(Error, "attachments", text, START))
}

fn missing_on(device: &Device, attached: &Attached) -> Vec<Finding> {
    let there = attached.devices.get(&device.index);
    [
        ("in", device.role == Role::Own || there.is_some_and(|there| there.ingress)),
        ("out", there.is_some_and(|there| there.egress)),
    ]
    .into_iter()
    .filter(|(_, is_there)| !is_there)
    .map(|(direction, _)| {
        let text = format!("{}: no program for what comes {direction}", device.name);
        finding(Error, "attachments", text, START)
    })
    .collect()
}

pub fn fill(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "fill";
    let maps = match &facts.usage {
        None => return vec![finding(Info, CHECK, "left out: no datapath", "")],
        Some(Err(reason)) => return vec![from_error(Error, CHECK, reason, AS_ROOT)],
        Some(Ok(maps)) => maps,
    };
    let flag = |usage: &MapUsage| SIZES.iter().find(|(map, _)| *map == usage.map);
    let sized = maps.iter().filter_map(|usage| Some((usage, flag(usage)?.1, usage.entries?)));
    let mut found = Vec::new();
    let mut fullest = 0;
    for (MapUsage { map, max_entries, .. }, flag, used) in sized {
        let capacity = u64::from(*max_entries);
        let percent = used * 100 / capacity.max(1);
        fullest = fullest.max(percent);
        if percent >= NEARLY_FULL {
            let forgets = FORGETFUL.contains(map);
            let effect = if forgets {
                "the flows that were silent longest are forgotten"
            } else {
                "Services that don't fit are left out"
            };
            // Element 0 of an array isn't used.
            let is_full = !forgets && used + 1 >= capacity;
            found.push(finding(
                if is_full { Error } else { Warning },
                CHECK,
                format!("{map} holds {used} of {capacity} ({percent} %): {effect}"),
                format!("restart with a greater {flag} after `lb-agent cleanup`"),
            ));
        }
    }
    or_fine(found, CHECK, &format!("no map holds more than {fullest} %"))
}

pub fn services(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "services";
    let cluster = match &facts.cluster {
        Ok(cluster) => cluster,
        Err(reason) => {
            let text = format!("the maps aren't compared with the cluster: {reason}");
            return vec![finding(Warning, CHECK, text, "give the flags of the agent, see --help")];
        }
    };
    let Some(differences) = &cluster.differences else {
        let text = format!("left out: no datapath to compare {} Service ports with", cluster.ports);
        return vec![finding(Info, CHECK, text, "")];
    };
    const REMEDY: &str = "a running agent writes what changes, and everything when it starts: restart it, \
        and look into its log if this comes back";
    let mut found: Vec<_> = differences
        .iter()
        .take(NAMED)
        .map(|difference| finding(Error, CHECK, difference.clone(), REMEDY))
        .collect();
    if differences.len() > NAMED {
        let text = format!("{} more Service ports differ", differences.len() - NAMED);
        found.push(finding(Error, CHECK, text, REMEDY));
    }
    let text = format!("the maps hold all {} Service ports as the cluster says", cluster.ports);
    or_fine(found, CHECK, &text)
}

pub fn agent(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "agent";
    let users = match &facts.users {
        Ok(users) if users.is_in_use => users,
        Ok(_) => {
            let text = if matches!(facts.attachments, Ok(Some(_))) {
                "no agent works with the datapath, which stays as it is: changes aren't followed"
            } else {
                "no agent runs here"
            };
            return vec![finding(Error, CHECK, text, "start lb-agent on this node")];
        }
        Err(reason) => return vec![from_error(Warning, CHECK, reason, AS_ROOT)],
    };
    let who = match (users.process, facts.answers.age) {
        (Some(process), Some(age)) => {
            let age = humantime::format_duration(std::time::Duration::from_secs(age));
            format!("runs as process {process} for {age}")
        }
        _ => "runs".to_owned(),
    };
    vec![match &facts.answers.healthz {
        None => finding(Info, CHECK, format!("{who}; it serves no /healthz"), ""),
        Some(Ok(_)) if facts.answers.kube_proxy_mode().is_some() => finding(
            Info,
            CHECK,
            format!(
                "{who}; whether it is healthy isn't known: kube-proxy has the port of /healthz"
            ),
            "give it another one with --healthz-bind-address to see both",
        ),
        Some(Ok(answer)) if answer.status == 200 => {
            finding(Fine, CHECK, format!("{who}, and is healthy"), "")
        }
        Some(Ok(answer)) => finding(
            Error,
            CHECK,
            format!("{who}, and says {}: {}", answer.status, answer.body.trim()),
            "its log says what it waits for; a node that is to be removed answers so, too",
        ),
        Some(Err(reason)) => finding(
            Error,
            CHECK,
            format!("{who}, and /healthz can't be asked: {reason}"),
            "give the agent's own --healthz-bind-address; its log says whether it could listen there",
        ),
    }]
}
