//! Debian's cloud kernels: downloaded once per version, with the modules that the tests need.

use crate::apt::Suite;
use crate::{process, workspace};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Depends on the newest kernel of a suite.
const META: &str = "linux-image-cloud-amd64";
/// What the datapath and its tests use and a kernel may have as a module.
const WANTED: [&str; 40] = [
    "veth",
    "bridge",
    "vxlan",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "sctp",
    "nf_conntrack",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    // What nodes are joined by.
    "ipip",
    "ip_gre",
    "sit",
    "ip6_tunnel",
    "wireguard",
    "8021q",
    // What kube-proxy's mode ipvs uses.
    "dummy",
    "nf_conntrack_netlink",
    "ip_vs",
    "ip_vs_rr",
    "ip_set_bitmap_port",
    "ip_set_hash_ip",
    "ip_set_hash_ipport",
    "ip_set_hash_ipportip",
    "xt_set",
    "xt_tcpudp",
    "xt_comment",
    "xt_mark",
    "xt_conntrack",
    "xt_MASQUERADE",
    "xt_nat",
    "nft_compat",
    "nft_chain_nat",
    "iptable_nat",
    "iptable_filter",
    "iptable_mangle",
    "ip6table_nat",
    "ip6table_filter",
    "ip6table_mangle",
];
/// Names the folder of a suite's newest kernel, for runs without the mirror.
const CURRENT: &str = "current";

/// A kernel on this machine.
pub struct Kernel {
    /// As `uname -r` will print it.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// Uncompressed modules in an order in which each finds those it needs.
    pub modules: Vec<PathBuf>,
}

/// The newest kernel of `suite`, from the cache or downloaded.
///
/// # Errors
/// When the mirror can't be reached and the cache has none, or the packages don't hold what they did.
pub fn get(suite: &str) -> Result<Kernel> {
    let cache = workspace::cache_dir("kernels")?;
    let _lock = workspace::lock(&cache.join("in-use"))?;
    let current = cache.join(format!("{suite}.{CURRENT}"));
    let folder = match download(suite, &cache) {
        Ok(folder) => {
            fs::write(&current, folder.display().to_string())?;
            folder
        }
        Err(error) => {
            let folder = fs::read_to_string(&current).map(PathBuf::from);
            let Some(folder) = folder.ok().filter(|folder| folder.is_dir()) else {
                return Err(error);
            };
            eprintln!("{suite}: using {} of an earlier run: {error:#}", folder.display());
            folder
        }
    };
    open(&folder)
}

/// Brings the newest kernel of `suite` into the cache, unless it is there.
fn download(suite: &str, cache: &Path) -> Result<PathBuf> {
    let apt = Suite::open(suite)?;
    // Newer kernels come in several packages (image, modules, base); all of them name the release.
    let mut packages = vec![META.to_owned()];
    let mut next = 0;
    while let Some(package) = packages.get(next).cloned() {
        for depend in apt.depends(&package)? {
            if depend.starts_with("linux-")
                && depend.contains("cloud")
                && !packages.contains(&depend)
            {
                packages.push(depend);
            }
        }
        next += 1;
    }
    let is_versioned = |package: &&String| {
        package.split('-').any(|part| part.starts_with(|c: char| c.is_ascii_digit()))
    };
    let real: Vec<_> = packages.iter().filter(is_versioned).collect();
    let name = real.iter().find(|package| package.starts_with("linux-image-"));
    let name = name.with_context(|| format!("{META} of {suite} depends on no kernel"))?;
    let version = apt.versions(name)?.into_iter().next().context("a package without a version")?;
    let folder = cache.join(format!("{name}_{}", version.replace([':', '~'], "_")));
    if folder.is_dir() {
        return Ok(folder);
    }
    let unpacking = cache.join(format!("{name}.unpacking-{}", std::process::id()));
    let _ = fs::remove_dir_all(&unpacking);
    for package in real {
        apt.unpack(package, &unpacking)?;
    }
    fs::rename(&unpacking, &folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// Finds the image and prepares the modules of an unpacked kernel.
fn open(folder: &Path) -> Result<Kernel> {
    // Since trixie /lib is /usr/lib.
    let base = [folder.to_owned(), folder.join("usr")]
        .into_iter()
        .find(|base| base.join("lib/modules").is_dir())
        .with_context(|| format!("{} holds no modules", folder.display()))?;
    let release = fs::read_dir(base.join("lib/modules"))?
        .flatten()
        .find_map(|entry| entry.file_name().into_string().ok())
        .context("lib/modules is empty")?;
    let tree = base.join("lib/modules").join(&release);
    // Since 6.17 Debian keeps the image beside the modules.
    let image = [folder.join("boot").join(format!("vmlinuz-{release}")), tree.join("vmlinuz")]
        .into_iter()
        .find(|image| image.is_file())
        .with_context(|| format!("{} holds no vmlinuz", folder.display()))?;
    if !tree.join("modules.dep").is_file() {
        let depmod =
            process::find("depmod").context("depmod is missing: run `cargo xtask setup`")?;
        process::output(Command::new(depmod).arg("-b").arg(&base).arg(&release))?;
    }
    let mut modules = Vec::new();
    for relative in load_order(&tree)? {
        let module = uncompressed(&tree.join(&relative))?;
        modules.push(module);
    }
    Ok(Kernel { release, image, modules })
}

/// The wanted modules and what they need, as paths below `tree`, needed ones first.
fn load_order(tree: &Path) -> Result<Vec<String>> {
    let read = |name: &str| {
        let path = tree.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let dependencies = read("modules.dep")?;
    let modules: BTreeMap<&str, (&str, &str)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (module_name(path), (path, needs)))
        .collect();
    let builtin = read("modules.builtin")?;
    let mut order: Vec<String> = Vec::new();
    for wanted in WANTED {
        let Some((path, needs)) = modules.get(wanted) else {
            if !builtin.lines().any(|path| module_name(path) == wanted) {
                eprintln!("{}: this kernel has no {wanted}", tree.display());
            }
            continue;
        };
        // modules.dep names what a module needs in reverse order of loading.
        for path in needs.split_whitespace().rev().chain([*path]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// `kernel/net/sched/cls_bpf.ko.xz` → `cls_bpf`.
fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

/// The module without compression, made beside it once.
fn uncompressed(module: &Path) -> Result<PathBuf> {
    if module.extension().is_some_and(|extension| extension == "ko") {
        return Ok(module.to_owned());
    }
    let plain = module.with_extension("");
    if !plain.is_file() {
        process::output(
            Command::new("xz").args(["--decompress", "--keep", "--force"]).arg(module),
        )?;
    }
    Ok(plain)
}
