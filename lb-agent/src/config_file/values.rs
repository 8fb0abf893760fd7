//! The values of a configuration file: which fields are there, whether they are what the field may be,
//! and whether they ask for anything.

use std::collections::BTreeMap;

use serde_yaml_ng::Value;

use super::fields::{self, FIELDS, Field, Kind, Treatment};

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its path.
    pub field: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

/// The values that ask for something, by path, as text; lists are joined with commas.
pub type Values = BTreeMap<&'static str, String>;

/// Reads the fields of a file; `apiVersion` and `kind` have been judged.
pub fn values(document: &Value) -> Result<Values, Fault> {
    let mut values = Values::new();
    walk("", document, &mut values)?;
    Ok(values)
}

fn walk(prefix: &str, value: &Value, values: &mut Values) -> Result<(), Fault> {
    let entries = match value {
        // As Go reads it: nothing of it is set.
        Value::Null => return Ok(()),
        Value::Mapping(entries) => entries,
        _ => {
            let field = prefix.trim_end_matches('.').to_owned();
            return Err(Fault {
                field,
                reason: "has fields of its own; write them below it".into(),
            });
        }
    };
    for (key, value) in entries {
        let name = key.as_str().unwrap_or("?");
        let path = format!("{prefix}{name}");
        if prefix.is_empty() && matches!(name, "apiVersion" | "kind") {
            continue;
        }
        let inside = format!("{path}.");
        if let Some(field) = fields::at(&path) {
            let text = text(field, value)?;
            if let Some(text) = text.filter(|text| asks_for_something(field, text)) {
                values.insert(field.path, text);
            }
        } else if FIELDS.iter().any(|field| field.path.starts_with(&inside)) {
            walk(&inside, value, values)?;
        } else {
            return Err(Fault { reason: unknown(name), field: path });
        }
    }
    Ok(())
}

fn unknown(name: &str) -> String {
    let last = |field: &&Field| field.path.rsplit('.').next().unwrap_or_default();
    let near = FIELDS.iter().find(|field| last(field).eq_ignore_ascii_case(name));
    let remedy = near.map_or_else(
        || "remove it, or write it as in kubeproxy.config.k8s.io/v1alpha1".to_owned(),
        |field| format!("write {}", field.path),
    );
    format!("kube-proxy has no such field; {remedy}")
}

/// A value as text; `None` when there is none.
fn text(field: &Field, value: &Value) -> Result<Option<String>, Fault> {
    let wrong = |reason: String| Fault { field: field.path.to_owned(), reason };
    let shown = |value: &Value| match value {
        Value::String(text) => format!("{text:?}"),
        other => serde_yaml_ng::to_string(other).unwrap_or_default().trim().to_owned(),
    };
    let expected = |what: &str| wrong(format!("{} is not {what}", shown(value)));
    let text = match (field.kind, value) {
        (_, Value::Null) => return Ok(None),
        (Kind::Text, Value::String(text)) => text.clone(),
        (Kind::Text, _) => return Err(expected("text; put it into quotation marks")),
        (Kind::OneOf(words), Value::String(text)) if words.contains(&text.as_str()) => text.clone(),
        (Kind::OneOf(words), _) => {
            let words: Vec<_> = words.iter().filter(|word| !word.is_empty()).copied().collect();
            return Err(expected(&format!("one of {}; write one of them", words.join(", "))));
        }
        (Kind::Texts, Value::Sequence(items)) => {
            let items: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            items.ok_or_else(|| expected("a list of texts; write `- TEXT` for each"))?.join(",")
        }
        (Kind::Texts, _) => return Err(expected("a list; write `- TEXT` for each")),
        (Kind::Switch, Value::Bool(on)) => on.to_string(),
        (Kind::Switch, _) => return Err(expected("true or false; write one of them")),
        (Kind::Integer, Value::Number(number)) if number.is_i64() => number.to_string(),
        (Kind::Integer, _) => return Err(expected("a whole number; write digits alone")),
        (Kind::Number | Kind::Time | Kind::Size, Value::Number(number)) => number.to_string(),
        (Kind::Number, _) => return Err(expected("a number; write digits alone")),
        (Kind::Duration | Kind::Time, Value::String(text)) if nanoseconds(text).is_some() => {
            text.clone()
        }
        (Kind::Duration | Kind::Time, _) => {
            return Err(expected("a time with its unit; write it as 30s, 1m30s or 250ms"));
        }
        (Kind::Size, Value::String(text)) => text.clone(),
        (Kind::Size, _) => return Err(expected("a size; write it as 64Ki")),
        (Kind::Gates, Value::Mapping(gates)) => {
            let gate = |(name, on): (&Value, &Value)| {
                Some(format!("{}={}", name.as_str()?, on.as_bool()?))
            };
            let gates: Option<Vec<String>> = gates.iter().map(gate).collect();
            let what = "a list of names with true or false; write `NAME: true` for each";
            gates.ok_or_else(|| expected(what))?.join(",")
        }
        (Kind::Gates, _) => {
            return Err(expected(
                "a list of names with true or false; write `NAME: true` for each",
            ));
        }
        (Kind::Anything, Value::Sequence(items)) if items.is_empty() => String::new(),
        (Kind::Anything, other) => shown(other),
    };
    Ok(Some(text))
}

fn asks_for_something(field: &Field, text: &str) -> bool {
    let is_default = |default: &&str| match field.kind {
        Kind::Duration | Kind::Time => {
            *default == text || nanoseconds(default).is_some_and(|it| Some(it) == nanoseconds(text))
        }
        _ => *default == text,
    };
    match field.treatment {
        Treatment::Used(_) => !text.is_empty(),
        Treatment::Ignored(..) => !field.defaults.iter().any(is_default),
    }
}

/// A time as Go's `time.ParseDuration` reads it.
fn nanoseconds(text: &str) -> Option<u128> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(digits);
        let end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let unit = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        sum += number.parse::<f64>().ok()? * unit;
        rest = behind;
    }
    (!text.is_empty()).then_some(sum as u128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("24h0m0s", Some(86_400_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("250ms", Some(250_000_000)),
            ("", None),
            ("30", None),
            ("30 s", None),
            ("5d", None),
            ("-1s", None),
            ("s", None),
        ] {
            assert_eq!(nanoseconds(text), expected, "{text:?}");
        }
    }

    fn read(text: &str) -> Result<Values, Fault> {
        values(&serde_yaml_ng::from_str(text).unwrap())
    }

    #[test]
    fn what_asks_for_nothing_is_not_told() {
        for text in [
            "",
            "iptables:",
            "iptables: {syncPeriod: 30s, minSyncPeriod: 1000ms, masqueradeBit: 14, localhostNodePorts: true}",
            "conntrack: {maxPerCore: null, min: 131072, tcpEstablishedTimeout: 24h0m0s, tcpBeLiberal: false}",
            "nodePortAddresses: []",
            "clientConnection: {qps: 5, burst: 10, kubeconfig: '', contentType: application/vnd.kubernetes.protobuf}",
            "logging: {flushFrequency: 0, vmodule: [], options: {text: {infoBufferSize: '0'}}}",
            "featureGates: {}",
            "configSyncPeriod: 15m0s",
        ] {
            assert_eq!(read(text), Ok(Values::new()), "{text}");
        }
    }

    #[test]
    fn what_asks_for_something_is_told_with_its_path_and_value() {
        for (text, path, value) in [
            ("iptables: {localhostNodePorts: false}", "iptables.localhostNodePorts", "false"),
            ("iptables: {masqueradeBit: 0}", "iptables.masqueradeBit", "0"),
            (
                "nodePortAddresses: [10.0.0.0/8, 'fd00::/8']",
                "nodePortAddresses",
                "10.0.0.0/8,fd00::/8",
            ),
            ("mode: iptables", "mode", "iptables"),
            ("featureGates: {A: true, B: false}", "featureGates", "A=true,B=false"),
            ("conntrack: {udpTimeout: 1m}", "conntrack.udpTimeout", "1m"),
            ("oomScoreAdj: 0", "oomScoreAdj", "0"),
        ] {
            assert_eq!(read(text), Ok([(path, value.to_owned())].into()), "{text}");
        }
    }

    #[test]
    fn a_value_that_the_field_cannot_have_is_named_with_the_remedy() {
        for (text, path, words) in [
            ("clusterCidr: 10.0.0.0/8", "clusterCidr", "write clusterCIDR"),
            ("masqueradeAll: true", "masqueradeAll", "write iptables.masqueradeAll"),
            ("iptables: {fast: true}", "iptables.fast", "no such field"),
            ("iptables: yes", "iptables", "has fields of its own"),
            (
                "iptables: {masqueradeBit: high}",
                "iptables.masqueradeBit",
                "\"high\" is not a whole number",
            ),
            ("iptables: {masqueradeAll: 1}", "iptables.masqueradeAll", "1 is not true or false"),
            ("iptables: {syncPeriod: 30}", "iptables.syncPeriod", "30 is not a time with its unit"),
            ("mode: kernelspace", "mode", "not one of iptables, ipvs, nftables"),
            ("nodePortAddresses: primary", "nodePortAddresses", "\"primary\" is not a list"),
            ("hostnameOverride: 1", "hostnameOverride", "1 is not text"),
            ("featureGates: {A: maybe}", "featureGates", "true or false"),
        ] {
            let fault = read(text).expect_err(text);
            assert_eq!(fault.field, path, "{fault:?}");
            assert!(fault.reason.contains(words) && fault.reason.contains("; "), "{fault:?}");
        }
    }
}
