//! What a printed line says. The fields' names are those of the JSON output: they are an interface.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_common::abi::Traffic;
use serde::{Serialize, Serializer};

use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::plan::desired::FrontendKind;

/// One Service port in one family, as the tables hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceRow {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port, may be empty.
    pub port_name: String,
    /// Transport protocol.
    #[serde(serialize_with = "serialize_protocol")]
    pub protocol: Protocol,
    /// IP family.
    #[serde(serialize_with = "serialize_family")]
    pub family: IpFamily,
    /// Where it answers.
    pub frontends: Vec<FrontendRow>,
    /// Where it leads.
    pub backends: Vec<BackendRow>,
    /// What went to all of its endpoints, those that have left included.
    pub traffic: TrafficRow,
    /// Packets and connections that were not served, by the reasons' labels.
    pub drops: BTreeMap<&'static str, u64>,
    /// How it chooses.
    pub policy: PolicyRow,
}

/// One frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrontendRow {
    /// Address; the family's wildcard for a NodePort.
    pub address: IpAddr,
    /// Port, host byte order.
    pub port: u16,
    /// Which kind of address.
    #[serde(serialize_with = "serialize_kind")]
    pub kind: FrontendKind,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendRow {
    /// Address.
    pub address: IpAddr,
    /// Port, host byte order.
    pub port: u16,
    /// Runs on this node.
    pub local: bool,
    /// It is in a list that new connections are sent to; false for one that only serves those it has.
    /// A terminating endpoint is in a list when the Service has no other.
    pub active: bool,
    /// What went there.
    pub traffic: TrafficRow,
}

/// One backend, with the Service port that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendOfService {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port, may be empty.
    pub port_name: String,
    /// Transport protocol.
    #[serde(serialize_with = "serialize_protocol")]
    pub protocol: Protocol,
    /// IP family.
    #[serde(serialize_with = "serialize_family")]
    pub family: IpFamily,
    /// The backend itself.
    #[serde(flatten)]
    pub backend: BackendRow,
}

/// Counters of a Service port or of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TrafficRow {
    /// Times that an endpoint was chosen, at sockets and by packet.
    pub connections: u64,
    /// Those of them that were translated at their socket: their packets pass no program.
    pub socket_connections: u64,
    /// Packets to the endpoint; `None` when there was never one to count.
    pub packets_to: Option<u64>,
    /// Packets from the endpoint, likewise.
    pub packets_from: Option<u64>,
    /// Bytes to the endpoint, IP headers included, likewise.
    pub bytes_to: Option<u64>,
    /// Bytes from the endpoint, likewise.
    pub bytes_from: Option<u64>,
}

impl From<Traffic> for TrafficRow {
    fn from(traffic: Traffic) -> Self {
        let Traffic { sockets, flows, packets_to, packets_from, bytes_to, bytes_from } = traffic;
        let by_packet = flows != 0 || packets_to != 0 || packets_from != 0;
        let counted = |count| by_packet.then_some(count);
        Self {
            connections: sockets.wrapping_add(flows),
            socket_connections: sockets,
            packets_to: counted(packets_to),
            packets_from: counted(packets_from),
            bytes_to: counted(bytes_to),
            bytes_from: counted(bytes_from),
        }
    }
}

/// How a Service chooses among its backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyRow {
    /// Internal traffic stays on the node.
    pub internal_local: bool,
    /// External traffic stays on the node.
    pub external_local: bool,
    /// ClientIP affinity, in seconds.
    pub affinity_timeout: Option<u32>,
    /// Sources that load balancer addresses admit; none in the list: nobody, for want of room in the
    /// table; no list: everybody.
    pub source_ranges: Option<Vec<IpNet>>,
}

/// One translated flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowRow {
    /// Transport protocol.
    #[serde(serialize_with = "serialize_protocol")]
    pub protocol: Protocol,
    /// The client.
    pub source: SocketAddr,
    /// What the client sends to.
    pub frontend: SocketAddr,
    /// Where it is delivered.
    pub backend: SocketAddr,
    /// Source that the backend sees, if another than the client's.
    pub translated_source: Option<SocketAddr>,
    /// The way it takes.
    pub path: FlowPath,
    /// State of the connection as the datapath tracks it, in lower case.
    pub state: String,
    /// Seconds since its last packet.
    pub idle_seconds: u64,
    /// `namespace/name` of the Service, if it still exists.
    pub service: Option<String>,
}

/// The way of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowPath {
    /// Up the node's own stack.
    Local,
    /// Forwarded to another node.
    Remote,
}

/// As in a Service's manifest.
pub fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// As in a Service's `ipFamilies`.
pub fn family_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "IPv4",
        IpFamily::V6 => "IPv6",
    }
}

/// As the field or type of a Service that asks for it.
pub fn kind_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::ExternalIp => "ExternalIP",
        FrontendKind::LoadBalancer => "LoadBalancer",
        FrontendKind::NodePort => "NodePort",
    }
}

fn serialize_protocol<S: Serializer>(value: &Protocol, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(protocol_name(*value))
}

fn serialize_family<S: Serializer>(value: &IpFamily, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(family_name(*value))
}

fn serialize_kind<S: Serializer>(value: &FrontendKind, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(kind_name(*value))
}
