//! Programs that run inside a network namespace and die with the test, whatever becomes of it.
//!
//! A [`Namespace`] owns a thread that has entered the namespace. Every child is started by that
//! thread and asks the kernel (by `setpriv --pdeathsig`) to be killed when the thread ends, so that
//! even a test killed by SIGKILL leaves no process behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use lb_lab::Lab;
use nix::sched::{CloneFlags, setns};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace by its file, and a thread that lives inside it.
pub struct Namespace {
    jobs: mpsc::Sender<Job>,
}

impl Namespace {
    /// Enters the namespace at `path` (such as `/run/netns/NAME`) with a new thread.
    ///
    /// # Errors
    /// The file does not exist, is no network namespace, or the caller lacks `CAP_SYS_ADMIN`.
    pub fn open(path: &Path) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (report, entered) = mpsc::channel();
        let owned = path.to_owned();
        thread::Builder::new()
            .name("netns".into())
            .spawn(move || {
                let result = enter(&owned);
                let inside = result.is_ok();
                if report.send(result).is_ok() && inside {
                    queue.into_iter().for_each(|job| job());
                }
            })
            .context("starting the namespace's thread")?;
        entered.recv().context("the namespace's thread ended at once")??;
        Ok(Self { jobs })
    }

    /// Runs `job` on the thread inside the namespace and waits for its result.
    ///
    /// # Errors
    /// The thread is gone because an earlier job panicked.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (report, result) = mpsc::channel();
        let job: Job = Box::new(move || drop(report.send(job())));
        self.jobs.send(job).map_err(|_| anyhow!("the namespace's thread is gone"))?;
        result.recv().context("the namespace's thread died in this job")
    }
}

/// Moves the calling thread into the network namespace at `path`.
fn enter(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening namespace {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("entering network namespace {} (needs root)", path.display()))
}

/// A running program whose output goes to a log file.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` on `host` of `lab`, whose namespace `namespace` has to be; standard output
    /// and error are appended to `log`.
    ///
    /// # Errors
    /// The log can't be opened or the program can't be started.
    pub fn start(
        namespace: &Namespace,
        (lab, host): (&Lab, &str),
        program: &Path,
        arguments: &[String],
        log: &Path,
    ) -> Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening the log {}", log.display()))?;
        let err = out.try_clone().with_context(|| format!("sharing the log of {name}"))?;
        let mut command = lab.daemon(host, "setpriv")?;
        command
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        let child = namespace
            .run(move || command.spawn())?
            .with_context(|| format!("starting {name} by setpriv (package util-linux)"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// What the program said last, for a failed test's report.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(30)..];
        format!("the last lines of {} ({}):\n{}", self.name, self.log.display(), tail.join("\n"))
    }

    /// Fails if the program has ended by itself.
    ///
    /// # Errors
    /// It has ended; the error carries its last words.
    pub fn expect_running(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("waiting for {}", self.name))? {
            Some(status) => {
                bail!("{} ended by itself ({status}); {}", self.name, self.last_words())
            }
            None => Ok(()),
        }
    }

    /// Kills at once (SIGKILL), as a crash would, and waits for the end.
    ///
    /// # Errors
    /// The kernel refuses; never because the program has ended already.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.child.wait().with_context(|| format!("waiting for {}", self.name))?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended is as good as killed; nothing else can be done here.
        drop(self.kill());
    }
}
