//! What kube-proxy's mode ipvs leaves, made by the programs that kube-proxy runs, between virtual servers,
//! sets, chains and devices of others.

use super::sys::run;
use anyhow::{Context, Result, anyhow, bail, ensure};
use lb_agent::takeover::{self, State, TakeoverError};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Nothing is pinned there.
const NOWHERE: &str = "/tmp/no-bpffs";
/// Longer than anything said takes to arrive.
const SILENCE: Duration = Duration::from_secs(5);
/// The kernel may take so long to see a connection's end.
const PATIENCE: Duration = Duration::from_secs(20);

/// One family, as kube-proxy's commands say it.
struct Family {
    /// `hash:ip,port family …`.
    family: &'static str,
    /// How kube-proxy's sets begin.
    prefix: &'static str,
    /// Before `tables-nft`.
    iptables: &'static str,
    node: &'static str,
    cluster_ip: &'static str,
    load_balancer: &'static str,
    endpoint: &'static str,
    /// A virtual server of somebody else, at an address of nobody.
    foreign: &'static str,
    length: u8,
}

const FAMILIES: [Family; 2] = [
    Family {
        family: "inet",
        prefix: "KUBE-",
        iptables: "ip",
        node: "192.0.2.1",
        cluster_ip: "10.96.0.1",
        load_balancer: "198.51.100.1",
        endpoint: "10.244.0.2",
        foreign: "203.0.113.1",
        length: 32,
    },
    Family {
        family: "inet6",
        prefix: "KUBE-6-",
        iptables: "ip6",
        node: "fd00:1::1",
        cluster_ip: "fd00:96::1",
        load_balancer: "fd00:198::1",
        endpoint: "fd00:244::2",
        foreign: "fd00:203::1",
        length: 128,
    },
];

/// With either kind of iptables that this kernel has.
pub fn leftovers_go() -> Result<()> {
    for iptables in ["nft", "legacy"] {
        let ran = thread::scope(|scope| scope.spawn(|| node(iptables)).join());
        let ran = ran.unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
        ran.with_context(|| format!("chains by iptables-{iptables}"))?;
    }
    Ok(())
}

fn node(iptables: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
    ensure!(!look()?.leftovers.any(), "a new namespace has nothing");
    if iptables == "legacy" && run("iptables-legacy -t nat -S").is_err() {
        // Kernels stop having it.
        println!("vm: no iptables-legacy on this kernel");
        return Ok(());
    }
    run("ip link set lo up")?;
    // kube-proxy sets it: IPVS tells conntrack of its connections.
    fs::write("/proc/sys/net/ipv4/vs/conntrack", "1").context("net.ipv4.vs.conntrack")?;
    run("ip link add node0 type dummy")?;
    run("ip link set node0 up")?;
    run("ip link add kube-ipvs0 type dummy")?;
    for family in &FAMILIES {
        theirs(family, iptables)?;
    }
    let theirs = survey(iptables)?;
    for family in &FAMILIES {
        kube_proxys(family, iptables)?;
    }
    let found = look()?;
    // For each family a ClusterIP, a load balancer's address and a NodePort.
    let said = found.leftovers.to_string();
    let expected =
        "8 chains and 4 jumps to them (iptables), 6 virtual servers, 10 sets and kube-ipvs0";
    ensure!(said.contains(expected), "{said}");
    for family in &FAMILIES {
        connections(family)?;
    }
    removal()?;
    let left = survey(iptables)?;
    ensure!(left == theirs, "left:\n{left}\ninstead of:\n{theirs}");
    ensure!(!look()?.leftovers.any(), "{}", look()?.leftovers);
    let again = takeover::remove_kube_proxy(Path::new(NOWHERE), Duration::ZERO, false)?;
    ensure!(!again.any(), "{again}");
    Ok(())
}

fn look() -> Result<State> {
    Ok(takeover::state(Path::new(NOWHERE))?)
}

/// Virtual servers, sets, chains and addresses of others.
fn theirs(family: &Family, iptables: &str) -> Result<()> {
    let Family { family: name, prefix, node, foreign, length, .. } = family;
    run(&format!("ip address add {node}/{length} dev node0"))?;
    let at = |address, port| socket_address(address, port);
    // At a NodePort's number, and nobody's address; at the node's address, and no NodePort's number.
    run(&format!("ipvsadm -A -t {} -s rr", at(foreign, 30_080)))?;
    run(&format!("ipvsadm -A -t {} -s rr", at(node, 4_443)))?;
    run(&format!("ipvsadm -A -u {} -s rr", at(node, 30_080)))?;
    let mark = if *name == "inet" { "-A -f 7" } else { "-A -f 7 -6" };
    run(&format!("ipvsadm {mark} -s rr"))?;
    run(&format!("ipset create {prefix}CLUSTER-IP-OWN hash:ip,port family {name}"))?;
    run(&format!("ipset create own-{name} hash:ip family {name}"))?;
    let rule = |rule: &str| run(&format!("{}tables-{iptables} {rule}", family.iptables));
    rule("-t nat -N OWN")?;
    rule(&format!("-t nat -A OWN -m set --match-set own-{name} src -j ACCEPT"))?;
    rule("-t nat -A PREROUTING -p tcp --dport 9999 -j OWN")?;
    rule("-t filter -N KUBE-FIREWALL")?;
    rule("-t filter -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP")?;
    rule("-t filter -A OUTPUT -j KUBE-FIREWALL")?;
    Ok(())
}

/// What kube-proxy makes, with its commands.
fn kube_proxys(family: &Family, iptables: &str) -> Result<()> {
    let Family { family: name, prefix, node, cluster_ip, load_balancer, endpoint, length, .. } =
        family;
    run(&format!("ip address add {cluster_ip}/{length} dev kube-ipvs0"))?;
    for (set, kind) in [
        ("CLUSTER-IP", format!("hash:ip,port family {name} hashsize 1024 maxelem 65536")),
        ("LOAD-BALANCER", format!("hash:ip,port family {name} hashsize 1024 maxelem 65536")),
        ("LOOP-BACK", format!("hash:ip,port,ip family {name} hashsize 1024 maxelem 65536")),
        ("NODE-PORT-TCP", "bitmap:port range 0-65535".to_owned()),
        ("NODE-PORT-UDP", "bitmap:port range 0-65535".to_owned()),
    ] {
        run(&format!("ipset create {prefix}{set} {kind} -exist"))?;
    }
    run(&format!("ipset add {prefix}CLUSTER-IP {cluster_ip},6:80"))?;
    run(&format!("ipset add {prefix}LOAD-BALANCER {load_balancer},6:80"))?;
    run(&format!("ipset add {prefix}LOOP-BACK {endpoint},6:8080,{endpoint}"))?;
    run(&format!("ipset add {prefix}NODE-PORT-TCP 30080"))?;
    for (address, port) in [(cluster_ip, 80), (load_balancer, 80), (node, 30_080)] {
        let server = socket_address(address, port);
        run(&format!("ipvsadm -A -t {server} -s rr"))?;
        run(&format!("ipvsadm -a -t {server} -r {} -m", socket_address(node, 8_080)))?;
    }
    let rule = |rule: &str| run(&format!("{}tables-{iptables} {rule}", family.iptables));
    for chain in ["KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"] {
        rule(&format!("-t nat -N {chain}"))?;
    }
    rule("-t filter -N KUBE-FORWARD")?;
    let masquerade = "dst,dst -j KUBE-MARK-MASQ";
    rule(&format!("-t nat -A KUBE-SERVICES -m set --match-set {prefix}CLUSTER-IP {masquerade}"))?;
    rule("-t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000")?;
    let looped = format!("-m set --match-set {prefix}LOOP-BACK dst,dst,src -j MASQUERADE");
    rule(&format!("-t nat -A KUBE-POSTROUTING {looped}"))?;
    // To ports that no client has.
    let source = socket_address(node, 20_000);
    let masquerade = format!("-p tcp --dport 8080 -j SNAT --to-source {source}-20009");
    rule(&format!("-t nat -A KUBE-POSTROUTING {masquerade}"))?;
    rule("-t nat -I PREROUTING -m comment --comment portals -j KUBE-SERVICES")?;
    rule("-t nat -I POSTROUTING -m comment --comment postrouting -j KUBE-POSTROUTING")?;
    Ok(())
}

/// Connections count as long as they live.
fn connections(family: &Family) -> Result<()> {
    let [client, server] = connect(family)?;
    let from = server.peer_addr()?;
    let found = look()?;
    ensure!((found.carried, found.would_break) == (1, 1), "{from}: {found:?}");
    let flows = found.leftovers.flows()?;
    let is_known = flows.iter().any(|flow| flow.answered == from && flow.client != from);
    ensure!(is_known, "no flow is masqueraded as {from}: {flows:?}");
    let refused = takeover::remove_kube_proxy(Path::new(NOWHERE), Duration::ZERO, false);
    ensure!(matches!(refused, Err(TakeoverError::NotServed(_))), "{refused:?}");
    drop((client, server));
    let began = Instant::now();
    loop {
        let found = look()?;
        if found.would_break == 0 {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "it has ended: {found:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Both ends of a connection to a ClusterIP on which something was said.
fn connect(family: &Family) -> Result<[TcpStream; 2]> {
    let listener = TcpListener::bind(socket_address(family.node, 8_080)).context("listen")?;
    let client = TcpStream::connect(socket_address(family.cluster_ip, 80)).context("connect")?;
    let (server, _) = listener.accept().context("accept")?;
    let mut ends = [client, server];
    say(&mut ends)?;
    Ok(ends)
}

fn say([client, server]: &mut [TcpStream; 2]) -> Result<()> {
    server.set_read_timeout(Some(SILENCE))?;
    client.write_all(b"hello").context("send")?;
    let mut said = [0; 5];
    server.read_exact(&mut said).context("receive")
}

/// A set that somebody else's rule uses is left and named; without that rule it goes. Connections break:
/// that is why they are waited for.
fn removal() -> Result<()> {
    let mut held = connect(&FAMILIES[0])?;
    let remove = || takeover::remove_kube_proxy(Path::new(NOWHERE), Duration::ZERO, true);
    let uses = "-m set --match-set KUBE-NODE-PORT-UDP dst -j ACCEPT";
    run(&format!("iptables-nft -t filter -A INPUT {uses}"))?;
    match remove() {
        Err(error) => {
            let said = error.to_string();
            ensure!(said.contains("set KUBE-NODE-PORT-UDP is used by a rule"), "{said}");
        }
        Ok(_) => bail!("a set was removed that a rule uses"),
    }
    ensure!(say(&mut held).is_err(), "a connection goes on without its virtual server");
    run(&format!("iptables-nft -t filter -D INPUT {uses}"))?;
    let removed = remove().context("after the rule")?;
    ensure!(removed.to_string().contains("0 virtual servers, 1 sets and no device"), "{removed}");
    Ok(())
}

/// Everything that others may have.
fn survey(iptables: &str) -> Result<String> {
    let mut text = String::new();
    for command in [
        "ipvsadm -S -n".to_owned(),
        "ipset save".to_owned(),
        format!("iptables-{iptables}-save"),
        format!("ip6tables-{iptables}-save"),
    ] {
        let said = run(&command)?;
        let mut lines: Vec<_> = said.lines().filter(|line| !line.starts_with('#')).collect();
        // Policies count packets.
        let plain = |line: &mut &str| *line = line.split(" [").next().unwrap_or_default();
        lines.iter_mut().for_each(plain);
        if command.starts_with("ip") && !command.contains("tables") {
            lines.sort_unstable();
        }
        text.push_str(&format!("{command}:\n{}\n", lines.join("\n")));
    }
    Ok(text)
}

fn socket_address(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}
