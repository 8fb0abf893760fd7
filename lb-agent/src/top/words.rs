//! Numbers and names as narrow columns have them.

use ratatui::symbols::bar::NINE_LEVELS;

use super::rate::{History, Metric};
use crate::cluster::snapshot::IpFamily;
use crate::inspect::rows::{FrontendRow, ServiceRow, kind_name, protocol_name};
use crate::inspect::table;
use crate::plan::desired::FrontendKind;

/// Thousands, millions, …
const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];

/// At most five letters: 0, 0.4, 27, 312, 1.24k, 31.2M; a dash for what isn't known. k is 1000.
pub fn short(value: Option<f64>) -> String {
    let Some(mut value) = value else { return "-".to_owned() };
    if value < 999.5 {
        let is_whole = (value - value.round()).abs() < 0.05;
        return if is_whole || value >= 99.95 {
            format!("{value:.0}")
        } else {
            format!("{value:.1}")
        };
    }
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$}{}", UNITS[unit])
}

/// The same of a count.
pub fn short_count(count: Option<u64>) -> String {
    // Exact below 2⁵³.
    short(count.map(|count| count as f64))
}

/// The last values as bars, the newest at the right; nothing for zero and for gaps. Each row has a
/// scale of its own: the numbers beside it are for comparing. None is as high as the row, so that rows
/// below each other stay apart.
pub fn bars(history: &History, metric: Metric, width: usize) -> String {
    let values = history.last(metric, width);
    let most = values.iter().flatten().copied().fold(0.0_f32, f32::max);
    let bar = |value: &Option<f32>| match value {
        Some(value) if *value > 0.0 => {
            let eighth = (value / most * 7.0).ceil();
            [
                NINE_LEVELS.one_eighth,
                NINE_LEVELS.one_quarter,
                NINE_LEVELS.three_eighths,
                NINE_LEVELS.half,
                NINE_LEVELS.five_eighths,
                NINE_LEVELS.three_quarters,
                NINE_LEVELS.seven_eighths,
            ][(eighth as usize).clamp(1, 7) - 1]
        }
        _ => " ",
    };
    values.iter().map(bar).collect()
}

/// Protocol and family, such as `TCP4`.
pub fn protocol(row: &ServiceRow) -> String {
    let family = match row.family {
        IpFamily::V4 => 4,
        IpFamily::V6 => 6,
    };
    format!("{}{family}", protocol_name(row.protocol))
}

/// The kind of the frontend that reaches farthest.
pub fn kind(row: &ServiceRow) -> &'static str {
    let farthest = [
        FrontendKind::LoadBalancer,
        FrontendKind::NodePort,
        FrontendKind::ExternalIp,
        FrontendKind::ClusterIp,
    ];
    let has = |kind: &FrontendKind| row.frontends.iter().any(|frontend| frontend.kind == *kind);
    farthest.into_iter().find(has).map_or("-", kind_name)
}

/// Its ClusterIP, or the first address.
pub fn address(row: &ServiceRow) -> String {
    let is_cluster_ip = |row: &&FrontendRow| row.kind == FrontendKind::ClusterIp;
    let frontend = row.frontends.iter().find(is_cluster_ip).or(row.frontends.first());
    frontend.map_or("-".to_owned(), |frontend| table::endpoint(frontend.address, frontend.port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::rate::PerMetric;
    use crate::top::testing::service;

    #[test]
    fn numbers_have_at_most_five_letters() {
        for (value, text) in [
            (0.0, "0"),
            (0.04, "0"),
            (0.4, "0.4"),
            (2.0, "2"),
            (12.34, "12.3"),
            (99.96, "100"),
            (312.4, "312"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1_240.0, "1.24k"),
            (9_996.0, "10.0k"),
            (99_960.0, "100k"),
            (999_600.0, "1.00M"),
            (31_200_000.0, "31.2M"),
            (4e18, "4000P"),
        ] {
            assert_eq!(short(Some(value)), text, "{value}");
            assert!(text.len() <= 5);
        }
        assert_eq!((short(None).as_str(), short_count(Some(1_500)).as_str()), ("-", "1.50k"));
    }

    #[test]
    fn bars_are_scaled_by_the_highest_and_any_value_is_seen() {
        let mut history = History::new(9);
        for value in [Some(8.0), None, Some(0.0), Some(0.1), Some(4.0), Some(16.0)] {
            history.push(PerMetric([value, None, None, None]));
        }
        assert_eq!(bars(&history, Metric::Connections, 8), "  ▄  ▁▂▇");
        assert_eq!(bars(&history, Metric::Connections, 2), "▂▇");
        assert_eq!(bars(&history, Metric::Bytes, 3), "   ");
    }

    #[test]
    fn a_service_is_named_by_what_reaches_farthest_and_its_cluster_ip() {
        let mut row = service("a", 0, 0);
        assert_eq!(
            (protocol(&row).as_str(), kind(&row), address(&row).as_str()),
            ("TCP4", "NodePort", "10.96.0.11:80")
        );
        row.frontends.remove(0);
        assert_eq!(address(&row), "*:30080");
        row.frontends.clear();
        assert_eq!((kind(&row), address(&row).as_str()), ("-", "-"));
    }
}
