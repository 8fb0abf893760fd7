//! The whole agent but the kernel's side: a directory of manifests, the network of a fresh
//! namespace, HTTP, and real signals. Needs root.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::datapath::{
    ApplyReport, ConnectedSocket, Datapath, Expiry, FlowExpiry, Opened, Setup, Translations,
};
use super::run;
use crate::args::{Args, Command};
use crate::config::Config;
use crate::node::facts::{ClientAddresses, NodeFacts};
use crate::plan::desired::{Delta, Desired};
use crate::serve::collect::KernelCounters;
use crate::serve::metrics::MapFill;
use crate::serve::traffic::ServiceCount;

/// Remembers what it was told.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Desired>>);

impl Memory {
    fn frontends(&self) -> usize {
        self.0.lock().unwrap().frontends.len()
    }
}

impl Datapath for Memory {
    type Error = std::convert::Infallible;

    fn set_node(&mut self, _facts: &NodeFacts) -> Result<(), Self::Error> {
        Ok(())
    }

    fn set_clients(&mut self, _: &BTreeMap<u64, ClientAddresses>) -> Result<(), Self::Error> {
        Ok(())
    }

    fn begin_from(&mut self, desired: &Desired) -> Result<ApplyReport, Self::Error> {
        *self.0.lock().unwrap() = desired.clone();
        Ok(ApplyReport::default())
    }

    fn apply(&mut self, delta: &Delta) -> Result<ApplyReport, Self::Error> {
        self.0.lock().unwrap().apply(delta.clone());
        Ok(ApplyReport::default())
    }

    fn maintain(&mut self) -> Result<ApplyReport, Self::Error> {
        Ok(ApplyReport::default())
    }

    fn fill(&self) -> Vec<MapFill> {
        vec![MapFill { map: "frontends", used: self.frontends() as u64, capacity: 100 }]
    }
}

impl FlowExpiry for Memory {
    type Error = std::convert::Infallible;

    fn expire(&mut self) -> Result<Expiry, Self::Error> {
        let fill = vec![MapFill { map: "FLOWS4", used: 7, capacity: 100 }];
        Ok(Expiry { fill, ..Expiry::default() })
    }
}

impl Translations for Memory {
    type Error = std::convert::Infallible;

    fn is_stale(&self, _socket: &ConnectedSocket) -> Result<bool, Self::Error> {
        Ok(false)
    }

    fn forget(&self, _cookie: u64, _backend: SocketAddr) -> Result<(), Self::Error> {
        Ok(())
    }
}

impl KernelCounters for Memory {
    fn drops(&self) -> Vec<(&'static str, u64)> {
        vec![("no_endpoint", 3)]
    }

    fn traffic(&self) -> Option<Vec<ServiceCount>> {
        None
    }
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec:
  clusterIP: ADDRESS
  clusterIPs: [ADDRESS]
  ports: [{port: 80}]
";

fn service(name: &str, address: &str) -> String {
    SERVICE.replace("NAME", name).replace("ADDRESS", address)
}

/// Switches on the loopback device of the calling thread's namespace.
fn loopback_up() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let up = rtnetlink::LinkMessageBuilder::<rtnetlink::LinkUnspec>::default().index(1).up();
        handle.link().set(up.build()).execute().await.unwrap();
    });
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..1_000 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    unreachable!("{what}: not in time")
}

fn config(manifests: &str) -> Config {
    let words = ["lb-agent", "run", "--manifests", manifests, "--hostname-override", "node-a"];
    match Args::try_parse_from(words).unwrap().command {
        Command::Run(args) => Config::new(*args, "unused").unwrap(),
        other => unreachable!("{other:?}"),
    }
}

/// What is asked of the running agent, from a thread in its namespace.
fn look_around(manifests: &std::path::Path, memory: &Memory) {
    let is_healthy = || get(10_256, "/healthz").filter(|text| text.starts_with("HTTP/1.1 200"));
    until("healthy", is_healthy);
    assert_eq!(memory.frontends(), 1);

    std::fs::write(manifests.join("second.yaml"), service("second", "fd00:96::2")).unwrap();
    until("a second Service", || (memory.frontends() == 2).then_some(()));

    let line = "lb_agent_map_entries{map=\"frontends\"} 2";
    let metrics = until("gauges", || get(10_249, "/metrics").filter(|text| text.contains(line)));
    assert!(metrics.contains("lb_agent_drops_total{reason=\"no_endpoint\"} 3"), "{metrics}");
    assert!(metrics.contains("lb_agent_map_entries{map=\"flows4\"} 7"), "{metrics}");
    assert!(metrics.contains("lb_agent_objects{kind=\"services\"} 2"), "{metrics}");
}

#[test]
fn sigterm_ends_the_agent_with_success_and_leaves_the_datapath_as_it_is() {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        loopback_up();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("first.yaml"), service("first", "10.96.0.1")).unwrap();

        let memory = Memory::default();
        let seen = Arc::new(Mutex::new(None::<Setup>));
        let result = std::thread::scope(|scope| {
            let looker = scope.spawn(|| {
                let result = std::panic::catch_unwind(|| look_around(directory.path(), &memory));
                // Handled by the agent since before its health could be seen; if that was never
                // seen, the test has failed and ends all the same.
                kill(Pid::this(), Signal::SIGTERM).unwrap();
                result
            });
            let result = run(config(&directory.path().display().to_string()), None, |setup| {
                *seen.lock().unwrap() = Some(setup.clone());
                Ok(Opened {
                    datapath: memory.clone(),
                    flows: memory.clone(),
                    sockets: memory.clone(),
                    counters: Arc::new(memory.clone()),
                })
            });
            looker.join().unwrap().unwrap();
            result
        });
        result.expect("exit status 0");
        assert_eq!(memory.frontends(), 2);
        let setup = seen.lock().unwrap().clone().unwrap();
        assert_ne!(setup.netns_cookie, 0);
        assert!(setup.cgroup_root.is_absolute());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
