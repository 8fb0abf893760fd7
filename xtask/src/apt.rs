//! Debian packages from another suite than the machine's own, without touching the machine's apt.
//!
//! A private apt state under the user's cache, signed by Debian's keyring, that uses the mirror which
//! the machine's own sources already name; packages are only downloaded and unpacked, never installed.

use crate::{process, workspace};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Overrides the mirror, for machines whose sources name no Debian mirror.
const MIRROR: &str = "LB_DEBIAN_MIRROR";
/// Where Debian's `debian-archive-keyring` package puts its keys (first: since trixie).
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];
const UPDATE_LIMIT: Duration = Duration::from_secs(180);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(900);

/// A private apt state for one suite.
pub struct Suite {
    name: String,
    state: PathBuf,
    /// Held as long as the state is used: apt fails where it finds another apt, we wait.
    _lock: File,
}

impl Suite {
    /// Opens the suite `name` (such as `trixie-backports`) and fetches its index.
    ///
    /// # Errors
    /// When there is no apt, no Debian mirror, no keyring, or the mirror can't be reached.
    pub fn open(name: &str) -> Result<Self> {
        let mirror = mirror()?;
        let keyring = KEYRINGS.iter().find(|path| Path::new(path).is_file()).context(
            "Debian's keys are not on this machine: install the package debian-archive-keyring",
        )?;
        let state = workspace::cache_dir("apt")?.join(name);
        for dir in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(state.join(dir)).with_context(|| state.display().to_string())?;
        }
        let lock = workspace::lock(&state.join("in-use"))?;
        // An empty package database: apt then resolves as if nothing were installed.
        fs::write(state.join("status"), "")?;
        let source = format!(
            "Types: deb\nURIs: {mirror}\nSuites: {name}\nComponents: main\nSigned-By: {keyring}\n"
        );
        fs::write(state.join("suite.sources"), source)?;
        let suite = Self { name: name.to_owned(), state, _lock: lock };
        let mut update = suite.apt("apt-get");
        update.args(["--quiet=2", "--error-on=any", "update"]);
        process::run_shown(&mut update, UPDATE_LIMIT)
            .with_context(|| format!("fetch the index of {name} from {mirror}"))?;
        Ok(suite)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = |name: &str| self.state.join(name).display().to_string();
        let options = [
            format!("Dir::State={}", self.state.display()),
            format!("Dir::State::lists={}", path("lists")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::Cache={}", self.state.display()),
            format!("Dir::Etc::sourcelist={}", path("suite.sources")),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // apt's own user may not look into the caller's cache folder.
            "APT::Sandbox::User=root".to_owned(),
        ];
        for option in options {
            command.args(["-o", &option]);
        }
        command
    }

    /// Every version of `package`, newest first.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let table = process::output(self.apt("apt-cache").args(["madison", package]))?;
        Ok(table
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(|version| version.trim().to_owned())
            .collect())
    }

    /// The packages that the newest `package` depends on.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let mut command = self.apt("apt-cache");
        command.args(["--no-all-versions", "show", package]);
        let record = process::output(&mut command)
            .with_context(|| format!("{package} is not in {}", self.name))?;
        let field = record.lines().find_map(|line| line.strip_prefix("Depends:")).unwrap_or("");
        let names = field.split(',').filter_map(|depend| depend.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Downloads `package` (or `package=version`) and unpacks it into `into`.
    ///
    /// # Errors
    /// Names the package and the call that failed.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let folder = self.state.join("archives").join(package.replace(['=', '/'], "_"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let mut download = self.apt("apt-get");
        download.args(["--quiet=2", "download", package]).current_dir(&folder);
        process::run_shown(&mut download, DOWNLOAD_LIMIT)
            .with_context(|| format!("download {package} of {}", self.name))?;
        let archive = fs::read_dir(&folder)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get downloaded no archive of {package}"))?;
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(&archive).arg(into);
        process::output(&mut unpack)?;
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
    }
}

/// The Debian mirror that the machine's own sources name.
///
/// # Errors
/// When they name none: says how to name one.
pub fn mirror() -> Result<String> {
    if let Some(mirror) = std::env::var(MIRROR).ok().filter(|mirror| !mirror.is_empty()) {
        return Ok(mirror);
    }
    let remedy = format!("name a Debian mirror in {MIRROR}");
    if process::find("apt-get").is_none() {
        bail!("there is no apt-get on this machine: {remedy}, on a Debian machine or container");
    }
    let mut list = Command::new("apt-get");
    list.args(["indextargets", "--format", "$(SITE) $(RELEASE)"]);
    let targets = process::output(&mut list)?;
    let mut sites = targets.lines().filter_map(|line| line.split_once(' '));
    let is_main = |site: &str, release: &str| {
        // The security archive has its own suites only; other archives are not Debian's.
        site.trim_end_matches('/').ends_with("/debian") && !release.ends_with("-security")
    };
    match sites.find(|(site, release)| is_main(site, release)) {
        Some((site, _)) => Ok(site.to_owned()),
        None => bail!("this machine's apt sources name no Debian mirror: {remedy}"),
    }
}
