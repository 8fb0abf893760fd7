//! `lb-agent top` as it is typed.

use std::time::Duration;

use clap::ValueEnum;

use super::{PinArgs, ServiceFilter, ServingArgs, lists};

/// What follows the help.
pub(super) fn after() -> String {
    format!(
        "\
Keys:
  up down PgUp PgDn Home End   another row (also k and j)
  Enter, Backspace             a Service's endpoints, and back
  s, 1 to 8, r                 another column to sort by, that column, the other way round
  /                            only Services whose name holds what is typed
  p, ?, q                      pause, help, quit (also Esc and Ctrl-C)

Rates are of the time between two looks; those of a counter that was made anew begin at the second
look. Works from the pinned maps, while the agent is down too. A look reads what `lb-agent services`
reads, once each --interval.

{}",
        lists::COUNTED
    )
}

/// `lb-agent top`.
#[derive(Debug, Clone, clap::Args)]
pub struct TopArgs {
    /// Which Services.
    #[command(flatten)]
    pub filter: ServiceFilter,
    /// Time between two looks, such as 500ms
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// Column to sort by at the start; numbers sort downwards
    #[arg(long, value_enum, value_name = "COLUMN", default_value_t)]
    pub sort: Column,
    /// Print plain tables of all rows, one after the other, instead of a screen
    #[arg(long, short)]
    pub batch: bool,
    /// End after so many tables [default: no end]
    #[arg(long, value_name = "N", requires = "batch")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub frames: Option<u64>,
    /// Where the agent is asked.
    #[command(flatten)]
    pub serving: ServingArgs,
    /// Where pins live.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// What rows are sorted by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Column {
    /// Namespace and name
    Name,
    /// Connections a second
    #[default]
    Connections,
    /// Packets a second
    Packets,
    /// Bytes a second
    Bytes,
    /// Drops a second
    Drops,
    /// Connections since the counters were made
    AllConnections,
    /// Bytes since the counters were made
    AllBytes,
    /// Drops since the counters were made
    AllDrops,
}

impl Column {
    /// In the order of their keys.
    pub const ALL: [Self; 8] = [
        Self::Name,
        Self::Connections,
        Self::Packets,
        Self::Bytes,
        Self::Drops,
        Self::AllConnections,
        Self::AllBytes,
        Self::AllDrops,
    ];

    /// The one after it, and after the last the first.
    #[must_use]
    pub fn next(self) -> Self {
        let mut rest = Self::ALL.into_iter().cycle().skip_while(|column| *column != self);
        rest.nth(1).unwrap_or_default()
    }
}

/// Often enough to see every second, seldom enough to leave the node alone.
const SHORTEST: Duration = Duration::from_millis(100);

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if interval < SHORTEST {
        return Err(format!("a look costs the node something: give {SHORTEST:?} or more"));
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_reached_by_going_on() {
        let mut column = Column::default();
        for _ in Column::ALL {
            column = column.next();
        }
        assert_eq!((column, Column::AllDrops.next()), (Column::default(), Column::Name));
        assert_eq!(Column::value_variants(), Column::ALL);
    }

    #[test]
    fn an_interval_that_would_keep_the_node_busy_is_refused() {
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        assert!(interval("10ms").unwrap_err().contains("100ms or more"));
        assert!(interval("soon").is_err());
    }
}
