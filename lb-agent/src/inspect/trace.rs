//! `lb-agent trace`: an explanation for people, or as JSON or YAML.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::table;
use crate::args::TraceFormat;
use crate::trace::{Endpoint, Explanation, Origin, Place, Verdict};

/// As many endpoints as are worth reading.
const SHOWN: usize = 10;

/// Why it can't be printed.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// As JSON.
    #[error("write JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// As YAML.
    #[error("write YAML: {0}")]
    Yaml(#[from] serde_yaml_ng::Error),
}

/// The text to print.
pub fn render(explanation: &Explanation, format: TraceFormat) -> Result<String, RenderError> {
    Ok(match format {
        TraceFormat::Text => text(explanation),
        TraceFormat::Json => serde_json::to_string_pretty(explanation)?,
        TraceFormat::Yaml => serde_yaml_ng::to_string(explanation)?,
    })
}

fn text(explanation: &Explanation) -> String {
    let Explanation { to, protocol, verdict, reason, .. } = explanation;
    let from = explanation.from.map(end).unwrap_or_default();
    let origin = match explanation.origin {
        Origin::Node => "this node",
        Origin::Pod => "a pod of this node",
        Origin::Outside => "a client outside",
    };
    let mut lines = vec![
        ("FROM", format!("{origin} {from}").trim_end().to_owned()),
        ("TO", format!("{to}/{protocol}")),
    ];
    lines.extend(explanation.steps.iter().map(|step| (step.step, step.says.clone())));
    lines.extend(endpoints(&explanation.endpoints).map(|text| ("endpoints", text)));
    lines.push(("program", explanation.program.says.clone()));
    let verdict = match verdict {
        Verdict::Translated => "translated",
        Verdict::Untranslated => "not translated",
        Verdict::Refused => "refused",
        Verdict::Dropped => "dropped",
    };
    let label = reason.map(|reason| format!(" ({})", reason.label)).unwrap_or_default();
    lines.push((
        "VERDICT",
        format!("{verdict}{label}: the client meets {}", explanation.client_meets),
    ));
    if let Some(reason) = reason {
        lines.push(("CAUSE", reason.cause.to_owned()));
        lines.push(("CURE", reason.cure.to_owned()));
    }
    let mut text = String::new();
    for (name, says) in lines {
        // Writing to a String doesn't fail.
        let _ = writeln!(text, "{name:<11}{says}");
    }
    text
}

/// Without a port that nobody has chosen yet.
fn end(from: SocketAddr) -> String {
    if from.port() == 0 { from.ip().to_string() } else { from.to_string() }
}

fn endpoints(endpoints: &[Endpoint]) -> Option<String> {
    let texts = endpoints.iter().take(SHOWN).map(|endpoint| {
        let mark = if endpoint.place == Place::ThisNode { "@" } else { "" };
        format!("{}{mark}", table::endpoint(endpoint.address.ip(), endpoint.address.port()))
    });
    let mut text = texts.collect::<Vec<_>>().join(", ");
    if endpoints.len() > SHOWN {
        let _ = write!(text, " and {} more", endpoints.len() - SHOWN);
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{ProgramAnswer, Reason, Step};

    fn refused() -> Explanation {
        Explanation {
            origin: Origin::Node,
            from: Some("192.0.2.1:0".parse().unwrap()),
            to: "10.96.0.1:80".parse().unwrap(),
            protocol: "TCP",
            service: Some("default/web".into()),
            steps: vec![Step { step: "frontend", says: "the ClusterIP of default/web".into() }],
            endpoints: vec![Endpoint {
                address: "[fd00::1]:80".parse().unwrap(),
                place: Place::ThisNode,
            }],
            verdict: Verdict::Refused,
            chosen: None,
            seen_as: None,
            device: None,
            reason: Some(Reason { label: "no_endpoints", cause: "None.", cure: "Some." }),
            client_meets: "ECONNREFUSED",
            program: ProgramAnswer { agrees: None, says: "not run".into() },
        }
    }

    #[test]
    fn people_read_steps_verdict_cause_and_cure() {
        assert_eq!(
            render(&refused(), TraceFormat::Text).unwrap(),
            "FROM       this node 192.0.2.1\n\
             TO         10.96.0.1:80/TCP\n\
             frontend   the ClusterIP of default/web\n\
             endpoints  [fd00::1]:80@\n\
             program    not run\n\
             VERDICT    refused (no_endpoints): the client meets ECONNREFUSED\n\
             CAUSE      None.\n\
             CURE       Some.\n"
        );
    }

    #[test]
    fn programs_read_the_same_as_json_and_yaml() {
        let json = render(&refused(), TraceFormat::Json).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let yaml = render(&refused(), TraceFormat::Yaml).unwrap();
        let yaml: serde_json::Value = serde_yaml_ng::from_str(&yaml).unwrap();
        assert_eq!(json, yaml);
        assert_eq!(json["verdict"], "refused");
        assert_eq!(json["reason"]["label"], "no_endpoints");
        assert_eq!(json["endpoints"][0]["place"], "this_node");
    }
}
