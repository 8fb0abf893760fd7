//! Services as the tests think of them, and the manifests that say so. JSON, which is YAML too.

use std::net::{Ipv4Addr, Ipv6Addr};

use lb_lab::topology::Role;
use lb_lab::{Dual, EXTERNAL_IP, LOAD_BALANCER, Topology};
use serde_json::{Value, json};

/// Where pods serve.
pub const POD_PORT: u16 = 8080;
/// Port of every Service on its own addresses.
pub const PORT: u16 = 80;
/// NodePort of Service number 1; number N has this plus N - 1.
pub const NODE_PORT: u16 = 30_080;
/// Likewise, the port on which load balancers ask for the health of a Service with external policy
/// Local.
pub const HEALTH_PORT: u16 = 32_080;

/// A Service with a TCP and a UDP port, dual stack.
#[derive(Clone, Debug)]
pub struct Service {
    /// Last part of its ClusterIP, and of its NodePort.
    pub number: u8,
    /// Hosts that serve it, by name.
    pub backends: Vec<String>,
    /// Those of them that are terminating, and serve on.
    pub terminating: Vec<String>,
    /// Port of its backends.
    pub target_port: u16,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `sessionAffinity: ClientIP` for so many seconds.
    pub affinity: Option<u32>,
    /// `loadBalancerSourceRanges`.
    pub source_ranges: Vec<String>,
    /// Whether it has a NodePort, and the LoadBalancer's and external addresses (one Service can).
    pub kind: Kind,
}

/// Which addresses a Service has beside its ClusterIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None.
    ClusterIp,
    /// A NodePort.
    NodePort,
    /// A NodePort, the lab's LoadBalancer address and its external IP.
    Everything,
}

impl Service {
    /// Service `number` with all kinds of addresses.
    pub fn new(number: u8, backends: &[&str]) -> Self {
        Self {
            number,
            backends: backends.iter().map(|&name| name.to_owned()).collect(),
            terminating: Vec::new(),
            target_port: POD_PORT,
            external_local: false,
            internal_local: false,
            affinity: None,
            source_ranges: Vec::new(),
            kind: Kind::Everything,
        }
    }

    /// Service `number` with a NodePort.
    pub fn node_port(number: u8, backends: &[&str]) -> Self {
        Self { kind: Kind::NodePort, ..Self::new(number, backends) }
    }

    /// Its name.
    pub fn name(&self) -> String {
        format!("s{}", self.number)
    }

    /// Its ClusterIPs.
    pub fn cluster_ip(&self) -> Dual {
        Dual::new(
            Ipv4Addr::new(10, 96, 1, self.number),
            Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x100 + u16::from(self.number)),
        )
    }

    /// Its NodePort.
    pub fn node_port_number(&self) -> u16 {
        NODE_PORT + u16::from(self.number) - 1
    }

    /// Where load balancers ask for its health.
    pub fn health_port_number(&self) -> u16 {
        HEALTH_PORT + u16::from(self.number) - 1
    }

    /// The Service and its EndpointSlices.
    pub fn documents(&self, topology: &Topology) -> Vec<Value> {
        vec![self.service(), self.slice(topology, "IPv4"), self.slice(topology, "IPv6")]
    }

    fn service(&self) -> Value {
        let ports: Vec<_> = [("web", "TCP"), ("echo", "UDP")]
            .into_iter()
            .map(|(name, protocol)| {
                let mut port = json!({ "name": name, "protocol": protocol, "port": PORT,
                    "targetPort": self.target_port });
                if self.kind != Kind::ClusterIp {
                    port["nodePort"] = self.node_port_number().into();
                }
                port
            })
            .collect();
        let cluster_ips = self.cluster_ip().both();
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": self.name() },
            "spec": {
                "type": match self.kind {
                    Kind::ClusterIp => "ClusterIP",
                    Kind::NodePort => "NodePort",
                    Kind::Everything => "LoadBalancer",
                },
                "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips,
                "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
                "internalTrafficPolicy": policy(self.internal_local),
                "ports": ports,
            },
        });
        if self.kind != Kind::ClusterIp {
            service["spec"]["externalTrafficPolicy"] = policy(self.external_local).into();
        }
        if let Some(seconds) = self.affinity {
            service["spec"]["sessionAffinity"] = "ClientIP".into();
            service["spec"]["sessionAffinityConfig"] =
                json!({ "clientIP": { "timeoutSeconds": seconds } });
        }
        if !self.source_ranges.is_empty() {
            service["spec"]["loadBalancerSourceRanges"] = json!(self.source_ranges);
        }
        if self.kind == Kind::Everything {
            service["spec"]["externalIPs"] = json!(EXTERNAL_IP.both());
            if self.external_local {
                service["spec"]["healthCheckNodePort"] = self.health_port_number().into();
            }
            let ingress = LOAD_BALANCER.both().map(|ip| json!({ "ip": ip }));
            service["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
        service
    }

    fn slice(&self, topology: &Topology, address_type: &str) -> Value {
        let endpoints: Vec<_> = self
            .backends
            .iter()
            .map(|name| {
                let host = topology.host(name).unwrap();
                let [v4, v6] = host.address.both();
                let address = if address_type == "IPv4" { v4 } else { v6 };
                let ready = !self.terminating.contains(name);
                let mut endpoint = json!({ "addresses": [address],
                    "conditions": { "ready": ready, "serving": true, "terminating": !ready } });
                match &host.role {
                    Role::Pod { node, .. } => endpoint["nodeName"] = node.clone().into(),
                    Role::Node { .. } => endpoint["nodeName"] = name.clone().into(),
                    // Outside the cluster.
                    Role::Fabric | Role::Client | Role::Site | Role::Edge => {}
                }
                endpoint
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", self.name(), address_type.to_lowercase()),
                "labels": { "kubernetes.io/service-name": self.name() },
            },
            "addressType": address_type,
            "ports": [
                { "name": "web", "protocol": "TCP", "port": self.target_port },
                { "name": "echo", "protocol": "UDP", "port": self.target_port },
            ],
            "endpoints": endpoints,
        })
    }
}

fn policy(local: bool) -> &'static str {
    if local { "Local" } else { "Cluster" }
}
