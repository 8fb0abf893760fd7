//! Everything of the cluster that is built from Go modules.

use crate::go::{ETCD, Family, HELM, KUBERNETES, Kind};
use crate::process;
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// Kubernetes' own end-to-end tests and the program that runs them side by side.
const E2E: Family = Family {
    name: "e2e",
    module: "k8s.io/kubernetes",
    linker_flags: KUBERNETES.linker_flags,
    programs: &[
        ("e2e.test", "k8s.io/kubernetes/test/e2e", Kind::Tests),
        ("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo", Kind::Program),
    ],
};

const KIND: Family = Family {
    name: "kind",
    module: "sigs.k8s.io/kind",
    linker_flags: "-s -w",
    programs: &[("kind", "sigs.k8s.io/kind", Kind::Program)],
};

const CONTAINERD: Family = Family {
    name: "containerd",
    module: "github.com/containerd/containerd/v2",
    linker_flags: "-s -w",
    programs: &[
        ("containerd", "github.com/containerd/containerd/v2/cmd/containerd", Kind::Program),
        (
            "containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            Kind::Program,
        ),
        ("ctr", "github.com/containerd/containerd/v2/cmd/ctr", Kind::Program),
    ],
};

const CNI: Family = Family {
    name: "cni",
    module: "github.com/containernetworking/plugins",
    linker_flags: "-s -w",
    programs: &[
        (
            "host-local",
            "github.com/containernetworking/plugins/plugins/ipam/host-local",
            Kind::Program,
        ),
        ("loopback", "github.com/containernetworking/plugins/plugins/main/loopback", Kind::Program),
        ("ptp", "github.com/containernetworking/plugins/plugins/main/ptp", Kind::Program),
        ("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap", Kind::Program),
    ],
};

const COREDNS: Family = Family {
    name: "coredns",
    module: "github.com/coredns/coredns",
    linker_flags: "-s -w",
    programs: &[("coredns", "github.com/coredns/coredns", Kind::Program)],
};

/// Shortest builds first, so that what is missing on a machine shows soon.
const FAMILIES: [&Family; 8] =
    [&KIND, &CNI, &HELM, &ETCD, &CONTAINERD, &COREDNS, &KUBERNETES, &E2E];

/// The names of those that the cache does not hold as they would be built now.
///
/// # Errors
/// When there is no cache directory, or a go.mod can't be read.
pub fn missing() -> Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for family in FAMILIES {
        for (program, _, _) in family.programs {
            if !family.is_built(program)? {
                missing.push(*program);
            }
        }
    }
    Ok(missing)
}

/// The built programs.
pub struct Programs {
    folders: Vec<(&'static Family, PathBuf)>,
    /// Kubernetes' release, such as `v1.36.3`.
    pub kubernetes: String,
}

impl Programs {
    /// Builds what the cache doesn't hold.
    ///
    /// # Errors
    /// No cache directory, no Go command, or a failed build; the error carries the compiler's words.
    pub fn ensure() -> Result<Self> {
        let mut folders = Vec::new();
        for family in FAMILIES {
            let names: Vec<_> = family.programs.iter().map(|(name, _, _)| *name).collect();
            folders.push((family, family.ensure(&names)?));
        }
        Ok(Self { folders, kubernetes: KUBERNETES.version()? })
    }

    /// Where the program `name` is.
    ///
    /// # Errors
    /// When no family has such a program.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let found = self
            .folders
            .iter()
            .find(|(family, _)| family.programs.iter().any(|(program, _, _)| *program == name));
        match found {
            Some((_, folder)) => Ok(folder.join(name)),
            None => anyhow::bail!("no family of tests/cluster/go builds {name}"),
        }
    }

    /// The files that decide what the programs are.
    pub fn pins(&self) -> Vec<PathBuf> {
        let pins = |(family, _): &(&Family, PathBuf)| {
            ["go.mod", "go.sum"].map(|file| family.source().join(file))
        };
        self.folders.iter().flat_map(pins).collect()
    }

    /// The sources of kind in the module cache: its node image is made of files in it.
    ///
    /// # Errors
    /// When go doesn't find them.
    pub fn kind_sources(&self) -> Result<PathBuf> {
        sources(&KIND)
    }

    /// The sources of Kubernetes in the module cache.
    ///
    /// # Errors
    /// When go doesn't find them.
    pub fn kubernetes_sources(&self) -> Result<PathBuf> {
        sources(&KUBERNETES)
    }
}

fn sources(family: &Family) -> Result<PathBuf> {
    let mut go = Command::new("go");
    go.args(["list", "-m", "-f", "{{.Dir}}", family.module]).current_dir(family.source());
    Ok(PathBuf::from(process::output(&mut go)?.trim()))
}
