//! The text formats of metrics, and which of them is asked for.
//!
//! Our library writes OpenMetrics. kube-proxy answers in Prometheus' older format, and what reads
//! kube-proxy may know nothing else, so that is what everybody gets who doesn't ask for OpenMetrics
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::Write as _;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus' text format 0.0.4.
    Classic,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The format that the values of a request's `Accept` headers prefer; without any, the classic.
    pub(super) fn of<'a>(accepted: impl Iterator<Item = &'a str>) -> Self {
        let (mut classic, mut open) = (0.0_f64, 0.0_f64);
        for range in accepted.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut version) = (1.0, None);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => version = Some(value.trim()),
                    // `charset`, `escaping`: we write nothing that they would change.
                    _ => {}
                }
            }
            match (kind.as_str(), version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => open = open.max(quality),
                ("text/plain", None | Some("0.0.4")) => classic = classic.max(quality),
                // A wildcard takes anything: the classic format, unless the other is named, too.
                (_, _) => {}
            }
        }
        if open > 0.0 && open >= classic { Self::OpenMetrics } else { Self::Classic }
    }

    /// For the header of that name.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// `open_metrics` in this format.
    pub(super) fn text(self, open_metrics: String) -> String {
        match self {
            Self::Classic => classic(&open_metrics),
            Self::OpenMetrics => open_metrics,
        }
    }
}

/// In the older format a family has the name of its samples (`…_total`, `…_info`), there is no
/// type `info`, no end, and whole numbers are written without a fraction in `le`.
fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        // Writing to a String can't fail.
        let _ = match line.strip_prefix("# ") {
            Some(comment) => match comment.split_once(' ') {
                Some(("HELP", named)) => {
                    help = named.split_once(' ').map_or("", |(_, help)| help);
                    Ok(())
                }
                Some(("TYPE", family)) => {
                    let (name, kind) = family.split_once(' ').unwrap_or((family, "unknown"));
                    let (suffix, kind) = match kind {
                        "counter" => ("_total", "counter"),
                        "info" => ("_info", "gauge"),
                        "unknown" => ("", "untyped"),
                        other => ("", other),
                    };
                    write!(text, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n")
                }
                // UNIT and EOF.
                Some(_) | None => Ok(()),
            },
            None => writeln!(text, "{}", Sample(line)),
        };
    }
    text
}

/// A line with a value.
struct Sample<'a>(&'a str);

impl std::fmt::Display for Sample<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const LE: &str = "le=\"";
        // Quotes inside of values are escaped: behind `{` or `,` this can only be the label.
        let bound = ["{le=\"", ",le=\""].into_iter().find_map(|label| self.0.find(label));
        let parts = bound.and_then(|start| {
            let (before, rest) = self.0.split_at_checked(start + 1 + LE.len())?;
            let (bound, after) = rest.split_once('"')?;
            Some((before, bound, after))
        });
        match parts {
            Some((before, bound, after)) => {
                write!(f, "{before}{}\"{after}", bound.strip_suffix(".0").unwrap_or(bound))
            }
            None => f.write_str(self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,\
                          text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accepted, expected) in [
            (&[][..], Format::Classic),
            (&["*/*"], Format::Classic),
            (&["text/plain"], Format::Classic),
            (&["text/plain;version=0.0.4"], Format::Classic),
            (&[prometheus], Format::OpenMetrics),
            (&["Application/OpenMetrics-Text; Version=1.0.0"], Format::OpenMetrics),
            (&["text/plain;q=0.5", "application/openmetrics-text"], Format::OpenMetrics),
            (&["application/openmetrics-text;q=0.4, text/plain;q=0.5"], Format::Classic),
            (&["application/openmetrics-text; version=0.0.1"], Format::Classic),
            (&["application/openmetrics-text;q=0"], Format::Classic),
            (&["application/openmetrics-text;q=nonsense"], Format::Classic),
            (&[";;,q=,"], Format::Classic),
        ] {
            assert_eq!(Format::of(accepted.iter().copied()), expected, "{accepted:?}");
        }
    }

    #[test]
    fn the_classic_format_names_families_by_their_samples() {
        let open_metrics = "\
# HELP proxy_healthz Answers of /healthz.
# TYPE proxy_healthz counter
proxy_healthz_total{code=\"200\"} 1
# HELP agent_build Version.
# TYPE agent_build info
agent_build_info{version=\"0.1.0\"} 1
# HELP no_endpoints_total Services.
# TYPE no_endpoints_total gauge
no_endpoints_total{reason=\",le=\\\"1.0\\\"\"} 2
# HELP took_seconds Time.
# TYPE took_seconds histogram
# UNIT took_seconds seconds
took_seconds_sum 1.0
took_seconds_bucket{le=\"0.5\"} 0
took_seconds_bucket{le=\"1.0\"} 1
took_seconds_bucket{ip_family=\"IPv4\",le=\"10.0\"} 1
took_seconds_bucket{le=\"+Inf\"} 1
# HELP odd Something.
# TYPE odd unknown
odd 3
# EOF
";
        let expected = "\
# HELP proxy_healthz_total Answers of /healthz.
# TYPE proxy_healthz_total counter
proxy_healthz_total{code=\"200\"} 1
# HELP agent_build_info Version.
# TYPE agent_build_info gauge
agent_build_info{version=\"0.1.0\"} 1
# HELP no_endpoints_total Services.
# TYPE no_endpoints_total gauge
no_endpoints_total{reason=\",le=\\\"1.0\\\"\"} 2
# HELP took_seconds Time.
# TYPE took_seconds histogram
took_seconds_sum 1.0
took_seconds_bucket{le=\"0.5\"} 0
took_seconds_bucket{le=\"1\"} 1
took_seconds_bucket{ip_family=\"IPv4\",le=\"10\"} 1
took_seconds_bucket{le=\"+Inf\"} 1
# HELP odd Something.
# TYPE odd untyped
odd 3
";
        assert_eq!(classic(open_metrics), expected);
    }
}
