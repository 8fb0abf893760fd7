//! `cargo xtask setup`: what building, demonstrating and testing need.
//!
//! Decides what is needed for what; each file below knows how to see that one kind of thing is missing
//! and how to get it. Nothing is done twice: a second run only looks.

mod debian;
mod go;
mod promtool;
mod rust;

use crate::{privilege, workspace};
use anyhow::{Context, Result};
use clap::ValueEnum;

/// Install what building, demonstrating and testing need, and only what is missing
///
/// Says what it installs and why. Debian packages need root (it runs itself again under sudo for them);
/// everything else goes into the Rust toolchain and into the user's cache (~/.cache/lb).
#[derive(clap::Args)]
pub struct Args {
    /// What the machine is wanted for; each needs what those before it need
    #[arg(long = "for", value_enum, default_value_t = Purpose::Test)]
    purpose: Purpose,
    /// Install the Debian packages alone (this is what runs under sudo)
    #[arg(long, hide = true)]
    only_packages: bool,
}

/// What the machine is wanted for, least first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Debug)]
pub enum Purpose {
    /// Build the agent with its kernel object
    Build,
    /// Also run the demo and the lab
    Demo,
    /// Also run every test: a real API server, other kernels
    Test,
    /// Also run Kubernetes' own tests on a cluster of containers
    E2e,
}

impl Purpose {
    /// The word that `--for` takes.
    fn word(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Demo => "demo",
            Self::Test => "test",
            Self::E2e => "e2e",
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    if args.only_packages {
        return debian::install(&debian::missing(args.purpose));
    }
    ensure(args.purpose)
}

/// Brings the machine to where `purpose` works.
///
/// # Errors
/// Names what is missing and can't be installed from here, with the remedy.
pub fn ensure(purpose: Purpose) -> Result<()> {
    // Two commands started at once must not install the same thing over each other.
    let _lock = workspace::lock(&workspace::cache_dir("")?.join("setup.lock"))?;
    let mut installed = ensure_packages(purpose)?;
    installed += rust::ensure(purpose)?;
    if purpose >= Purpose::Test {
        go::check()?;
        installed += usize::from(promtool::ensure()?);
    }
    if installed == 0 {
        eprintln!("setup: everything for `{}` is here", purpose.word());
    }
    Ok(())
}

/// The names of the Debian packages that `purpose` needs and the machine lacks.
pub fn missing(purpose: Purpose) -> String {
    debian::names(&debian::missing(purpose))
}

/// Installs the Debian packages that are missing, under sudo when we are not root.
fn ensure_packages(purpose: Purpose) -> Result<usize> {
    let missing = debian::missing(purpose);
    if missing.is_empty() || privilege::is_root() {
        debian::install(&missing)?;
        return Ok(missing.len());
    }
    eprintln!("setup: installing Debian packages needs root: running itself again under sudo");
    let args = ["setup", "--only-packages", "--for", purpose.word()].map(Into::into);
    let mut command = privilege::sudo_self("installing Debian packages", args)?;
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    let still = debian::missing(purpose);
    anyhow::ensure!(
        status.success() && still.is_empty(),
        "the Debian packages {} were not installed: install them as root",
        debian::names(&still)
    );
    Ok(missing.len())
}
