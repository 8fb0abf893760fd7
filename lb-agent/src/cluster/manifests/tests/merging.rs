//! Which object of which file counts.

use super::super::{Directory, Look};
use super::{Known, service};
use crate::cluster::snapshot::Snapshot;
use tempfile::TempDir;

/// A directory with these files, and what it comes to.
fn merged(files: &[(&str, &str)]) -> Known {
    let directory = TempDir::new().unwrap();
    for (name, content) in files {
        std::fs::write(directory.path().join(name), content).unwrap();
    }
    let mut known = Known::new();
    known.take(Directory::new(directory.path(), "node-a").scan(&Look::default()));
    known
}

const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
";

const ENDPOINTS: &str = "
apiVersion: v1
kind: Endpoints
metadata: {name: web}
subsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 8080}]}]
";

#[test]
fn every_file_of_the_directory_counts_and_no_other() {
    let known = merged(&[
        ("a.yaml", &service("a", 80)),
        ("b.yml", &service("b", 80)),
        (
            "c.json",
            r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c", "namespace": "shop"},
                "spec": {"clusterIP": "10.96.0.12", "ports": [{"port": 80}]}}"#,
        ),
        ("d.yaml~", &service("d", 80)),
        (".e.yaml", &service("e", 80)),
        ("f.txt", "not YAML: ["),
        ("yaml", &service("g", 80)),
    ]);
    assert_eq!(known.services(), ["default/a", "default/b", "shop/c"]);
    assert_eq!(known.problems(), [""; 0]);
}

#[test]
fn an_empty_directory_is_a_complete_state() {
    let known = merged(&[]);
    assert!(known.planner.is_synced());
    let empty = Snapshot { cidrs: Some(Default::default()), ..Snapshot::default() };
    assert_eq!(known.snapshot(), &empty);
}

#[test]
fn the_same_object_in_two_files_comes_from_the_first_by_name() {
    let twice = format!("# a comment\n---\n{}---\n{}", service("db", 1), service("db", 2));
    let known = merged(&[
        ("b.yaml", &service("web", 81)),
        ("a.yaml", &service("web", 80)),
        ("c.yaml", &twice),
    ]);
    assert_eq!((known.port("web"), known.port("db")), (Some(80), Some(1)));
    let expected = [
        "b.yaml:1: Service default/web is in a.yaml too, which wins; remove one of the two",
        "c.yaml:12: Service default/db is in c.yaml too, which wins; remove one of the two",
    ];
    assert_eq!(known.problems(), expected);
}

#[test]
fn an_invalid_file_is_named_with_line_and_reason_and_the_others_count() {
    let known = merged(&[
        ("a.yaml", "apiVersion: v1\nkind: [\n"),
        ("b.yaml", &service("web", 80)),
        ("c.yaml", &service("bad", 0)),
    ]);
    assert_eq!(known.services(), ["default/web"]);
    let problems = known.problems();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[1].starts_with("Service default/bad: ports[0] has port 0"), "{problems:?}");
    assert!(problems[2].starts_with("a.yaml:3: is not usable YAML"), "{problems:?}");
}

#[test]
fn only_our_own_node_counts() {
    let node = |name: &str, zone: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n"
        )
    };
    let known = merged(&[(
        "nodes.yaml",
        &format!("{}---\n{}", node("node-b", "z2"), node("node-a", "z1")),
    )]);
    assert_eq!(known.snapshot().node.as_ref().and_then(|node| node.zone.as_deref()), Some("z1"));
    assert_eq!(merged(&[("nodes.yaml", &node("node-b", "z2"))]).snapshot().node, None);
}

#[test]
fn endpoints_count_without_slices_and_for_services_without_selector() {
    let plain = service("web", 80);
    let selecting = plain.replace("spec:\n", "spec:\n  selector: {app: web}\n");
    let skipped = ENDPOINTS.replace(
        "{name: web}",
        "{name: web, labels: {endpointslice.kubernetes.io/skip-mirror: 'true'}}",
    );
    let (mirror, own) = ("default/web~0-ipv4", "default/web-1");
    let table: [(&str, &[&str], &[&str]); 6] = [
        ("hand-written Endpoints", &[&plain, ENDPOINTS], &[mirror]),
        ("the controller merges both", &[&plain, ENDPOINTS, SLICE], &[own, mirror]),
        ("a selector, and nobody to make slices", &[&selecting, ENDPOINTS], &[mirror]),
        ("a selector, and slices of the same pods", &[&selecting, ENDPOINTS, SLICE], &[own]),
        ("no Service (yet)", &[ENDPOINTS], &[mirror]),
        ("the skip label", &[&plain, &skipped], &[]),
    ];
    for (what, documents, expected) in table {
        let known = merged(&[("all.yaml", &documents.join("---\n"))]);
        assert_eq!(known.slices(), expected, "{what}");
        assert_eq!(known.problems(), [""; 0], "{what}");
    }
}

#[test]
fn the_status_of_a_manifest_is_honoured() {
    let text = format!(
        "{}status: {{loadBalancer: {{ingress: [{{ip: 10.240.0.200}}]}}}}\n",
        service("web", 80)
    );
    let known = merged(&[("web.yaml", &text)]);
    assert_eq!(known.planner.desired().frontends.len(), 2);
}

#[test]
fn what_cannot_be_read_is_named_and_what_blocks_is_not_opened() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("latin.yaml"), b"# one\n# caf\xe9\n").unwrap();
    std::fs::create_dir(path("folder.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", path("dangling.yaml")).unwrap();
    nix::unistd::mkfifo(&path("fifo.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut known = Known::new();
    known.take(Directory::new(directory.path(), "node-a").scan(&Look::default()));
    let problems = known.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("latin.yaml:2: is not UTF-8 text"), "{problems:?}");
}

#[test]
fn a_second_look_without_change_is_no_change() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("a.yaml"), service("web", 0)).unwrap();
    let mut scanned = Directory::new(directory.path(), "node-a");
    assert!(!scanned.scan(&Look::default()).is_empty());
    assert_eq!(scanned.scan(&Look::default()), []);
    let forced = Look { at: [std::ffi::OsString::from("a.yaml")].into(), ..Look::default() };
    assert_eq!(scanned.scan(&forced), [], "read again, and it says the same");
}

#[test]
fn the_fixtures_of_every_kind_of_service_come_to_what_they_should() {
    let services = "
apiVersion: v1
kind: Service
metadata: {name: clusterip1}
spec: {clusterIP: 10.96.0.1, selector: {svc: clusterip}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nodeport1}
spec: {type: NodePort, clusterIP: 10.96.0.2, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless1}
spec: {clusterIP: None, selector: {svc: headless}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: pod4, labels: {svc: headless}}
---
apiVersion: v1
kind: Service
metadata: {name: endpoint3}
spec: {clusterIP: 10.96.0.3, ports: [{port: 80, targetPort: 80}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: endpoint3}
subsets: [{addresses: [{ip: 203.0.113.10}], ports: [{port: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: externalname1}
spec: {type: ExternalName, externalName: site.example}
";
    let known = merged(&[("services.yaml", services)]);
    assert_eq!(known.services(), ["default/clusterip1", "default/endpoint3", "default/nodeport1"]);
    assert_eq!(known.slices(), ["default/endpoint3~0-ipv4"]);
    assert_eq!(known.problems(), [""; 0]);
}

#[test]
fn service_cidrs_come_and_go_like_everything_else() {
    let directory = TempDir::new().unwrap();
    let write = |range: &str| {
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: kubernetes}}\n\
             spec: {{cidrs: [{range}]}}\n"
        );
        std::fs::write(directory.path().join("range.yaml"), text).unwrap();
    };
    let mut known = Known::new();
    let mut files = Directory::new(directory.path(), "node-a");
    let mut look = |known: &mut Known| {
        known.take(files.scan(&Look { at: ["range.yaml".into()].into(), ..Look::default() }));
        let ranges = known.planner.desired().ranges.clone().unwrap();
        ranges.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    write("10.96.0.0/16");
    assert_eq!(look(&mut known), ["10.96.0.0/16"]);
    write("10.97.0.0/16");
    assert_eq!(look(&mut known), ["10.97.0.0/16"]);
    std::fs::remove_file(directory.path().join("range.yaml")).unwrap();
    assert_eq!(look(&mut known), [""; 0]);
}
