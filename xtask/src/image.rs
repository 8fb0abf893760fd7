//! `cargo xtask image`: the agent as a container image, made without a registry or a daemon.

use crate::oci::{self, Image};
use crate::setup::{self, Purpose};
use crate::{artifacts, workspace};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A name that no registry answers to, so that nodes run what was loaded or nothing.
pub const NAME: &str = concat!("localhost/lb-agent:", env!("CARGO_PKG_VERSION"));
/// Who runs the image unless told otherwise: nobody on any node. The DaemonSet says root.
const USER: &str = "65532:65532";

/// Pack the agent into a container image
///
/// The image holds one static program and nothing else. The archive can be loaded by `docker load
/// --input`, `ctr --namespace k8s.io images import` and `kind load image-archive`. Beside it lies the program alone, from
/// which deploy/Dockerfile makes the same image.
#[derive(clap::Args)]
pub struct Args {
    /// The archive [default: target/oci/lb-agent.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image's name
    #[arg(long, value_name = "NAME:TAG", default_value = NAME)]
    name: String,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    setup::ensure(Purpose::Build)?;
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let agent = build()?;
    let archive = args.output.clone().unwrap_or_else(|| folder.join("lb-agent.tar"));
    pack(&agent, &args.name, &archive)?;
    let size = archive.metadata().with_context(|| format!("read {}", archive.display()))?.len();
    println!("{}: {} ({:.1} MiB)", archive.display(), args.name, mebibytes(size));
    Ok(())
}

/// The folder of the program and its image.
pub fn folder() -> PathBuf {
    workspace::target_dir().join("oci")
}

fn mebibytes(bytes: u64) -> f64 {
    let kibibytes = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
    f64::from(kibibytes) / 1024.0
}

/// Builds the program and puts it where deploy/Dockerfile looks for it.
///
/// # Errors
/// When the build fails; cargo's messages went to stderr.
pub fn build() -> Result<PathBuf> {
    let built = artifacts::build_static_agent()?;
    let agent = folder().join("lb-agent");
    fs::create_dir_all(folder()).with_context(|| format!("create {}", folder().display()))?;
    // Not written over: a container may run it.
    let _ = fs::remove_file(&agent);
    fs::copy(&built, &agent).with_context(|| format!("copy {}", built.display()))?;
    Ok(agent)
}

/// Packs the program `agent` as the image `name` into `archive`.
///
/// # Errors
/// Names the file or command that failed.
pub fn pack(agent: &Path, name: &str, archive: &Path) -> Result<()> {
    let image = Image {
        name: name.to_owned(),
        files: vec![("/lb-agent".to_owned(), agent.to_owned())],
        entrypoint: vec!["/lb-agent".to_owned()],
        arguments: Vec::new(),
        user: Some(USER.to_owned()),
    };
    oci::pack(archive, None, &[image])
}
