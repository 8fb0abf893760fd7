//! The lock that programs of iptables take before they read a table to change it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Where iptables has it (`XT_LOCK_NAME`).
pub const LOCK: &str = "/run/xtables.lock";
const LOOK: Duration = Duration::from_millis(50);

/// Why it isn't ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It can't be opened, or locked.
    #[error("lock {LOCK}: {0}; iptables needs it too, see what is wrong with the file")]
    Io(#[from] io::Error),
    /// Somebody else has it.
    #[error(
        "{LOCK} is held by another program, for {} s already: wait until its iptables command ends, and \
         run this again",
        .0.as_secs()
    )]
    Held(Duration),
}

/// Takes it, for as long as the result lives; waits for `patience` at most. Where the file isn't (no
/// iptables has run here, or not in this container), nobody can be waited for.
pub fn take(path: &Path, patience: Duration) -> Result<Option<Flock<File>>, LockError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let began = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, errno)) => return Err(LockError::Io(errno.into())),
        };
        if began.elapsed() >= patience {
            return Err(LockError::Held(patience));
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_waited_for_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        assert!(take(&path, Duration::ZERO).unwrap().is_none(), "there is none");
        File::create(&path).unwrap();
        let lock = take(&path, Duration::ZERO).unwrap().unwrap();
        assert!(matches!(take(&path, Duration::from_millis(60)), Err(LockError::Held(_))));
        let releases = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(lock);
        });
        assert!(take(&path, Duration::from_secs(30)).unwrap().is_some());
        releases.join().unwrap();
    }
}
