//! Real namespaces, in a mount namespace of the test's own. Needs root.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::node::namespace::netns_cookie;

/// Less than what is looked for without being told, [`LISTING`] and [`REFRESH`].
const PROMPT: Duration = Duration::from_secs(1);

/// Runs a test in a thread whose mounts end with it.
fn alone(test: impl FnOnce(&Path) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("needs root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let directory = tempfile::tempdir().unwrap();
        test(directory.path());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Makes a namespace and mounts it, as a container runtime does; its cookie.
fn make(path: &Path) -> u64 {
    std::fs::write(path, "").unwrap();
    let path = path.to_owned();
    let maker = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let none = None::<&str>;
        mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none).unwrap();
        netns_cookie().unwrap()
    });
    maker.join().unwrap()
}

fn ip(namespace: &Path, arguments: &str) {
    let net = format!("--net={}", namespace.display());
    let words = ["ip"].into_iter().chain(arguments.split(' '));
    let status = Command::new("nsenter").arg(net).args(words).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Waits until the namespaces are as expected, without being told by time alone.
fn becomes(receiver: &watch::Receiver<PodNamespaces>, what: &str, expected: &PodNamespaces) {
    let started = Instant::now();
    while *receiver.borrow() != *expected {
        let now = receiver.borrow().clone();
        assert!(started.elapsed() < PROMPT, "{what}: {now:?} instead of {expected:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    eprintln!("{what}: {:?}", started.elapsed());
}

#[test]
fn a_namespace_is_known_from_its_mount_to_its_end_with_the_addresses_that_it_has_got() {
    alone(|directory| {
        let receiver = follow(vec![directory.join("missing"), directory.to_owned()]);
        becomes(&receiver, "nothing there", &PodNamespaces::new());
        let path = directory.join("cni-1");
        let cookie = make(&path);
        let mut namespace = PodNamespace { path: path.clone(), v4: None, v6: None };
        let one = |namespace: &PodNamespace| PodNamespaces::from([(cookie, namespace.clone())]);
        becomes(&receiver, "mounted", &one(&namespace));

        ip(&path, "link set lo up");
        ip(&path, "address add 10.255.0.1/32 dev lo");
        ip(&path, "link add other type veth peer name eth0");
        ip(&path, "address add 169.254.7.7/16 dev eth0");
        ip(&path, "address add fe80::7/64 dev eth0");
        ip(&path, "address add 10.244.1.7/24 dev eth0");
        namespace.v4 = Some([10, 244, 1, 7].into());
        becomes(&receiver, "IPv4", &one(&namespace));
        ip(&path, "address add fd00:244::7/64 dev eth0");
        ip(&path, "address add fd00:99::9/64 dev other");
        namespace.v6 = "fd00:244::7".parse().ok();
        becomes(&receiver, "IPv6", &one(&namespace));

        umount2(&path, MntFlags::MNT_DETACH).unwrap();
        std::fs::remove_file(&path).unwrap();
        becomes(&receiver, "gone", &PodNamespaces::new());
    });
}

#[test]
fn each_namespace_is_listed_once_and_our_own_and_plain_files_are_not() {
    alone(|directory| {
        std::fs::write(directory.join("file"), "").unwrap();
        let own = directory.join("own");
        std::fs::write(&own, "").unwrap();
        let none = None::<&str>;
        mount(Some("/proc/thread-self/ns/net"), &own, none, MsFlags::MS_BIND, none).unwrap();
        let other = directory.join("b");
        let cookie = make(&other);
        // A container runtime may mount one twice; the kubelet's paths may be links.
        std::os::unix::fs::symlink(&other, directory.join("c")).unwrap();
        let receiver = follow(vec![directory.to_owned(), directory.to_owned()]);
        let namespace = PodNamespace { path: other.clone(), v4: None, v6: None };
        assert_eq!(*receiver.borrow(), PodNamespaces::from([(cookie, namespace)]));
    });
}

/// A process that is ended.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_namespace_that_nobody_mounted_is_found_by_its_processes() {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "echo there; exec sleep 60"]).stdout(Stdio::piped());
    let mut child = Ended(command.spawn().expect("needs root"));
    let mut line = String::new();
    let output = child.0.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
    let path = PathBuf::from(format!("/proc/{}/ns/net", child.0.id()));
    let receiver = follow(vec!["/proc".into()]);
    let found = receiver.borrow().values().any(|namespace| namespace.path == path);
    assert!(found, "{path:?} in {:?}", receiver.borrow());
}
