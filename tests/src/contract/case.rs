//! A case: what happens to a cluster, and what is asked on the way. It is written as YAML, which is how a
//! failure is printed and how a regression test is kept.

use anyhow::{Context, Error, Result, bail};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_agent::cluster::snapshot::Protocol;
use lb_agent::contract::{By, Place, Question};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Debug, Display, Formatter};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A node and what happens around it.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Case {
    /// The addresses of the node that serve NodePorts.
    pub node_ports: Vec<IpAddr>,
    /// Whether the node masquerades all.
    pub masquerades_all: bool,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One thing that happens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A Service is there, new or changed.
    Service(Box<Service>),
    /// A Service is deleted, by its name in the namespace `default`.
    NoService(String),
    /// An EndpointSlice is there, new or changed.
    Slice(Box<EndpointSlice>),
    /// An EndpointSlice is deleted.
    NoSlice(String),
    /// The Node object is there, new or changed.
    Node(Box<Node>),
    /// The agent tidies up.
    Tidy,
    /// The agent is replaced.
    Restart,
    /// Seconds pass.
    Wait(u64),
    /// Somebody asks.
    Ask(Ask),
}

/// Somebody asks: `packet tcp from outside 192.0.2.10 to 10.96.0.11:80`, `packet sctp from pod 10.244.1.5
/// to …`, `connect udp from pod 10.244.1.5 to …`, `send udp from node unknown to …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// How.
    pub how: How,
    /// Where they are.
    pub place: Place,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Their address, if anybody knows it.
    pub source: Option<IpAddr>,
    /// What they ask for.
    pub destination: SocketAddr,
}

/// How somebody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// With a flow's first packet, which arrives on an external device, or from a pod on its own.
    Packet,
    /// `connect`.
    Connect,
    /// `sendto` on an unconnected socket.
    Send,
}

impl Ask {
    /// The same for the model.
    pub fn question(&self) -> Question {
        Question {
            from: self.place,
            by: match self.how {
                How::Packet => By::Packet,
                How::Connect | How::Send => By::Call,
            },
            source: self.source,
            protocol: self.protocol,
            destination: self.destination,
        }
    }
}

/// What may be asked with; SCTP by packets alone, as its sockets have no hook.
pub const PROTOCOLS: [(Protocol, &str); 3] =
    [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp"), (Protocol::Sctp, "sctp")];
const HOWS: [(How, &str); 3] =
    [(How::Packet, "packet"), (How::Connect, "connect"), (How::Send, "send")];
const PLACES: [(Place, &str); 3] =
    [(Place::Outside, "outside"), (Place::Pod, "pod"), (Place::Node, "node")];

fn name<T: PartialEq>(of: &T, among: &[(T, &'static str)]) -> &'static str {
    among.iter().find(|(value, _)| value == of).map_or("?", |(_, name)| name)
}

fn named<T: Copy>(word: &str, among: &[(T, &str)]) -> Result<T> {
    let found = among.iter().find(|(_, name)| *name == word);
    found.map(|(value, _)| *value).with_context(|| format!("{word:?} is not known here"))
}

impl Display for Ask {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { how, place, protocol, source, destination } = self;
        let (how, protocol) = (name(how, &HOWS), name(protocol, &PROTOCOLS));
        let source = source.map_or("unknown".to_owned(), |source| source.to_string());
        write!(f, "{how} {protocol} from {} {source} to {destination}", name(place, &PLACES))
    }
}

impl FromStr for Ask {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [how, protocol, "from", place, source, "to", destination] = *words else {
            bail!("{text:?} is no question");
        };
        Ok(Self {
            how: named(how, &HOWS)?,
            place: named(place, &PLACES)?,
            protocol: named(protocol, &PROTOCOLS)?,
            source: if source == "unknown" { None } else { Some(source.parse()?) },
            destination: destination.parse()?,
        })
    }
}

impl Serialize for Ask {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ask {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| serde::de::Error::custom(format!("{error:#}")))
    }
}

impl Case {
    /// Reads a case.
    ///
    /// # Errors
    /// When the text is none.
    pub fn read(text: &str) -> Result<Self> {
        serde_yaml_ng::from_str(text).context("read the case")
    }
}

/// As YAML: proptest prints its smallest failure so.
impl Debug for Case {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let text = serde_yaml_ng::to_string(self).map_err(|_| fmt::Error)?;
        write!(f, "\n{text}")
    }
}
