//! When to look through the flow tables for flows that ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tracing::{debug, info, warn};

use super::datapath::{Expiry, FlowExpiry};
use crate::serve::metrics::Metrics;

/// Short against the shortest timeout of a flow, a minute.
const EXPIRY: Duration = Duration::from_secs(20);

/// Removes flows that have ended, every now and then and when `stale` says so, until the runtime ends.
pub async fn expire<F: FlowExpiry>(mut flows: F, stale: Arc<Notify>, metrics: Metrics) {
    let mut interval = tokio::time::interval(EXPIRY);
    let mut has_failed = false;
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = stale.notified() => {}
        }
        let pass = spawn_blocking(move || {
            let result = flows.expire();
            (flows, result)
        });
        let result;
        (flows, result) = match pass.await {
            Ok(pass) => pass,
            Err(error) => {
                tracing::error!(%error, "ended flows aren't removed any more; this is a bug");
                return;
            }
        };
        match result {
            Ok(Expiry { fill, flows }) => {
                if std::mem::take(&mut has_failed) {
                    info!("ended flows are removed again");
                }
                metrics.set_fill(&fill);
                metrics.set_flows(&flows);
            }
            Err(error) if has_failed => debug!(%error, "ended flows still can't be removed"),
            Err(error) => {
                has_failed = true;
                warn!(%error, "ended flows can't be removed; trying again every {EXPIRY:?}");
            }
        }
    }
}
