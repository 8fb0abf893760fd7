//! What the names of Services and Pods answer: a Pod asks the cluster's own name servers behind the
//! datapath, and connects by name.

use super::cluster::Cluster;
use super::programs::Programs;
use super::specs::{Ending, Outcome};
use crate::process;
use crate::progress::Step;
use anyhow::{Context, Result, ensure};
use regex::Regex;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const MANIFEST: &str = include_str!("../../../tests/e2e/names.yaml");
const NAMESPACE: &str = "names";
/// Until controllers, name servers and agents have seen the last change.
const PATIENCE: Duration = Duration::from_secs(30);
/// One of two endpoints is left out once in eight million rounds.
const REQUESTS: u32 = 24;

/// What is asked for.
#[derive(Clone, Copy)]
enum Asked {
    /// This name.
    Name(&'static str),
    /// A Pod's IPv4 address with dashes, below this name.
    Dashed4(&'static str, &'static str),
    /// Likewise its IPv6 address.
    Dashed6(&'static str, &'static str),
}

/// What the name must answer.
#[derive(Clone, Copy)]
enum Answer {
    /// The addresses of a Service, one of each family.
    Service(&'static str),
    /// The addresses of Pods, of each family.
    Pods(&'static [&'static str]),
    /// The Pod's address that is in the name.
    ThatAddress,
    /// Another name.
    Alias(&'static str),
}

/// Which name server is asked, and how.
#[derive(Clone, Copy)]
enum Server {
    /// That of the Pod's resolv.conf, over UDP.
    Usual,
    /// The same over TCP.
    UsualTcp,
    /// At an IPv6 address, over UDP.
    V6,
    V6Tcp,
}

struct Story {
    title: &'static str,
    asked: Asked,
    answer: Answer,
    server: Server,
    /// Port, and the host names of all who must answer there by HTTP.
    serves: Option<(u16, &'static [&'static str])>,
}

const fn story(
    title: &'static str,
    asked: Asked,
    answer: Answer,
    serves: Option<(u16, &'static [&'static str])>,
) -> Story {
    Story { title, asked, answer, server: Server::Usual, serves }
}

const CLUSTERIP: Option<(u16, &[&str])> = Some((80, &["clusterip-a", "clusterip-b"]));

/// Every name of the fixtures.
const STORIES: [Story; 19] = {
    use Answer::{Alias, Pods, Service, ThatAddress};
    use Asked::{Dashed4, Dashed6, Name};
    const APP: Option<(u16, &[&str])> = Some((80, &["app"]));
    const POD5: Option<(u16, &[&str])> = Some((8080, &["pod5"]));
    const VIP: Answer = Service("clusterip1");
    [
        story("clusterip1", Name("clusterip1"), VIP, CLUSTERIP),
        story("clusterip1.names", Name("clusterip1.names"), VIP, CLUSTERIP),
        story("clusterip1.names.svc", Name("clusterip1.names.svc"), VIP, CLUSTERIP),
        story(
            "clusterip1.names.svc.cluster.local.",
            Name("clusterip1.names.svc.cluster.local."),
            VIP,
            CLUSTERIP,
        ),
        Story {
            server: Server::UsualTcp,
            ..story("clusterip1, asked over TCP", Name("clusterip1"), VIP, None)
        },
        Story {
            server: Server::V6,
            ..story("clusterip1, asked over IPv6", Name("clusterip1"), VIP, None)
        },
        Story {
            server: Server::V6Tcp,
            ..story("clusterip1, asked over IPv6 and TCP", Name("clusterip1"), VIP, None)
        },
        story("nodeport1", Name("nodeport1"), Service("nodeport1"), Some((80, &["nodeport-a"]))),
        story(
            "loadbalancer1",
            Name("loadbalancer1"),
            Service("loadbalancer1"),
            Some((80, &["loadbalancer-a"])),
        ),
        story("endpoint1, with a selector", Name("endpoint1"), Service("endpoint1"), APP),
        story("endpoint2, Endpoints by hand", Name("endpoint2"), Service("endpoint2"), APP),
        story("endpoint3, Endpoints outside", Name("endpoint3"), Service("endpoint3"), None),
        // Whoever connects by it takes the address that it likes best.
        story("headless1", Name("headless1"), Pods(&["pod4", "pod5"]), None),
        story(
            "pod-a.headless1",
            Name("pod-a.headless1"),
            Pods(&["pod4"]),
            Some((8080, &["pod-a"])),
        ),
        story("IPv4 with dashes below headless1", Dashed4("pod5", "headless1"), ThatAddress, POD5),
        story("IPv6 with dashes below headless1", Dashed6("pod5", "headless1"), ThatAddress, POD5),
        story("IPv4 with dashes below names.pod", Dashed4("pod5", "names.pod"), ThatAddress, POD5),
        story("IPv6 with dashes below names.pod", Dashed6("pod5", "names.pod"), ThatAddress, POD5),
        story("externalname1", Name("externalname1"), Alias("site.example."), None),
    ]
};

impl Story {
    /// As it is counted, and matched by `--focus`.
    fn name(&self) -> String {
        format!("[names] {}", self.title)
    }
}

/// Whether `focus` leaves any of the stories.
pub fn any(focus: &Regex) -> bool {
    STORIES.iter().any(|story| focus.is_match(&story.name()))
}

/// Asks for every name that `focus` leaves.
///
/// # Errors
/// When the Pods can't be made; a name that answers something else is an outcome.
pub fn run(
    cluster: &Cluster,
    programs: &Programs,
    focus: &Regex,
    folder: &Path,
    step: &mut Step,
) -> Result<Vec<Outcome>> {
    if !any(focus) {
        return Ok(Vec::new());
    }
    step.update("the Pods that have names");
    let manifest = folder.join("names.yaml");
    let text = MANIFEST.replace("{agnhost}", &agnhost(programs)?);
    fs::write(&manifest, text).with_context(|| format!("write {}", manifest.display()))?;
    let manifest = manifest.display().to_string();
    cluster.kubectl(&["apply", "-f", &manifest])?;
    let wait = ["-n", NAMESPACE, "wait", "--for=condition=Ready", "pod", "--all"];
    cluster.kubectl(&[&wait[..], &["--timeout=120s"]].concat())?;
    let objects = Objects::read(cluster)?;
    objects.write_endpoints(cluster, folder)?;
    let mut outcomes = Vec::new();
    for story in STORIES.iter().filter(|story| focus.is_match(&story.name())) {
        step.update(story.title);
        let started = Instant::now();
        let ending = match eventually(|| story.hold(cluster, &objects)) {
            Ok(()) => Ending::Passed,
            Err(error) => Ending::Failed(format!("{error:#}")),
        };
        outcomes.push(Outcome { name: story.name(), ending, seconds: started.elapsed().as_secs() });
    }
    // The tests that follow may need the NodePort.
    cluster.kubectl(&["delete", "--ignore-not-found", "--wait=false", "-f", &manifest])?;
    Ok(outcomes)
}

/// The image by the name that this release has for it.
fn agnhost(programs: &Programs) -> Result<String> {
    let list = process::output(Command::new(programs.path("e2e.test")?).arg("--list-images"))?;
    let found = list.lines().map(str::trim).find(|image| image.contains("/agnhost:"));
    found.map(str::to_owned).context("this release of Kubernetes uses no image agnhost")
}

fn eventually(mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    loop {
        match look() {
            Err(_) if started.elapsed() < PATIENCE => std::thread::sleep(Duration::from_secs(1)),
            ending => return ending,
        }
    }
}

/// The addresses that names must lead to.
struct Objects {
    pods: Value,
    services: Value,
    /// IPv6 address of the name servers.
    server: IpAddr,
}

impl Objects {
    fn read(cluster: &Cluster) -> Result<Self> {
        let list = |namespace: &str, kind: &str| -> Result<Value> {
            let text = cluster.kubectl(&["-n", namespace, "get", kind, "-o", "json"])?;
            serde_json::from_str(&text).with_context(|| format!("kubectl get {kind}"))
        };
        let system = list("kube-system", "services")?;
        let servers = addresses(&system, "names-dns", "/spec/clusterIPs")?;
        let server = servers.into_iter().find(IpAddr::is_ipv6).context("no IPv6 name server")?;
        let (pods, services) = (list(NAMESPACE, "pods")?, list(NAMESPACE, "services")?);
        Ok(Self { pods, services, server })
    }

    fn pod(&self, name: &str) -> Result<BTreeSet<IpAddr>> {
        addresses(&self.pods, name, "/status/podIPs")
    }

    fn service(&self, name: &str) -> Result<BTreeSet<IpAddr>> {
        addresses(&self.services, name, "/spec/clusterIPs")
    }

    /// As a person would, who knows the address of the Pod `app`.
    fn write_endpoints(&self, cluster: &Cluster, folder: &Path) -> Result<()> {
        let addresses: Vec<_> =
            self.pod("app")?.into_iter().map(|address| json!({ "ip": address })).collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": { "name": "endpoint2", "namespace": NAMESPACE },
            "subsets": [{ "addresses": addresses, "ports": [{ "port": 8080 }] }],
        });
        let file = folder.join("endpoint2.json");
        fs::write(&file, object.to_string())
            .with_context(|| format!("write {}", file.display()))?;
        cluster.kubectl(&["apply", "-f", &file.display().to_string()]).map(drop)
    }
}

/// The addresses at `pointer` of the object `name` in a list: plain, or each as `ip`.
fn addresses(list: &Value, name: &str, pointer: &str) -> Result<BTreeSet<IpAddr>> {
    let mut items = list["items"].as_array().into_iter().flatten();
    let object = items.find(|item| item["metadata"]["name"] == name);
    let object = object.with_context(|| format!("there is no {name}"))?;
    let values = object.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let texts = values.filter_map(|value| value.as_str().or_else(|| value["ip"].as_str()));
    let found: BTreeSet<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    ensure!(found.len() == 2, "{name} has not one address of each family: {found:?}");
    Ok(found)
}

impl Story {
    /// Asks once.
    fn hold(&self, cluster: &Cluster, objects: &Objects) -> Result<()> {
        let (name, wanted) = self.resolved(objects)?;
        let server = match self.server {
            Server::Usual => String::new(),
            Server::UsualTcp => "+tcp".to_owned(),
            Server::V6 => format!("@{}", objects.server),
            Server::V6Tcp => format!("@{} +tcp", objects.server),
        };
        let dig = |kind: &str| {
            let script = format!("dig {server} +search +short +time=2 {name} {kind}");
            Ok::<_, anyhow::Error>(lines(&in_client(cluster, &script)?))
        };
        if let Answer::Alias(target) = self.answer {
            let answered = dig("CNAME")?;
            ensure!(answered == BTreeSet::from([target.to_owned()]), "{name}: {answered:?}");
            return Ok(());
        }
        for (kind, v6) in [("A", false), ("AAAA", true)] {
            let wanted: BTreeSet<String> = wanted
                .iter()
                .filter(|address| address.is_ipv6() == v6)
                .map(IpAddr::to_string)
                .collect();
            let answered = dig(kind)?;
            ensure!(answered == wanted, "{name} {kind}: {answered:?} instead of {wanted:?}");
        }
        let Some((port, servers)) = self.serves else { return Ok(()) };
        let servers: BTreeSet<String> = servers.iter().map(|&server| server.to_owned()).collect();
        for family in [4, 6] {
            if !wanted.iter().any(|address| address.is_ipv6() == (family == 6)) {
                continue;
            }
            let get =
                format!("curl -{family} -sS --fail --max-time 5 http://{name}:{port}/hostname");
            let script = format!("for i in $(seq {REQUESTS}); do {get} && echo || exit 1; done");
            let answered = lines(&in_client(cluster, &script)?);
            ensure!(answered == servers, "{name} by IPv{family}: {answered:?} of {servers:?}");
        }
        Ok(())
    }

    /// The name that is asked for, and the addresses that it must have.
    fn resolved(&self, objects: &Objects) -> Result<(String, BTreeSet<IpAddr>)> {
        let dashed = |pod, below, v6| -> Result<_> {
            let address = objects.pod(pod)?.into_iter().find(|address| address.is_ipv6() == v6);
            let address = address.context("a Pod without an address")?;
            let dashes = address.to_string().replace(['.', ':'], "-");
            Ok((format!("{dashes}.{below}"), BTreeSet::from([address])))
        };
        let (name, address) = match self.asked {
            Asked::Name(name) => (name.to_owned(), BTreeSet::new()),
            Asked::Dashed4(pod, below) => dashed(pod, below, false)?,
            Asked::Dashed6(pod, below) => dashed(pod, below, true)?,
        };
        let wanted = match self.answer {
            Answer::Service(service) => objects.service(service)?,
            Answer::Pods(pods) => {
                let all = pods.iter().map(|pod| objects.pod(pod)).collect::<Result<Vec<_>>>()?;
                all.into_iter().flatten().collect()
            }
            Answer::ThatAddress => address,
            Answer::Alias(_) => BTreeSet::new(),
        };
        Ok((name, wanted))
    }
}

/// Standard output of a shell script in the Pod that asks.
fn in_client(cluster: &Cluster, script: &str) -> Result<String> {
    cluster.kubectl(&["-n", NAMESPACE, "exec", "client", "--", "sh", "-c", script])
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects() -> Objects {
        let pod = |name: &str, ips: [&str; 2]| {
            json!({ "metadata": { "name": name },
                "status": { "podIPs": ips.map(|ip| json!({ "ip": ip })) } })
        };
        Objects {
            pods: json!({ "items": [
                pod("pod4", ["10.244.1.4", "fd00:10:244:1::4"]),
                pod("pod5", ["10.244.2.5", "fd00:10:244:2::5"]),
            ]}),
            services: json!({ "items": [
                { "metadata": { "name": "clusterip1" },
                  "spec": { "clusterIPs": ["10.96.0.9", "fd00:10:96::9"] } },
            ]}),
            server: "fd00:10:96::a".parse().expect("an address"),
        }
    }

    #[test]
    fn names_and_the_addresses_that_they_must_have_come_from_the_objects_of_the_cluster() {
        let set = |words: &[&str]| words.iter().map(|word| word.parse().expect("one")).collect();
        for (title, name, addresses) in [
            ("clusterip1", "clusterip1", set(&["10.96.0.9", "fd00:10:96::9"])),
            ("pod-a.headless1", "pod-a.headless1", set(&["10.244.1.4", "fd00:10:244:1::4"])),
            ("IPv4 with dashes below headless1", "10-244-2-5.headless1", set(&["10.244.2.5"])),
            (
                "IPv6 with dashes below names.pod",
                "fd00-10-244-2--5.names.pod",
                set(&["fd00:10:244:2::5"]),
            ),
        ] {
            let story = STORIES.iter().find(|story| story.title == title).expect(title);
            assert_eq!(story.resolved(&objects()).expect(title), (name.to_owned(), addresses));
        }
    }

    #[test]
    fn the_focus_chooses_among_names_too() {
        let regex = |text| Regex::new(text).expect("a regular expression");
        assert!(any(&regex("")) && any(&regex("externalname")) && !any(&regex("affinity")));
    }
}
