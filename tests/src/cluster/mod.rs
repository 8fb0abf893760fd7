//! A real Kubernetes control plane for tests: etcd, kube-apiserver and kube-controller-manager,
//! built from their Go modules and run inside a lab of network namespaces.
//!
//! No kubelet and no scheduler exist, so a test plays both: it creates Node objects by hand and
//! Pods that already name their node, and patches the status that a kubelet would report. All
//! else is the real thing: validation, address allocation, RBAC, watches, and the controllers that
//! turn Services and Pods into EndpointSlices and mirror hand-written Endpoints.
//!
//! [`TestCluster`] is the whole: two nodes with an agent each, shared by the tests of one process.

pub mod api;
pub mod at_exit;
pub mod binaries;
pub mod chart;
pub mod confined;
pub mod control_plane;
pub mod credentials;
pub mod etcd;
pub mod go;
pub mod namespace;
pub mod objects;
pub mod operator_kinds;
pub mod process;
pub mod reach;
pub mod requests;
pub mod shared;
pub mod test_cluster;

pub use api::{ApiClient, Persist};
pub use control_plane::ControlPlane;
pub use credentials::Identity;
pub use namespace::TestNamespace;
pub use shared::{alone, alone_without_agents, together, without_agents};
pub use test_cluster::TestCluster;
