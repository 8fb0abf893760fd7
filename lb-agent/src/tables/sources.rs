//! Who may reach a Service port's load balancer addresses: sets of ranges in SOURCE_RANGES.
//!
//! A set is immutable once a record names it. Changed ranges are a fresh set, which one publication
//! makes current; the old one goes when nobody reads it any more. Ranges that the map has no room
//! for close the addresses: open to all is what nobody asked for.

use ipnet::IpNet;
use lb_common::abi::{ServiceFlags, SourceSet};

use super::Tables;
use super::encode;
use super::entry::{Entry, Full, Problem, make_current};
use super::store::{Store, StoreError, Table};
use crate::plan::desired::ServicePortPlan;

/// The sources that are admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The set in the map; 0 when nobody is admitted for want of room.
    pub set: SourceSet,
    /// Its ranges, in order and without host bits.
    pub ranges: Vec<IpNet>,
}

impl Sources {
    /// Nobody at all.
    const NOBODY: Self = Self { set: SourceSet(0), ranges: Vec::new() };
}

/// Makes the current record admit the sources of the plan, before anything else of the plan is
/// written: another table that is full must not leave an address open.
pub fn settle<S: Store>(
    tables: &mut Tables<S>,
    entry: &mut Entry,
    plan: &ServicePortPlan,
) -> Result<(), Problem> {
    let wanted = plan.source_ranges.as_deref().map(encode::ranges);
    if entry.sources.as_ref().map(|sources| &sources.ranges) == wanted.as_ref() {
        return Ok(());
    }
    let (sources, written) = match wanted.map(|ranges| add(tables, ranges)) {
        None => (None, Ok(())),
        Some(Ok(sources)) => (Some(sources), Ok(())),
        Some(Err(problem)) => (Some(Sources::NOBODY), Err(problem)),
    };
    if entry.sources == sources {
        return written;
    }
    let old = std::mem::replace(&mut entry.sources, sources);
    if entry.record != 0
        && let Err(problem) = republish(tables, entry)
    {
        // Never named by a record.
        let fresh = std::mem::replace(&mut entry.sources, old);
        tables.retired.sources.extend(fresh);
        return Err(problem);
    }
    tables.retired.sources.extend(old);
    written
}

/// Publishes the current record with the entry's sources instead of its own.
fn republish<S: Store>(tables: &mut Tables<S>, entry: &mut Entry) -> Result<(), Problem> {
    let number = tables.records.take().ok_or(Problem::Full(Full::Services))?;
    let mut record = tables.store.record(entry.record);
    record.flags &= !ServiceFlags::SOURCE_RANGES;
    record.sources = SourceSet(0);
    if let Some(sources) = &entry.sources {
        record.flags |= ServiceFlags::SOURCE_RANGES;
        record.sources = sources.set;
    }
    make_current(tables, entry, number, &record);
    Ok(())
}

/// Writes a fresh set; all of it or nothing.
fn add<S: Store>(tables: &mut Tables<S>, ranges: Vec<IpNet>) -> Result<Sources, Problem> {
    let room = tables.store.capacity(Table::SourceRanges).saturating_sub(tables.ranges);
    if ranges.len() > room as usize {
        return Err(Problem::Full(Full::SourceRanges));
    }
    let set = SourceSet(tables.sets.take().ok_or(Problem::Full(Full::SourceRanges))?);
    for (done, range) in ranges.iter().enumerate() {
        match tables.store.set_source_range(&encode::source_range(set, range)) {
            Ok(()) => tables.ranges += 1,
            Err(error) => {
                let written = ranges.into_iter().take(done).collect();
                remove(tables, &Sources { set, ranges: written })?;
                return Err(match error {
                    StoreError::Full { .. } => Problem::Full(Full::SourceRanges),
                    error @ StoreError::Call { .. } => Problem::Store(error),
                });
            }
        }
    }
    Ok(Sources { set, ranges })
}

/// Removes a set that no record names and no program reads.
pub fn remove<S: Store>(tables: &mut Tables<S>, sources: &Sources) -> Result<(), StoreError> {
    for range in &sources.ranges {
        tables.store.remove_source_range(&encode::source_range(sources.set, range))?;
        tables.ranges -= 1;
    }
    if sources.set != SourceSet(0) {
        tables.sets.give(sources.set.0);
    }
    Ok(())
}
