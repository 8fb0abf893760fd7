//! The control plane's programs.

use std::path::PathBuf;

use anyhow::Result;

use super::go::{ETCD, KUBERNETES};

/// Where the control plane's programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// etcd.
    pub etcd: PathBuf,
    /// kube-apiserver.
    pub apiserver: PathBuf,
    /// kube-controller-manager.
    pub controller_manager: PathBuf,
}

impl Binaries {
    /// Finds the programs in the cache, building what is missing or was built from other pins.
    ///
    /// # Errors
    /// No cache directory, no Go command, or a failed build; the error carries the compiler's words.
    pub fn ensure() -> Result<Self> {
        let etcd = ETCD.ensure(&["etcd"])?;
        let kubernetes = KUBERNETES.ensure(&["kube-apiserver", "kube-controller-manager"])?;
        Ok(Self {
            etcd: etcd.join("etcd"),
            apiserver: kubernetes.join("kube-apiserver"),
            controller_manager: kubernetes.join("kube-controller-manager"),
        })
    }
}
