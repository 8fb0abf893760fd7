//! Builds the kernel object. Shared by `lb-agent/build.rs` and `cargo xtask`, so that both build the
//! same object in the same way; it may use nothing but std, and installs nothing.
//!
//! Rust stable has no `core` for the BPF target: it is built from the toolchain's `rust-src`
//! (`-Z build-std`, hence `RUSTC_BOOTSTRAP`), always as release because unoptimised code overflows the
//! 512 bytes of BPF stack, and linked by bpf-linker, which writes the BTF.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package and binary that hold the programs.
pub const PACKAGE: &str = "lb-ebpf";
/// The target of a little-endian host.
pub const TARGET: &str = "bpfel-unknown-none";
/// The bpf-linker release whose LLVM is that of the pinned toolchain.
pub const LINKER_VERSION: &str = "0.13.0";

const REMEDY: &str = "run `cargo xtask setup`";

/// What to do with the programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Compile and link.
    Build,
    /// Lint only; warnings are errors.
    Clippy,
}

/// The compiler that cargo uses here.
pub fn rustc() -> OsString {
    std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

/// First output line of `program args`.
fn first_line(program: &OsString, args: &[&str]) -> Result<String, String> {
    let shown = format!("{} {}", program.to_string_lossy(), args.join(" "));
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("run `{shown}`: {error}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{shown}` failed ({}): {}", output.status, stderr.trim()));
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    Ok(stdout.lines().next().unwrap_or_default().to_owned())
}

/// The toolchain's root folder.
pub fn sysroot() -> Result<PathBuf, String> {
    first_line(&rustc(), &["--print", "sysroot"]).map(PathBuf::from)
}

/// The compiler's release, such as `1.95.0`.
pub fn rustc_release() -> Result<String, String> {
    let line = first_line(&rustc(), &["--version"])?;
    let release = line.split_whitespace().nth(1);
    release.map(str::to_owned).ok_or_else(|| format!("rustc names no version: {line:?}"))
}

/// Where the toolchain keeps the sources of `core`, whether they are there or not.
pub fn library_dir() -> Result<PathBuf, String> {
    Ok(sysroot()?.join("lib/rustlib/src/rust/library"))
}

/// Whether the sources of `core` are there.
pub fn has_rust_src() -> Result<bool, String> {
    Ok(library_dir()?.join("core/src/lib.rs").is_file())
}

/// Our folder in the user's cache: `$XDG_CACHE_HOME/lb` or `~/.cache/lb`.
pub fn cache() -> Result<PathBuf, String> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    match (variable("XDG_CACHE_HOME"), variable("HOME")) {
        (Some(cache), _) => Ok(Path::new(&cache).join("lb")),
        (None, Some(home)) => Ok(Path::new(&home).join(".cache/lb")),
        (None, None) => Err("no cache directory: set HOME or XDG_CACHE_HOME".to_owned()),
    }
}

/// Where `cargo xtask setup` installs the linker: one folder per linker and compiler release, because
/// the linker loads the compiler's own LLVM.
pub fn linker_home() -> Result<PathBuf, String> {
    Ok(cache()?.join(format!("bpf-linker-{LINKER_VERSION}-rustc-{}", rustc_release()?)))
}

/// A working bpf-linker of the right version: from PATH, else from `linker_home`.
pub fn find_linker() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates: Vec<_> = std::env::split_paths(&path).collect();
    candidates.push(linker_home()?.join("bin"));
    let wanted = format!("bpf-linker {LINKER_VERSION}");
    let linker = candidates.into_iter().map(|dir| dir.join("bpf-linker")).find(|linker| {
        // A linker whose LLVM is gone starts no more: asking it is the only honest check.
        linker.is_file()
            && first_line(&linker.into(), &["--version"]).is_ok_and(|version| version == wanted)
    });
    linker.ok_or_else(|| format!("{wanted} not found on PATH nor in the user's cache: {REMEDY}"))
}

/// Builds or lints the programs for a host of architecture `arch` (`x86_64`, `aarch64`, …) and
/// returns the object's path (for `Clippy`: the path it would have).
///
/// # Errors
/// A sentence that names what is missing and the remedy, or the command that failed; the compiler's own
/// messages went to stderr.
pub fn run(
    action: Action,
    workspace: &Path,
    target_dir: &Path,
    arch: &str,
) -> Result<PathBuf, String> {
    if !has_rust_src()? {
        let library = library_dir()?;
        return Err(format!("rust-src is missing ({} is not there): {REMEDY}", library.display()));
    }
    let linker = find_linker()?;
    let flags = [
        // aya-ebpf reads the registers of the architecture that the programs run on.
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
    ];
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg(match action {
        Action::Build => "build",
        Action::Clippy => "clippy",
    });
    cargo.args(["--locked", "--release", "-Zbuild-std=core"]);
    cargo.args(["--package", PACKAGE, "--target", TARGET]).arg("--target-dir").arg(target_dir);
    if action == Action::Clippy {
        cargo.args(["--", "-Dwarnings"]);
    }
    cargo.current_dir(workspace).env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    // What a surrounding `cargo clippy` or coverage run sets for the host must not reach this target.
    for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    let shown = format!("{cargo:?}");
    let status = cargo.status().map_err(|error| format!("run {shown}: {error}"))?;
    if !status.success() {
        return Err(format!("building {PACKAGE} for {TARGET} failed ({status}): {shown}"));
    }
    Ok(target_dir.join(TARGET).join("release").join(PACKAGE))
}
