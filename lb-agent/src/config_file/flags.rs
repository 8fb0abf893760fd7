//! What is said when somebody gives `lb-agent run` a flag of kube-proxy that it doesn't have: a manifest that
//! is rewritten for this agent still has them.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::fields::{FIELDS, Treatment};

/// Flags of kube-proxy without a field in its file, and what there is here.
const OTHERS: [(&str, &str); 10] = [
    ("cleanup", "`lb-agent cleanup` removes what this agent made"),
    ("init-only", "leave it out: the agent needs its capabilities as long as it runs"),
    (
        "write-config-to",
        "leave it out: the agent's settings are its flags, see `lb-agent run --help`",
    ),
    ("healthz-port", "give --healthz-bind-address 0.0.0.0:PORT"),
    ("metrics-port", "give --metrics-bind-address 127.0.0.1:PORT"),
    ("proxy-mode", "leave it out: there is one mode, eBPF"),
    (
        "detect-local-mode",
        "leave it out: pods are told from other sources by device and socket, in every mode",
    ),
    ("pod-interface-name-prefix", "give --pod-devices PREFIX*"),
    ("v", "give --log-level debug, or trace"),
    ("version", "`lb-agent --version` tells it"),
];

/// The error of the command line, with a word about kube-proxy's flag if it is about one.
pub fn explain(mut error: clap::Error) -> clap::Error {
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg)
        && let Some(text) = remedy(argument)
    {
        // What clap suggests by the look of the name is something else.
        error.remove(ContextKind::SuggestedArg);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![text.into()]));
    }
    error
}

fn remedy(argument: &str) -> Option<String> {
    let flag = argument.trim_start_matches('-').split('=').next().unwrap_or_default();
    let other = OTHERS.iter().find(|(name, _)| *name == flag);
    let text = match other {
        Some((_, text)) => (*text).to_owned(),
        None => {
            let field = FIELDS.iter().find(|field| !flag.is_empty() && field.flag == flag)?;
            let Treatment::Ignored(_, why) = field.treatment else { return None };
            format!("leave it out: {why}")
        }
    };
    Some(format!("--{flag} is a flag of kube-proxy; {text}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Args;

    #[test]
    fn a_flag_of_kube_proxy_is_explained_and_another_is_not() {
        for (flag, words) in [
            ("--pod-interface-name-prefix=cali", "--pod-devices PREFIX*"),
            ("--proxy-mode=ipvs", "there is one mode, eBPF"),
            ("--conntrack-max-per-core=0", "conntrack settings"),
            ("--detect-local-mode=NodeCIDR", "told from other sources"),
            ("--cleanup", "`lb-agent cleanup`"),
            ("--v=4", "--log-level debug"),
        ] {
            let error = Args::try_parse_from(["lb-agent", "run", flag]).expect_err(flag);
            let text = explain(error).to_string();
            assert!(text.contains("is a flag of kube-proxy; ") && text.contains(words), "{text}");
        }
        let error = Args::try_parse_from(["lb-agent", "run", "--fast"]).expect_err("no such flag");
        assert!(!explain(error).to_string().contains("kube-proxy"));
    }

    #[test]
    fn flags_that_both_have_need_no_word() {
        for flag in
            ["--config", "--kubeconfig", "--master", "--hostname-override", "--cluster-cidr"]
        {
            assert!(Args::try_parse_from(["lb-agent", "run", flag, "x"]).is_ok(), "{flag}");
        }
        for flag in ["--masquerade-all", "--masquerade-all=true", "--masquerade-all=false"] {
            assert!(Args::try_parse_from(["lb-agent", "run", flag]).is_ok(), "{flag}");
        }
    }
}
