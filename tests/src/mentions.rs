//! The commands that running text of the documents mentions, often without all that they need. Shared with
//! the tests of `cargo xtask`, so it may use nothing but std.

use crate::documents::{PROGRAMS, Shown, in_documents, words};

/// What running text tells a reader to run besides.
const TOOLS: [&str; 8] =
    ["ip", "tcpdump", "conntrack", "traceroute", "sysctl", "nft", "iptables", "kube-proxy"];

/// Every one that has a word at least behind the program's name.
#[must_use]
pub fn mentions() -> Vec<Shown> {
    in_documents(of)
}

/// Between single backticks, which may be on two lines.
fn of(text: &str) -> Vec<Vec<String>> {
    let mut fenced = false;
    let running = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        !fenced && !is_fence
    });
    let running = running.map(str::trim).collect::<Vec<_>>().join("\n");
    let is_known = |name: &String| PROGRAMS.iter().chain(&TOOLS).any(|known| name == known);
    running
        .split("\n\n")
        .flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2))
        .map(|code| words(&code.replace('\n', " ")))
        .filter(|words| words.len() > 1 && words.first().is_some_and(is_known))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mentions_are_found_in_running_text_alone() {
        let text =
            "Say `lb-agent a\n--b`, not `lb-agent` or `c d`.\n```\nlb-agent no\n```\n| `ip e` |\n";
        let expected: [&[&str]; 2] = [&["lb-agent", "a", "--b"], &["ip", "e"]];
        assert_eq!(of(text), expected);
    }
}
