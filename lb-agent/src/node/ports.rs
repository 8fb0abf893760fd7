//! Which source ports we may use for clients whose endpoint is on another node.
//!
//! A port that the kernel may hand to a local socket, or that is a NodePort, must not be one of
//! ours: replies to it would be taken for replies to our flow. Ports of listening sockets are
//! checked by the datapath for each flow; this module only chooses a range that avoids most of
//! them.

use std::ops::RangeInclusive;

/// The API server's default `--service-node-port-range`.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Below are the ports of privileged services.
const USABLE: RangeInclusive<u16> = 1_024..=u16::MAX;
/// Fewer ports than this exhaust at once.
const ENOUGH: usize = 256;

const LOCAL_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Why no range could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// A file of the kernel couldn't be read.
    #[error("read {file}: {source}; give the ports with --snat-port-range")]
    Read {
        /// Path.
        file: &'static str,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A file of the kernel has another form than known.
    #[error("{file} holds {content:?}, which isn't known; give the ports with --snat-port-range")]
    Parse {
        /// Path.
        file: &'static str,
        /// What it holds.
        content: String,
    },
    /// Nothing is left.
    #[error(
        "net.ipv4.ip_local_port_range and ip_local_reserved_ports leave fewer than {ENOUGH} \
         adjacent ports outside the NodePorts; make them smaller, or give --snat-port-range"
    )]
    NoneLeft,
}

/// Chooses the range for this network namespace (the settings hold for IPv6 too).
pub fn snat_ports() -> Result<RangeInclusive<u16>, PortsError> {
    let read =
        |file| std::fs::read_to_string(file).map_err(|source| PortsError::Read { file, source });
    let (local, reserved) = (read(LOCAL_RANGE)?, read(RESERVED)?);
    let local_range =
        parse_local_range(&local).ok_or(PortsError::Parse { file: LOCAL_RANGE, content: local })?;
    let reserved_ranges =
        parse_reserved(&reserved).ok_or(PortsError::Parse { file: RESERVED, content: reserved })?;
    choose(&local_range, &reserved_ranges).ok_or(PortsError::NoneLeft)
}

/// The widest range that is outside all others; the higher one of equals.
pub fn choose(
    local_range: &RangeInclusive<u16>,
    reserved: &[RangeInclusive<u16>],
) -> Option<RangeInclusive<u16>> {
    let is_free = |port: &u16| {
        !local_range.contains(port)
            && !NODE_PORTS.contains(port)
            && !reserved.iter().any(|range| range.contains(port))
    };
    let free: Vec<u16> = USABLE.filter(is_free).collect();
    free.chunk_by(|a, b| a + 1 == *b)
        .filter(|run| run.len() >= ENOUGH)
        .max_by_key(|run| run.len())
        .and_then(|run| Some(*run.first()?..=*run.last()?))
}

/// `32768\t60999`.
fn parse_local_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.trim().split_once(char::is_whitespace)?;
    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
}

/// `8080,9148-9150`; empty without any.
fn parse_reserved(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let range = |item: &str| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.trim().split(',').filter(|item| !item.is_empty()).map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_range_outside_local_ports_nodeports_and_reserved_ports_is_chosen() {
        for (local, reserved, expected) in [
            ("32768\t60999", "", Some(1024..=29_999)),
            ("1024 65535", "", None),
            ("1024 60999", "", Some(61_000..=65_535)),
            ("32768 60999", "8080,9148-9150", Some(9_151..=29_999)),
            ("1024 29999", "", Some(32_768..=65_535)),
            ("1024 65400", "", None),
        ] {
            let local_range = parse_local_range(local).unwrap();
            let reserved_ranges = parse_reserved(reserved).unwrap();
            assert_eq!(choose(&local_range, &reserved_ranges), expected, "{local:?} {reserved:?}");
        }
    }

    #[test]
    fn content_of_another_form_is_not_guessed_at() {
        for text in ["", "32768", "a b", "1 70000"] {
            assert_eq!(parse_local_range(text), None, "{text:?}");
        }
        for text in ["x", "1-", "70000"] {
            assert_eq!(parse_reserved(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_running_kernels_settings_are_understood() {
        let ports = snat_ports().expect("this kernel leaves a range");
        assert!(*ports.start() >= 1024 && ports.len() >= ENOUGH);
    }
}
