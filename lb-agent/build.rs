//! Embeds the kernel object: builds lb-ebpf and leaves it at `$OUT_DIR/lb-ebpf`, aligned inclusion is
//! `aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"))`.
//!
//! `LB_EBPF_OBJECT` names a prebuilt object to embed instead.

#[path = "build/ebpf.rs"]
mod ebpf;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// An object that was built elsewhere, for builds on machines without the BPF toolchain.
const PREBUILT: &str = "LB_EBPF_OBJECT";

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    let variable = |name| std::env::var_os(name).ok_or_else(|| format!("cargo sets no {name}"));
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let agent = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = agent.parent().ok_or("lb-agent lies in no workspace")?;

    println!("cargo::rerun-if-env-changed={PREBUILT}");
    let object = match std::env::var_os(PREBUILT).filter(|path| !path.is_empty()) {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            PathBuf::from(path)
        }
        None => {
            for input in ["lb-ebpf", "lb-common", "Cargo.toml", "Cargo.lock", "lb-agent/build"] {
                println!("cargo::rerun-if-changed={}", workspace.join(input).display());
            }
            let arch = variable("CARGO_CFG_TARGET_ARCH")?;
            let target_dir = target_dir(&out_dir).join("ebpf");
            ebpf::run(ebpf::Action::Build, workspace, &target_dir, &arch.to_string_lossy())?
        }
    };
    let embedded = out_dir.join(ebpf::PACKAGE);
    if let Err(why) = strip(&object, &embedded) {
        println!("cargo::warning=the kernel object keeps its debug information: {why}");
        std::fs::copy(&object, &embedded).map_err(|error| {
            format!("copy {} to {}: {error}", object.display(), embedded.display())
        })?;
    }
    Ok(())
}

/// Writes `object` to `stripped` without DWARF, four fifths of it, which nobody loads: the kernel's types and
/// lines are BTF. By the objcopy that comes with the compiler.
fn strip(object: &Path, stripped: &Path) -> Result<(), String> {
    let sysroot = ebpf::sysroot()?;
    let host = std::env::var("HOST").map_err(|error| format!("cargo sets no HOST: {error}"))?;
    let objcopy = sysroot.join("lib/rustlib").join(host).join("bin/rust-objcopy");
    let mut command = Command::new(&objcopy);
    // Its LLVM is the compiler's.
    command.env("LD_LIBRARY_PATH", sysroot.join("lib"));
    match command.arg("--strip-debug").arg(object).arg(stripped).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{} failed ({status})", objcopy.display())),
        Err(error) => Err(format!("run {}: {error}", objcopy.display())),
    }
}

/// The target directory that `out_dir` lies in. Every profile then shares one object, instead of building
/// it anew; the inner cargo has its own folder there, because this one's is locked by the outer cargo.
fn target_dir(out_dir: &Path) -> &Path {
    out_dir.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()).unwrap_or(out_dir)
}
