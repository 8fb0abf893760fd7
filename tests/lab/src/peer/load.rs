//! Requests that go on until they are stopped, counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime};

use anyhow::{Result, ensure};

use super::client::{ask, check};
use super::protocol::{Load, LoadReport, Outcome, Request};

/// Of so many failures the time is kept.
const FAILURES_WITH_TIME: usize = 4;

/// A load that runs.
pub(super) struct Running {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<LoadReport>>,
    workers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts the workers.
    pub fn start(load: Load) -> Result<Self> {
        ensure!((1..=64).contains(&load.workers), "a load has 1 to 64 workers");
        check(&load.request)?;
        let request = Request { count: 1, keep: None, local_port: None, ..load.request.clone() };
        let load = Load { request, ..load };
        let (stop, report) = (Arc::<AtomicBool>::default(), Arc::<Mutex<LoadReport>>::default());
        let workers = (0..load.workers)
            .map(|_| {
                let (stop, report, load) = (Arc::clone(&stop), Arc::clone(&report), load.clone());
                thread::spawn(move || work(&load, &stop, &report))
            })
            .collect();
        Ok(Self { stop, report, workers })
    }

    /// What was done so far.
    pub fn report(&self) -> LoadReport {
        lock(&self.report).clone()
    }

    /// Waits for the requests under way and returns what was done.
    pub fn stop(self) -> LoadReport {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            // A panic of a worker has been printed by itself.
            let _ = worker.join();
        }
        lock(&self.report).clone()
    }
}

fn work(load: &Load, stop: &AtomicBool, report: &Mutex<LoadReport>) {
    let start = Instant::now();
    let mut socket = None;
    while !stop.load(Ordering::Relaxed) && start.elapsed() < load.at_most {
        if !load.persistent {
            socket = None;
        }
        let outcome = ask(&load.request, &mut socket);
        count(&mut lock(report), outcome);
        thread::sleep(load.pause);
    }
}

fn count(report: &mut LoadReport, outcome: Outcome) {
    match outcome {
        Ok(answer) if answer.intact => {
            report.ok += 1;
            report.syns_lost += u64::from(answer.syns_lost > 0);
            *report.servers.entry(answer.server).or_default() += 1;
            report.slowest_micros = report.slowest_micros.max(answer.micros);
        }
        Ok(_) => {
            report.failed += 1;
            *report.errors.entry("a damaged payload".into()).or_default() += 1;
        }
        Err(failure) => {
            report.failed += 1;
            let kind = format!("{}: {}", failure.call, failure.errno);
            *report.errors.entry(kind).or_default() += 1;
            if report.failed_at.len() < FAILURES_WITH_TIME {
                let now = humantime::format_rfc3339_micros(SystemTime::now());
                report.failed_at.push(now.to_string());
            }
        }
    }
}

fn lock(report: &Mutex<LoadReport>) -> MutexGuard<'_, LoadReport> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}
