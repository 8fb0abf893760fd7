//! How long a failed list or watch waits before it is asked for again.

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::utils::Backoff;
use kube::runtime::watcher::DefaultBackoff;

use super::health::{WatchHealth, Watched};

/// kube's (and client-go's) growing pause, that begins anew with each outage.
///
/// kube's starts over when an object arrives; on a quiet cluster none does, and a server that was
/// restarted three times would be asked again after half a minute only.
pub(super) struct WatchBackoff {
    pause: DefaultBackoff,
    health: Arc<WatchHealth>,
    watched: Watched,
    /// Requests that had been accepted when the last one failed.
    accepted: u64,
}

impl WatchBackoff {
    pub(super) fn new(health: Arc<WatchHealth>, watched: Watched) -> Self {
        let accepted = health.of(watched).accepted();
        Self { pause: DefaultBackoff::default(), health, watched, accepted }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let accepted = self.health.of(self.watched).accepted();
        if std::mem::replace(&mut self.accepted, accepted) != accepted {
            self.pause.reset();
        }
        self.pause.next()
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.pause.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first pause, with the jitter that is at most as long again.
    const FIRST: Duration = Duration::from_millis(1_600);

    #[test]
    fn the_pause_grows_within_an_outage_and_begins_anew_with_the_next() {
        let health = Arc::new(WatchHealth::default());
        let mut backoff = WatchBackoff::new(health.clone(), Watched::Slices);
        for outage in 0..3 {
            assert!(backoff.next().unwrap() <= FIRST, "outage {outage}");
            // An answer to another watch says nothing about this one.
            health.answered(Watched::Services);
            let grown = backoff.by_ref().take(8).max().unwrap();
            assert!(grown > FIRST * 4, "outage {outage}: {grown:?}");
            health.answered(Watched::Slices);
        }
    }
}
