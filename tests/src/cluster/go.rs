//! Builds programs from their Go modules, once per version and user. Shared with `cargo xtask`, so it
//! may use nothing but std and anyhow.
//!
//! The modules are pinned by `tests/cluster/go/<family>/go.mod` and `go.sum`. What was built is kept
//! under the user's cache directory together with the pins it was built from, so that a changed
//! pin builds anew and an unchanged one costs nothing. A cold build of the whole control plane takes
//! about ten minutes of one core, hence the progress lines and the low priority.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Moves the cache of built programs elsewhere; the default is `lb` in the user's cache directory.
pub const CACHE_VARIABLE: &str = "LB_CACHE_DIR";

/// Names another Go command than the `go` of `PATH`.
pub const GO_VARIABLE: &str = "LB_GO";

/// How often a running build says that it still does.
const PROGRESS: Duration = Duration::from_secs(15);

/// How a package becomes a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `go build`.
    Program,
    /// `go test -c`: the package's tests are the program.
    Tests,
}

/// One go.mod and the programs it builds.
#[derive(Debug)]
pub struct Family {
    /// Directory below `tests/cluster/go`, and the name in the cache.
    pub name: &'static str,
    /// Module whose version names the cache's directory.
    pub module: &'static str,
    /// Names the version inside the programs; `{major}`, `{minor}` and `{version}` are replaced.
    pub linker_flags: &'static str,
    /// Program's file name, package and kind.
    pub programs: &'static [(&'static str, &'static str, Kind)],
}

impl Family {
    /// Where the family's go.mod is.
    pub fn source(&self) -> PathBuf {
        // In this crate and in xtask alike, the package's folder lies in the workspace's root.
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        package.parent().unwrap_or(package).join("tests/cluster/go").join(self.name)
    }

    /// The directory that holds `programs` of this family, built from the present pins.
    ///
    /// Several processes may call this at once: one builds, the others wait for it.
    ///
    /// # Errors
    /// No cache directory, no Go command, or a failed build; the error carries the compiler's words.
    pub fn ensure(&self, programs: &[&str]) -> Result<PathBuf> {
        // The lock file keeps processes apart, this the threads of one: both would print progress.
        static ONE_THREAD: Mutex<()> = Mutex::new(());
        let _one_thread = ONE_THREAD.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.version()?;
        let directory = self.directory(&version)?;
        fs::create_dir_all(&directory).with_context(|| {
            format!("creating {}: set {CACHE_VARIABLE} to a writable place", directory.display())
        })?;
        let lock_path = directory.join("lock");
        let lock = File::create(&lock_path)
            .with_context(|| format!("creating {}", lock_path.display()))?;
        if lock.try_lock().is_err() {
            say(&format!("waiting for another process that builds {} {version}", self.name));
            lock.lock().with_context(|| format!("locking {}", lock_path.display()))?;
        }
        for program in programs {
            self.ensure_program(program, &version, &directory)?;
        }
        Ok(directory)
    }

    /// Whether the cache holds `program` as it would be built now.
    ///
    /// # Errors
    /// No cache directory, or the pins can't be read.
    pub fn is_built(&self, program: &str) -> Result<bool> {
        let version = self.version()?;
        let directory = self.directory(&version)?;
        let pins = self.pins(&version)?;
        let built_from = fs::read_to_string(stamp(&directory, program));
        Ok(directory.join(program).is_file() && built_from.is_ok_and(|built| built == pins))
    }

    fn directory(&self, version: &str) -> Result<PathBuf> {
        Ok(cache_directory()?.join(format!("control-plane/{}-{version}", self.name)))
    }

    fn ensure_program(&self, program: &str, version: &str, directory: &Path) -> Result<()> {
        let known = self.programs.iter().find(|(name, _, _)| *name == program);
        let (_, package, kind) =
            known.with_context(|| format!("the family {} has no {program}", self.name))?;
        if self.is_built(program)? {
            return Ok(());
        }
        self.build(program, package, *kind, version, directory)?;
        let stamp = stamp(directory, program);
        fs::write(&stamp, self.pins(version)?)
            .with_context(|| format!("writing {}", stamp.display()))
    }

    /// Everything that decides what a build produces, compared byte for byte.
    fn pins(&self, version: &str) -> Result<String> {
        let mut pins = self.linker_flags(version);
        for file in ["go.mod", "go.sum"] {
            let path = self.source().join(file);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("reading {}: is the checkout whole?", path.display()))?;
            pins.push('\n');
            pins.push_str(&text);
        }
        Ok(pins)
    }

    /// The version of the family's module, such as `v1.36.3`.
    ///
    /// # Errors
    /// When go.mod can't be read or requires no version of it.
    pub fn version(&self) -> Result<String> {
        let path = self.source().join("go.mod");
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let version = text.lines().find_map(|line| {
            let mut words = line.split_whitespace().skip_while(|word| *word == "require");
            (words.next() == Some(self.module)).then(|| words.next()).flatten()
        });
        version
            .filter(|version| version.starts_with('v'))
            .map(str::to_owned)
            .with_context(|| format!("{} requires no version of {}", path.display(), self.module))
    }

    fn linker_flags(&self, version: &str) -> String {
        let mut parts = version.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or("0"), parts.next().unwrap_or("0"));
        self.linker_flags
            .replace("{version}", version)
            .replace("{major}", major)
            .replace("{minor}", minor)
    }

    fn build(
        &self,
        program: &str,
        package: &str,
        kind: Kind,
        version: &str,
        into: &Path,
    ) -> Result<()> {
        say(&format!("building {program} {version} (all of Kubernetes takes about 10 minutes)"));
        let began = Instant::now();
        let partial = into.join(format!("{program}.partial"));
        let go = std::env::var_os(GO_VARIABLE).unwrap_or_else(|| "go".into());
        let verb: &[&str] = match kind {
            Kind::Program => &["build"],
            // What others released is not ours to vet.
            Kind::Tests => &["test", "-c", "-vet=off"],
        };
        let mut child = Command::new("nice")
            .args(["-n", "10"])
            .arg(&go)
            .args(verb)
            .args(["-v", "-trimpath", "-ldflags", &self.linker_flags(version), "-o"])
            .arg(&partial)
            .arg(package)
            .current_dir(self.source())
            // Static programs: what the cache holds runs whatever the machine's C library.
            .env("CGO_ENABLED", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting `nice -n 10 go build`: run `cargo xtask setup`")?;
        let stderr = child.stderr.take().context("go build has no standard error")?;
        let words = follow(program, began, BufReader::new(stderr))?;
        let status = child.wait().context("waiting for go build")?;
        if !status.success() {
            bail!(
                "building {package} {version} with {} failed ({status}); without Go run `cargo \
                 xtask setup`, without the modules check GOPROXY:\n{words}",
                go.display()
            );
        }
        fs::rename(&partial, into.join(program))
            .with_context(|| format!("moving {} in place", partial.display()))?;
        say(&format!("built {program} {version} in {} s", began.elapsed().as_secs()));
        Ok(())
    }
}

/// Says what a program was built from.
fn stamp(directory: &Path, program: &str) -> PathBuf {
    directory.join(format!("{program}.built-from"))
}

/// Where everything is kept that was built.
///
/// # Errors
/// The user has no home directory, and none is named.
pub fn cache_directory() -> Result<PathBuf> {
    if let Some(chosen) = std::env::var_os(CACHE_VARIABLE) {
        return Ok(chosen.into());
    }
    let user = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    Ok(user
        .with_context(|| format!("no home directory for the cache: set {CACHE_VARIABLE}"))?
        .join("lb"))
}

/// Reads what `go build -v` prints, one package a line, and says now and then how far it is.
/// Returns the last lines, which hold the errors if there were any.
fn follow(program: &str, began: Instant, output: impl BufRead) -> Result<String> {
    let mut said = Instant::now();
    let mut packages = 0_u32;
    let mut last: Vec<String> = Vec::new();
    for line in output.lines() {
        let line = line.context("reading what go build prints")?;
        packages += 1;
        if said.elapsed() >= PROGRESS {
            let seconds = began.elapsed().as_secs();
            say(&format!("{program}: {packages} packages after {seconds} s, now {line}"));
            said = Instant::now();
        }
        if last.len() == 20 {
            last.remove(0);
        }
        last.push(line);
    }
    Ok(last.join("\n"))
}

/// A progress line for whoever waits, past libtest's capture of the test's own output.
fn say(line: &str) {
    // Nobody can be told that standard error is closed.
    drop(writeln!(std::io::stderr(), "lb-tests: {line}"));
}

/// The API server's database.
pub const ETCD: Family = Family {
    name: "etcd",
    module: "go.etcd.io/etcd/server/v3",
    linker_flags: "-s -w",
    programs: &[("etcd", "go.etcd.io/etcd/server/v3", Kind::Program)],
};

/// What the chart is installed with, and its manifests are made with.
pub const HELM: Family = Family {
    name: "helm",
    module: "helm.sh/helm/v4",
    linker_flags: "-s -w",
    programs: &[("helm", "helm.sh/helm/v4/cmd/helm", Kind::Program)],
};

/// Without the version flags the API server would call itself v0.0.0-master and clients that ask
/// for its version would see that.
const KUBERNETES_VERSION: &str = "-s -w \
    -X k8s.io/component-base/version.gitVersion={version} \
    -X k8s.io/component-base/version.gitMajor={major} \
    -X k8s.io/component-base/version.gitMinor={minor}";

/// What a Kubernetes cluster runs.
pub const KUBERNETES: Family = Family {
    name: "kubernetes",
    module: "k8s.io/kubernetes",
    linker_flags: KUBERNETES_VERSION,
    programs: &[
        ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", Kind::Program),
        ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", Kind::Program),
        ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", Kind::Program),
        ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", Kind::Program),
        ("kubelet", "k8s.io/kubernetes/cmd/kubelet", Kind::Program),
        ("kubeadm", "k8s.io/kubernetes/cmd/kubeadm", Kind::Program),
        ("kubectl", "k8s.io/kubernetes/cmd/kubectl", Kind::Program),
        ("agnhost", "k8s.io/kubernetes/test/images/agnhost", Kind::Program),
    ],
};
