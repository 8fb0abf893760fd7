//! `lb-agent trace`: what becomes of a connection, step by step, and why.
//!
//! Three witnesses: the steps, asked one by one ([`explain`]); the whole decision, run in this process over
//! the pinned tables ([`model`]); where packets are translated, the loaded program, run on the packet that
//! would open the connection. Nothing is sent.

pub mod explain;
pub mod frame;
pub mod model;
pub mod question;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{
    Address, AddressFlags, ClientAddresses, Config, ConfigFlags, Device, DeviceFlags, FlowKey,
};
use lb_common::bytes::Be16;
use lb_common::env::Tables;
use lb_common::family::{V4, V6};
use lb_common::lb::frontend::Destination;
use lb_common::lb::policy::Client;
use lb_common::lb::socket::SocketVerdict;
use lb_common::lb::{DropReason, LOOPBACK, Verdict as PacketVerdict};
use lb_common::packet::ReadHeader;
use lb_common::wire::ip;
use serde::Serialize;

use crate::args::{TraceArgs, TracePath};
use crate::bpf::read::Reader;
use crate::bpf::trace::{Direction, Evidence, Run};
use crate::bpf::{BpfError, examine};
use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::inspect::reasons;
use crate::inspect::rows::protocol_name;
use crate::node::namespace::{CookieError, netns_cookie};
use crate::node::route::{RouteError, Routes, Way, device_name, forwards};
use explain::{Ask, Steps};
use model::Node;
use question::{From, To};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// `--from` can't be read.
    #[error(
        "--from {0}: give `node`, or an address with or without a port; the address of a pod is in \
        `kubectl get pod -o wide`"
    )]
    From(String),
    /// `--to` can't be read.
    #[error("--to {0}: give an address with its port, or NAMESPACE/NAME[:PORT] of a Service")]
    To(String),
    /// No such Service in the tables.
    #[error("--to: the tables have no Service {0}; `lb-agent services` lists those that they have")]
    NoService(String),
    /// No such port.
    #[error("--to: Service {service} has no such port in this family and protocol; it has {ports}")]
    NoPort {
        /// The Service.
        service: String,
        /// Its ports.
        ports: String,
    },
    /// Several.
    #[error("--to: Service {service} has several ports ({ports}): name one, as {service}:PORT")]
    WhichPort {
        /// The Service.
        service: String,
        /// Its ports.
        ports: String,
    },
    /// Nothing to connect to.
    #[error("--to: Service {0} has no address that this client could use")]
    NoAddress(String),
    /// IPv4 to IPv6 or the other way.
    #[error("--from and --to are of different IP families")]
    Families,
    /// The programs don't serve pods so.
    #[error(
        "--pod-path {0}: the loaded programs translate nothing there for this pod and protocol; leave \
        it out, or see --pod-path of `lb-agent run`"
    )]
    PodPath(&'static str),
    /// Not where packets are translated.
    #[error(
        "this isn't the network namespace that the loaded programs call the node's: run it on the \
        node, or in a pod with hostNetwork"
    )]
    NotTheNode,
    /// The programs aren't ours.
    #[error("the loaded programs are those of another version of lb-agent: use that one's `trace`")]
    OtherVersion,
    /// The kernel's side.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The routing table.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The namespace.
    #[error(transparent)]
    Cookie(#[from] CookieError),
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// This node itself.
    Node,
    /// A pod of this node.
    Pod,
    /// Somewhere else.
    Outside,
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It reaches an endpoint.
    Translated,
    /// It is none of the datapath's business.
    Untranslated,
    /// The client is told that nobody listens.
    Refused,
    /// It isn't let through.
    Dropped,
}

/// Where an endpoint is, as the API says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// On this node.
    ThisNode,
    /// On another one.
    OtherNode,
    /// It doesn't say.
    Unknown,
}

/// An endpoint that was possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Its address and port.
    pub address: SocketAddr,
    /// Where it is.
    pub place: Place,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its name.
    pub step: &'static str,
    /// What was found.
    pub says: String,
}

/// Why it isn't served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The label of `lb_agent_drops_total`.
    pub label: &'static str,
    /// What led to it.
    pub cause: &'static str,
    /// What to change.
    pub cure: &'static str,
}

/// What the loaded program said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramAnswer {
    /// Whether it was the same; `None` when it wasn't asked.
    pub agrees: Option<bool>,
    /// In words.
    pub says: String,
}

/// The answer. Field names are an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Where the client is.
    pub origin: Origin,
    /// The client, as far as it is known.
    pub from: Option<SocketAddr>,
    /// Where it connects to.
    pub to: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// `namespace/name:port` of the Service.
    pub service: Option<String>,
    /// What happens in order.
    pub steps: Vec<Step>,
    /// Endpoints that were possible.
    pub endpoints: Vec<Endpoint>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// The endpoint; none when it is random.
    pub chosen: Option<SocketAddr>,
    /// The source that the endpoint sees, if this node chooses it.
    pub seen_as: Option<SocketAddr>,
    /// The device that it leaves through, as far as it is known.
    pub device: Option<String>,
    /// Why it isn't served.
    pub reason: Option<Reason>,
    /// What the client meets.
    pub client_meets: &'static str,
    /// What the loaded program said.
    pub program: ProgramAnswer,
}

/// A question whose ends are known.
struct Question {
    origin: Origin,
    from: Option<IpAddr>,
    port: u16,
    /// Of the client's network namespace; 0 when it isn't known.
    namespace: u64,
    /// Through which its packets come in; 0 for the node's own.
    input: u32,
    to: SocketAddr,
    protocol: Protocol,
}

/// What is true of the node.
struct Scene {
    evidence: Evidence,
    config: Config,
    devices: BTreeMap<u32, Device>,
    clients: BTreeMap<u64, ClientAddresses>,
    routes: Routes,
}

/// Answers.
pub fn trace(args: &TraceArgs) -> Result<Explanation, TraceError> {
    let evidence = Evidence::open(&args.pins.bpffs)?;
    let config = examine::constants(&args.pins.bpffs)?.ok_or(TraceError::OtherVersion)?;
    if config.host_netns_cookie != netns_cookie()? {
        return Err(TraceError::NotTheNode);
    }
    let (devices, clients) = (evidence.devices()?, evidence.clients()?);
    let scene = Scene { evidence, config, devices, clients, routes: Routes::open()? };
    let question = scene.question(args)?;
    if scene.sees_packets(&question, args.pod_path)? {
        return if question.to.is_ipv4() {
            scene.by_packet::<V4>(&question, args.no_run)
        } else {
            scene.by_packet::<V6>(&question, args.no_run)
        };
    }
    scene.by_socket(&question)
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => ip::TCP,
        Protocol::Udp => ip::UDP,
        Protocol::Sctp => ip::SCTP,
    }
}

/// A port that no flow is likely to have.
fn any_port() -> u16 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanoseconds = now.map_or(0, |now| now.subsec_nanos());
    32_768 + (nanoseconds / 1_000 % 28_000) as u16
}

impl Scene {
    fn question(&self, args: &TraceArgs) -> Result<Question, TraceError> {
        let (from, port) = match question::from(&args.from)? {
            From::Node => (None, None),
            From::Address(address, port) => (Some(address), port),
        };
        let (origin, namespace, input) = match from {
            None => (Origin::Node, self.config.host_netns_cookie, 0),
            Some(address) => self.whose(address)?,
        };
        let protocol = args.protocol.into();
        let to = match question::to(&args.to)? {
            To::Address(address) => address,
            To::Service(namespace, name, port) => {
                let rows = Reader::open(&args.pins.bpffs)?.services()?;
                question::address_of(
                    &rows,
                    (&namespace, &name, port.as_deref()),
                    protocol,
                    from.map(IpFamily::of),
                    origin == Origin::Outside,
                    &|family| self.own(family == IpFamily::V4),
                )?
            }
        };
        if from.is_some_and(|from| from.is_ipv4() != to.is_ipv4()) {
            return Err(TraceError::Families);
        }
        let from = from.or_else(|| self.own(to.is_ipv4()));
        // What no socket hook sees is looked at where it leaves.
        let input = match self.routes.to(to.ip())? {
            Way::Device { index, .. }
                if is_seen_leaving(origin, protocol) && self.devices.contains_key(&index) =>
            {
                index
            }
            Way::Here if is_seen_leaving(origin, protocol) => LOOPBACK,
            Way::Device { .. } | Way::Here | Way::Nowhere | Way::Forbidden => input,
        };
        let port = port.unwrap_or_else(any_port);
        Ok(Question { origin, from, port, namespace, input, to, protocol })
    }

    /// Where a client with this address is, the cookie of its network namespace and the device that its
    /// packets come in through.
    fn whose(&self, address: IpAddr) -> Result<(Origin, u64, u32), TraceError> {
        let host = self.config.host_netns_cookie;
        let wide = Address::from(address);
        let flags = self.evidence.address_flags(&wide)?;
        if flags & AddressFlags::NODE != 0 || wide.is_loopback() {
            return Ok((Origin::Node, host, 0));
        }
        let device = match self.routes.to(address)? {
            Way::Here => return Ok((Origin::Node, host, 0)),
            Way::Device { index, .. } => index,
            Way::Nowhere | Way::Forbidden => 0,
        };
        let is_its = |(cookie, own): &(&u64, &ClientAddresses)| {
            **cookie != host && own.towards(wide) == wide
        };
        let namespace = self.clients.iter().find(is_its).map_or(0, |(cookie, _)| *cookie);
        let is_pod = namespace != 0 || (device != 0 && !self.devices.contains_key(&device));
        if !is_pod {
            return Ok((Origin::Outside, namespace, device));
        }
        // The programs for pods on a bridge are on its ports.
        let port = self.routes.port(device, address)?;
        Ok((Origin::Pod, namespace, port.unwrap_or(device)))
    }

    /// The address that stands for the node.
    fn own(&self, ipv4: bool) -> Option<IpAddr> {
        let own = self.clients.get(&self.config.host_netns_cookie)?;
        let own = if ipv4 { own.address4 } else { own.address6 };
        (!own.is_unspecified()).then(|| own.into())
    }

    /// Whether packets are translated for this client, and not its `connect`.
    fn sees_packets(
        &self,
        question: &Question,
        wanted: Option<TracePath>,
    ) -> Result<bool, TraceError> {
        let is_sctp = question.protocol == Protocol::Sctp;
        if question.origin != Origin::Pod {
            return Ok(question.origin == Origin::Outside || is_sctp);
        }
        let by_socket = !is_sctp && self.config.flags & ConfigFlags::NODE_SOCKETS_ONLY == 0;
        match wanted {
            None => Ok(!by_socket),
            Some(TracePath::Socket) if by_socket => Ok(false),
            Some(TracePath::Packet) if is_sctp || self.serves_pods_packets() => Ok(true),
            Some(TracePath::Socket) => Err(TraceError::PodPath("socket")),
            Some(TracePath::Packet) => Err(TraceError::PodPath("packet")),
        }
    }

    fn serves_pods_packets(&self) -> bool {
        self.config.flags & ConfigFlags::POD_PACKETS != 0
    }

    fn way(&self, address: IpAddr) -> Way {
        self.routes.to(address).unwrap_or_else(|error| {
            tracing::warn!(%error, "counted as no route");
            Way::Nowhere
        })
    }

    fn by_socket(&self, question: &Question) -> Result<Explanation, TraceError> {
        let destination = destination(question);
        let mut tables = self.evidence.around(&destination)?;
        let is_node = question.origin == Origin::Node;
        let mut begin = Vec::new();
        let not_run = |says: &str| ProgramAnswer { agrees: None, says: says.to_owned() };
        let kind =
            if question.protocol == Protocol::Udp { "connect or sendmsg" } else { "connect" };
        let both = if !is_node && self.serves_pods_packets() {
            " (if hooks don't see the pod's sockets, its packets are translated: --pod-path packet)"
        } else {
            ""
        };
        begin.push(Step {
            step: "hook",
            says: format!("the socket's {kind}, before there is a packet{both}"),
        });
        if question.namespace == 0 {
            let says = "no network namespace that the agent has seen has this address; if no process of \
                this node's kernel does, nothing is translated unless the agent runs with --pod-path both";
            begin.push(Step { step: "hook", says: says.to_owned() });
        }
        let own = is_node
            && (destination.address.is_loopback()
                || destination.address == destination.address.wildcard());
        let known =
            self.clients.get(&question.namespace).map(|own| own.towards(destination.address));
        let source = known.filter(|address| !address.is_unspecified());
        let name = |service| self.evidence.name(service).unwrap_or_else(|| "(no name)".to_owned());
        let client = Client::OnNode;
        let choice = "random, anew for each connection";
        let ask = Ask { destination, own, client, source, choice, name: &name };
        // Without an address the namespace stands for the client, as the hook has it.
        let affinity = source.unwrap_or_else(|| Address::of_namespace(question.namespace));
        let mut steps = explain::steps(&mut tables, &ask, affinity);
        steps.steps.splice(0..0, begin);
        let route = |address| self.way(address);
        let node = self.node(true, &route);
        let decision =
            model::connect::<V4, _>(&mut tables, &node, question.namespace, &destination);
        if let Some(error) = tables.failure() {
            return Err(error.into());
        }
        let program = not_run("socket hooks can't be run on trial: the tables' answer alone");
        let only = steps.endpoints.first().filter(|_| steps.endpoints.len() == 1);
        let chosen = steps.remembered.or(only.map(|endpoint| endpoint.address));
        let (verdict, meets) = match decision.verdict {
            SocketVerdict::Pass => return Ok(self.leave(&tables, question, steps, program)),
            SocketVerdict::Translate(..) => {
                let says = match chosen {
                    Some(endpoint) => format!(
                        "the socket connects to {endpoint} itself, with its own \
                        address; the application sees {}",
                        question.to
                    ),
                    None => format!(
                        "the socket connects to the endpoint itself, with its own address; \
                        the application sees {}",
                        question.to
                    ),
                };
                steps.steps.push(Step { step: "path", says });
                (Verdict::Translated, "a connection, if the endpoint answers")
            }
            SocketVerdict::Refuse => (Verdict::Refused, "ECONNREFUSED, from the call itself"),
            SocketVerdict::Discard => (Verdict::Dropped, "silence: it times out"),
            SocketVerdict::Unreachable => (Verdict::Dropped, "EHOSTUNREACH, from the call itself"),
        };
        let chosen = chosen.filter(|_| verdict == Verdict::Translated);
        let device = chosen.filter(|_| is_node).and_then(|to| self.device_to(to.ip()));
        let mut answer = explanation(question, steps, verdict, decision.drop, meets, program);
        (answer.chosen, answer.device) = (chosen, device);
        Ok(answer)
    }

    fn device_to(&self, address: IpAddr) -> Option<String> {
        match self.way(address) {
            Way::Device { index, .. } => Some(device_name(index)),
            Way::Here | Way::Nowhere | Way::Forbidden => None,
        }
    }

    fn node<'a>(&'a self, forwards: bool, route: &'a dyn Fn(IpAddr) -> Way) -> Node<'a> {
        Node {
            config: self.config,
            devices: &self.devices,
            clients: &self.clients,
            route,
            forwards,
        }
    }

    /// What isn't translated goes its way, unless that would lead an address of a Service range out of
    /// the node ([`lb_common::lb`], `range`).
    fn leave(
        &self,
        tables: &impl Tables,
        question: &Question,
        mut steps: Steps,
        program: ProgramAnswer,
    ) -> Explanation {
        let to = Address::from(question.to.ip());
        let way = self.way(question.to.ip());
        let says = match way {
            Way::Here => "to this node itself, untranslated".to_owned(),
            Way::Device { index, .. } => format!("untranslated, through {}", device_name(index)),
            Way::Nowhere => "no route leads there".to_owned(),
            Way::Forbidden => "a route forbids it".to_owned(),
        };
        steps.steps.push(Step { step: "path", says });
        let is_external =
            matches!(way, Way::Device { index, .. } if self.devices.contains_key(&index));
        let is_unowned =
            is_external && tables.service_ranges(to).is_some_and(|ranges| ranges.hold(to));
        let mut answer = if is_unowned {
            let says = "the address is of a Service range: not let out of the node".to_owned();
            steps.steps.push(Step { step: "ranges", says });
            let reason = Some(DropReason::UnownedAddress);
            explanation(question, steps, Verdict::Dropped, reason, "silence", program)
        } else {
            let meets = "whatever is at that address";
            explanation(question, steps, Verdict::Untranslated, None, meets, program)
        };
        if let Way::Device { index, .. } = way {
            answer.device = Some(device_name(index));
        }
        answer
    }

    fn by_packet<F: ReadHeader>(
        &self,
        question: &Question,
        no_run: bool,
    ) -> Result<Explanation, TraceError> {
        let destination = destination(question);
        let mut tables = self.evidence.around(&destination)?;
        let Question { from, port, to, input, origin, .. } = *question;
        let from = SocketAddr::new(from.unwrap_or(to.ip()), port);
        let frame = frame::opening(from, to, destination.protocol);
        let tuple = key::<F>(from, to, destination.protocol);
        let mut begin = Vec::new();
        let leaves = is_seen_leaving(origin, question.protocol);
        if input == 0 && leaves {
            let says = "SCTP of the node's own processes is translated where it leaves the node, and this \
                doesn't";
            begin.push(Step { step: "hook", says: says.to_owned() });
            let steps = Steps { steps: begin, ..Steps::default() };
            let says = "not run: no program sees it".to_owned();
            let program = ProgramAnswer { agrees: None, says };
            return Ok(self.leave(&tables, question, steps, program));
        }
        if input == 0 {
            let says = format!("no route leads back to {}", from.ip());
            begin.push(Step { step: "hook", says });
        } else {
            let passes = if leaves { "leave" } else { "come in" };
            let says = format!("packets of {} {passes} through {}", from.ip(), device_name(input));
            begin.push(Step { step: "hook", says });
            if !self.evidence.watches(input, direction(question))? {
                let says = "no program is attached there: its packets are not translated";
                begin.push(Step { step: "hook", says: says.to_owned() });
                let steps = Steps { steps: begin, ..Steps::default() };
                let says = "not run: nothing is attached".to_owned();
                let program = ProgramAnswer { agrees: None, says };
                return Ok(self.leave(&tables, question, steps, program));
            }
        }
        let known = self.evidence.flow::<F>(&tuple)?;
        let in_use = known.is_some() || self.evidence.flow::<F>(&tuple.inverse())?.is_some();
        if known.is_some() {
            let says = "this client and port have a flow: its endpoint is kept".to_owned();
            begin.push(Step { step: "flow", says });
        }
        let name = |service| self.evidence.name(service).unwrap_or_else(|| "(no name)".to_owned());
        let client = if origin == Origin::Outside { Client::Outside } else { Client::OnNode };
        let source = Address::from(from.ip());
        let ask = Ask {
            destination,
            own: false,
            client,
            source: Some(source),
            choice: "by hash of the client's address and port: the same on every node",
            name: &name,
        };
        let mut steps = explain::steps(&mut tables, &ask, source);
        steps.steps.splice(0..0, begin);
        let flow = |key: &FlowKey<F>| self.evidence.flow::<F>(key).ok().flatten();
        let route = |address| self.way(address);
        let node = self.node(forwards(&device_name(input), to.is_ipv4()), &route);
        let decision = match origin {
            Origin::Pod => model::packet::<F, _, true>(&mut tables, &node, &flow, &frame),
            Origin::Node => model::leaving::<F, _>(&mut tables, &node, &flow, &frame),
            Origin::Outside => model::packet::<F, _, false>(&mut tables, &node, &flow, &frame),
        };
        if let Some(error) = tables.failure() {
            return Err(error.into());
        }
        let verdict = match decision.verdict {
            PacketVerdict::Deliver | PacketVerdict::Forward | PacketVerdict::Raise => {
                Verdict::Translated
            }
            PacketVerdict::Pass | PacketVerdict::HandOver => Verdict::Untranslated,
            PacketVerdict::Answer | PacketVerdict::Reset => Verdict::Refused,
            PacketVerdict::Parked | PacketVerdict::Drop => Verdict::Dropped,
        };
        let expected = Expected { verdict, reason: decision.drop, ends: decision.translated };
        let program = if no_run {
            ProgramAnswer { agrees: None, says: "not run, as asked".to_owned() }
        } else {
            self.run::<F>(question, &tuple, &frame, (from, to), &expected, in_use, &steps)?
        };
        let Some((seen_as, chosen)) = decision.translated else {
            if verdict == Verdict::Untranslated {
                return Ok(self.leave(&tables, question, steps, program));
            }
            let meets = match verdict {
                // The kernel's SCTP tries again until its patience ends, whatever ICMP says.
                Verdict::Refused if leaves => "an ICMP error (port unreachable)",
                Verdict::Refused => "ECONNREFUSED, by a reset or ICMP",
                Verdict::Dropped | Verdict::Translated | Verdict::Untranslated => {
                    "silence: it times out"
                }
            };
            return Ok(explanation(question, steps, verdict, decision.drop, meets, program));
        };
        let is_forwarded = decision.verdict == PacketVerdict::Forward;
        let leaves = if is_forwarded {
            Some(device_name(decision.device))
        } else {
            self.device_to(chosen.ip())
        };
        let through = leaves.clone().unwrap_or_else(|| "this node's own stack".to_owned());
        let says = if is_forwarded && seen_as == from {
            format!("sent to {chosen} through {through}; the client's address is kept")
        } else if is_forwarded {
            format!(
                "forwarded to {chosen} through {through}, with {seen_as} as its source (the port may \
                be another, of {}-{})",
                self.config.snat_port_min, self.config.snat_port_max
            )
        } else if seen_as == from {
            format!(
                "up this node's stack to {chosen} through {through}; the client's address is kept"
            )
        } else {
            format!("up this node's stack to {chosen} through {through}, as {seen_as}")
        };
        steps.steps.push(Step { step: "path", says });
        let meets = "a connection, if the endpoint answers";
        let mut answer = explanation(question, steps, verdict, None, meets, program);
        (answer.chosen, answer.seen_as, answer.device) = (Some(chosen), Some(seen_as), leaves);
        Ok(answer)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the question, what is expected, and what forbids it"
    )]
    fn run<F: ReadHeader>(
        &self,
        question: &Question,
        tuple: &FlowKey<F>,
        frame: &[u8],
        ends: (SocketAddr, SocketAddr),
        expected: &Expected,
        in_use: bool,
        steps: &Steps,
    ) -> Result<ProgramAnswer, TraceError> {
        let not_run = |says: &str| Ok(ProgramAnswer { agrees: None, says: says.to_owned() });
        let device = self.devices.get(&question.input);
        if question.input == 0 {
            return not_run("not run: nothing says through which device such packets come in");
        }
        if in_use {
            return not_run("not run: a flow of this client and port is in use");
        }
        if device.is_some_and(|device| device.flags & DeviceFlags::ETHERNET == 0) {
            return not_run("not run: the kernel can't on devices without Ethernet header");
        }
        let name = device_name(question.input);
        let affinity = steps.affinity.as_ref();
        let place = (question.input, direction(question));
        let Some(run) = self.evidence.run::<F>(place, tuple, affinity, frame)? else {
            return not_run("not run: nothing is attached any more");
        };
        let found = judge(&run, ends);
        let agrees = found.agrees_with(expected, &run.reasons);
        let text = match (found.verdict, found.ends) {
            (Verdict::Translated, Some((source, to))) => format!("to {to} as {source}"),
            (Verdict::Translated, None) => "translated".to_owned(),
            (Verdict::Untranslated, _) => "untranslated".to_owned(),
            (Verdict::Refused, _) => "refused".to_owned(),
            (Verdict::Dropped, _) => "dropped".to_owned(),
        };
        let says = if agrees {
            format!("run on this packet, the program of {name} says the same ({text})")
        } else {
            let reasons: Vec<_> = run.reasons.iter().map(|reason| reason.label()).collect();
            format!(
                "run on this packet, the program of {name} says otherwise: {text} {}",
                reasons.join(", ")
            )
        };
        Ok(ProgramAnswer { agrees: Some(agrees), says: says.trim_end().to_owned() })
    }
}

/// Whether packets of a client are translated where they leave: no socket hook sees SCTP, and the node's
/// own comes in nowhere.
fn is_seen_leaving(origin: Origin, protocol: Protocol) -> bool {
    origin == Origin::Node && protocol == Protocol::Sctp
}

fn direction(question: &Question) -> Direction {
    if is_seen_leaving(question.origin, question.protocol) { Direction::Out } else { Direction::In }
}

/// What a witness says.
struct Expected {
    verdict: Verdict,
    reason: Option<DropReason>,
    ends: Option<(SocketAddr, SocketAddr)>,
}

impl Expected {
    /// Whether a program's answer is the tables'. A source port of the node's may be another: one was in
    /// use.
    fn agrees_with(&self, other: &Self, reasons: &[DropReason]) -> bool {
        let ips = |ends: Option<(SocketAddr, SocketAddr)>| ends.map(|(from, to)| (from.ip(), to));
        self.verdict == other.verdict
            && other.reason.is_none_or(|reason| reasons.contains(&reason))
            && (self.verdict != Verdict::Translated || ips(self.ends) == ips(other.ends))
    }
}

/// `TC_ACT_*` (include/uapi/linux/pkt_cls.h).
const UNSPEC: i32 = -1;
const REDIRECT: i32 = 7;

/// What a program made of the packet between these ends.
fn judge(run: &Run, (from, to): (SocketAddr, SocketAddr)) -> Expected {
    let ends = frame::ends(&run.frame);
    let verdict = match run.action {
        // An answer, back to the client.
        UNSPEC | REDIRECT if frame::is_icmp(&run.frame) => Verdict::Refused,
        REDIRECT if ends == Some((to, from)) => Verdict::Refused,
        UNSPEC if ends == Some((from, to)) => Verdict::Untranslated,
        UNSPEC => Verdict::Translated,
        REDIRECT => Verdict::Translated,
        _ => Verdict::Dropped,
    };
    Expected { verdict, reason: None, ends }
}

fn key<F: ReadHeader>(from: SocketAddr, to: SocketAddr, protocol: u8) -> FlowKey<F> {
    FlowKey {
        source: F::narrow(from.ip().into()),
        destination: F::narrow(to.ip().into()),
        source_port: Be16::new(from.port()),
        destination_port: Be16::new(to.port()),
        protocol: protocol.into(),
    }
}

fn destination(question: &Question) -> Destination {
    Destination {
        address: question.to.ip().into(),
        port: Be16::new(question.to.port()),
        protocol: number(question.protocol),
    }
}

fn explanation(
    question: &Question,
    steps: Steps,
    verdict: Verdict,
    reason: Option<DropReason>,
    client_meets: &'static str,
    program: ProgramAnswer,
) -> Explanation {
    let port =
        if question.origin == Origin::Outside || question.input != 0 { question.port } else { 0 };
    Explanation {
        origin: question.origin,
        from: question.from.map(|address| SocketAddr::new(address, port)),
        to: question.to,
        protocol: protocol_name(question.protocol),
        service: steps.service,
        steps: steps.steps,
        endpoints: steps.endpoints,
        verdict,
        chosen: None,
        seen_as: None,
        device: None,
        reason: reason.map(|reason| Reason {
            label: reason.label(),
            cause: reasons::cause(reason),
            cure: reasons::cure(reason),
        }),
        client_meets,
        program,
    }
}
