//! `cargo xtask vm`: the programs on other kernels.
//!
//! Decides which kernels, and puts the pieces together: a Debian kernel, a first file system whose /init
//! is our own test program, and qemu. The guest has no network device and no disk.

mod initramfs;
mod kernel;
mod qemu;
mod report;
mod tools;

use crate::Reported;
use crate::progress::Progress;
use crate::setup::{self, Purpose};
use crate::{artifacts, process, workspace};
use anyhow::{Context, Result, bail, ensure};
use report::Report;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Debian's suites, each with another kernel: 6.1, 6.12 and the newest backport.
const SUITES: [&str; 3] = ["bookworm", "trixie", "trixie-backports"];
/// The program of lb-tests that the guest starts first.
const INIT: &str = "vm-init";

/// Load and test every program on other kernels, in virtual machines
///
/// Downloads Debian's cloud kernels (6.1, 6.12, newest backport) with the machine's own apt mirror, keeps
/// them in the user's cache, and boots each under qemu without KVM.
#[derive(clap::Args)]
pub struct Args {
    /// Only the kernel of this Debian suite (may be given several times)
    #[arg(long = "kernel", value_parser = SUITES)]
    kernels: Vec<String>,
    /// Only the tests whose name contains this
    #[arg(long)]
    filter: Option<String>,
    /// Seconds that one kernel may take, boot included
    #[arg(long, default_value_t = 1800)]
    limit: u64,
    /// Use this vm-init instead of building one
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Show the whole console of each guest
    #[arg(long)]
    verbose: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "`cargo xtask vm` boots x86_64 kernels, and this machine is {}",
        std::env::consts::ARCH
    );
    let init = match &args.init {
        Some(built) => strip(built)?,
        None => {
            setup::ensure(Purpose::Test)?;
            strip(artifacts::build()?.program(INIT)?)?
        }
    };
    let suites: Vec<&str> = if args.kernels.is_empty() {
        SUITES.to_vec()
    } else {
        args.kernels.iter().map(String::as_str).collect()
    };
    let mut reports = Vec::new();
    for suite in suites {
        // One kernel that can't be had or won't boot must not hide what the others say.
        let report = boot(suite, &init, args).unwrap_or_else(|error| {
            eprintln!("test the kernel of {suite} boots ... FAILED\n{error:#}");
            Report::broken(suite)
        });
        reports.push(report);
    }
    print!("{}", report::tables(&reports));
    let passed: u32 = reports.iter().map(|report| report.passed).sum();
    let failed: u32 = reports.iter().map(|report| report.failed).sum();
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        bail!(Reported);
    }
    Ok(())
}

/// The guest's first program without debug information, which makes it many times as large, and the
/// guest has it in memory twice.
fn strip(built: &Path) -> Result<PathBuf> {
    let stripped = vm_dir()?.join(INIT);
    process::output(Command::new("strip").arg("-o").arg(&stripped).arg(built))?;
    Ok(stripped)
}

/// Where this checkout's initramfs images and console logs are.
fn vm_dir() -> Result<PathBuf> {
    let folder = workspace::target_dir().join("vm");
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

fn boot(suite: &str, init: &Path, args: &Args) -> Result<Report> {
    let progress = Progress::new();
    let mut step = progress.step(suite, "getting its kernel");
    let kernel = kernel::get(suite)?;
    step.update(&format!("booting {}", kernel.release));
    let folder = vm_dir()?;
    let image = folder.join(format!("{suite}.cpio"));
    initramfs::write(&image, init, &kernel, args.filter.as_deref())?;
    let guest = qemu::Guest {
        kernel: &kernel.image,
        initramfs: &image,
        console: &folder.join(format!("{suite}.log")),
        limit: Duration::from_secs(args.limit),
    };
    let console = guest.run(&mut step)?;
    let Some(report) = Report::read(suite, &kernel.release, &console) else {
        bail!(
            "the guest with {} ended without a verdict ({}); its console:\n{}",
            kernel.release,
            console.ending,
            console.text
        );
    };
    let Report { release, passed, failed, .. } = &report;
    step.finish(&format!("{release}: {passed} passed, {failed} failed"));
    if args.verbose || report.failed > 0 {
        progress.line(&console.text);
    }
    Ok(report)
}
