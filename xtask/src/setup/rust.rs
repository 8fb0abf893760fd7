//! The Rust side: rustfmt and clippy, the sources of `core`, and bpf-linker.

use super::Purpose;
use crate::{apt, ebpf, process};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// rustup's server answers in seconds or not at all.
const RUSTUP_LIMIT: Duration = Duration::from_secs(90);
const LINKER_LIMIT: Duration = Duration::from_secs(1800);
/// Debian's suites that carry recent compilers, likeliest first.
const SUITES: [&str; 3] = ["trixie-backports", "trixie", "sid"];

/// Gets what is missing and returns how much that was.
pub fn ensure(purpose: Purpose) -> Result<usize> {
    let mut installed = 0;
    if purpose >= Purpose::Test {
        for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
            installed += usize::from(ensure_component(program, component)?);
        }
    }
    installed += usize::from(ensure_rust_src()?);
    installed += usize::from(ensure_linker()?);
    Ok(installed)
}

fn ensure_component(program: &str, component: &str) -> Result<bool> {
    // rustup leaves a proxy of this name on PATH, whether the component is there or not.
    if process::output(Command::new(program).arg("--version")).is_ok() {
        return Ok(false);
    }
    eprintln!("setup: installing {component}: CI checks with it");
    add_component(component)
        .with_context(|| format!("{component} is missing: install it beside this rustc"))?;
    Ok(true)
}

fn add_component(component: &str) -> Result<()> {
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", component]);
    process::run_shown(&mut rustup, RUSTUP_LIMIT)
}

/// The sources of `core`, without which nothing compiles for the BPF target.
fn ensure_rust_src() -> Result<bool> {
    if ebpf::has_rust_src().map_err(anyhow::Error::msg)? {
        return Ok(false);
    }
    eprintln!("setup: installing rust-src: `core` has to be compiled for the BPF target");
    let by_rustup = add_component("rust-src");
    if by_rustup.is_ok() && ebpf::has_rust_src().map_err(anyhow::Error::msg)? {
        return Ok(true);
    }
    let reason = by_rustup.err().map_or_else(
        || "it believes that the sources are there".to_owned(),
        |error| format!("{error:#}"),
    );
    eprintln!("setup: rustup could not ({reason}): trying Debian's package of the same release");
    rust_src_from_debian().with_context(|| {
        let release = ebpf::rustc_release().unwrap_or_default();
        format!(
            "rust-src is missing: `rustup component add rust-src`, or put the folder `library` \
             of Rust {release}'s sources where `rustc --print sysroot` says, \
             into lib/rustlib/src/rust"
        )
    })?;
    Ok(true)
}

fn rust_src_from_debian() -> Result<()> {
    let release = ebpf::rustc_release().map_err(anyhow::Error::msg)?;
    let library = ebpf::library_dir().map_err(anyhow::Error::msg)?;
    let parent = library.parent().context("the sources' folder has no parent")?;
    for name in SUITES {
        let suite = apt::Suite::open(name)?;
        let of_release = |version: &String| {
            version.strip_prefix(&release).is_some_and(|rest| rest.starts_with(['+', '-']))
        };
        let Some(version) = suite.versions("rust-src")?.into_iter().find(of_release) else {
            continue;
        };
        eprintln!("setup: unpacking rust-src {version} of {name}");
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        let unpacked = parent.join("lb-unpacking");
        let _ = fs::remove_dir_all(&unpacked);
        suite.unpack(&format!("rust-src={version}"), &unpacked)?;
        let sources = unpacked.join(format!("usr/src/rustc-{release}/library"));
        // One rename: who builds meanwhile sees all of it or nothing.
        let moved = fs::rename(&sources, &library);
        moved.with_context(|| format!("move {} to {}", sources.display(), library.display()))?;
        fs::remove_dir_all(&unpacked).with_context(|| unpacked.display().to_string())?;
        return Ok(());
    }
    bail!("no rust-src {release} in Debian's {}", SUITES.join(", "))
}

/// bpf-linker, built against the LLVM of this very compiler: it must read the compiler's bitcode.
fn ensure_linker() -> Result<bool> {
    if ebpf::find_linker().is_ok() {
        return Ok(false);
    }
    let home = ebpf::linker_home().map_err(anyhow::Error::msg)?;
    eprintln!(
        "setup: installing bpf-linker {} into {}: it links the kernel programs and writes their \
         types (two minutes)",
        ebpf::LINKER_VERSION,
        home.display()
    );
    let prefix = home.join("llvm");
    link_llvm(&prefix.join("lib"))?;
    let build = home.join("build");
    let mut install = Command::new("cargo");
    install.args([
        "install",
        "bpf-linker",
        "--version",
        ebpf::LINKER_VERSION,
        "--locked",
        "--quiet",
    ]);
    install.args(["--no-default-features", "--features", &llvm_feature()?]).arg("--force");
    install.arg("--root").arg(&home).arg("--target-dir").arg(&build);
    install.env("LLVM_PREFIX", &prefix);
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        install.env_remove(name);
    }
    process::run_shown(&mut install, LINKER_LIMIT)
        .context("build bpf-linker: is the crate registry reachable, and is a C linker there?")?;
    let _ = fs::remove_dir_all(&build);
    ebpf::find_linker()
        .map_err(anyhow::Error::msg)
        .context("bpf-linker was built but won't run")?;
    Ok(true)
}

/// The feature of bpf-linker that matches the compiler's LLVM, such as `llvm-22`.
fn llvm_feature() -> Result<String> {
    let version = process::output(Command::new(ebpf::rustc()).arg("-vV"))?;
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major = llvm.and_then(|llvm| llvm.split('.').next());
    major.map(|major| format!("llvm-{major}")).context("`rustc -vV` names no LLVM version")
}

/// Makes `lib` look like an LLVM installation whose library is the compiler's own.
fn link_llvm(lib: &Path) -> Result<()> {
    let theirs = ebpf::sysroot().map_err(anyhow::Error::msg)?.join("lib");
    let library: PathBuf = fs::read_dir(&theirs)
        .with_context(|| format!("list {}", theirs.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| name_of(path).starts_with("libLLVM.so."))
        .with_context(|| {
            format!(
                "{} holds no libLLVM.so.*: use a toolchain that rustup installed, or put \
                 bpf-linker {} on PATH",
                theirs.display(),
                ebpf::LINKER_VERSION
            )
        })?;
    fs::create_dir_all(lib).with_context(|| format!("create {}", lib.display()))?;
    // The name for the linker, and the SONAME that the loader asks for.
    for name in ["libLLVM.so", name_of(&library)] {
        let link = lib.join(name);
        let _ = fs::remove_file(&link);
        symlink(&library, &link).with_context(|| format!("link {}", link.display()))?;
    }
    Ok(())
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
