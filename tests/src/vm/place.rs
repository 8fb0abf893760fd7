//! Hosts of the guest: network namespaces with a thread that does things in them.

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Pid, gettid};
use std::sync::mpsc;
use std::thread;

/// Work for a thread.
type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, and the thread in it that does as it is told. It ends with this value.
pub struct Place {
    tell: mpsc::Sender<Job>,
    /// The thread.
    pub thread: Pid,
}

impl Place {
    /// A new namespace, and a thread that waits there.
    pub fn new() -> Result<Self> {
        let (tell, told) = mpsc::channel::<Job>();
        let (tell_thread, thread_is) = mpsc::channel();
        thread::spawn(move || {
            let entered = unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid());
            if tell_thread.send(entered).is_ok() {
                told.into_iter().for_each(|job| job());
            }
        });
        let thread = thread_is.recv()?.context("unshare(CLONE_NEWNET)")?;
        Ok(Self { tell, thread })
    }

    /// Does something there and waits for it.
    pub fn run<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = mpsc::channel();
        let job = move || {
            // Nobody listens any more after a failure elsewhere.
            let _ = tell.send(what());
        };
        self.tell.send(Box::new(job)).map_err(|_| anyhow!("the thread has ended"))?;
        told.recv()?
    }
}
