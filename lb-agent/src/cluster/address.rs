//! Addresses and CIDRs as Kubernetes has always read them: leading zeros are decimal.
//!
//! Decides what text is an address, and which addresses may be frontends or endpoints. Objects
//! stored before strict validation hold `172.30.0.041`, and kube-proxy reads it as `.41`
//! (`netutils.ParseIPSloppy`); the standard library refuses it. Knows nothing of objects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Parses an address: IPv4 octets and IPv6 groups may have leading zeros (decimal, hexadecimal),
/// v4-mapped IPv6 is the IPv4 address it holds, zones are refused.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') { parse_v6(text) } else { parse_v4(text).map(IpAddr::V4) }
}

/// Parses a CIDR with the same tolerance (surrounding whitespace too); host bits are cleared.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    let length = parse_decimal(length, 128)?;
    match parse_ip(address)? {
        IpAddr::V4(v4) if !address.contains(':') => {
            Some(IpNet::V4(Ipv4Net::new(v4, length).ok()?.trunc()))
        }
        // ::ffff:192.0.2.0/120 is 192.0.2.0/24; a shorter prefix covers more than IPv4.
        IpAddr::V4(v4) => Some(IpNet::V4(Ipv4Net::new(v4, length.checked_sub(96)?).ok()?.trunc())),
        IpAddr::V6(v6) => Some(IpNet::V6(Ipv6Net::new(v6, length).ok()?.trunc())),
    }
}

/// Why `address` can't be the address of a Service; `None` when it can.
///
/// An unspecified address is the NodePort wildcard of our own tables, loopback would capture the
/// node's private traffic, and nobody connects to multicast or broadcast.
pub fn unfit_frontend(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("a multicast or broadcast address")
    } else {
        None
    }
}

/// Why `address` can't be an endpoint; `None` when it can. The API server's own list
/// (`ValidateEndpointIP`), which manifests and old objects have not passed.
pub fn unfit_endpoint(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link_local { Some("a link-local address") } else { unfit_frontend(address) }
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = parse_decimal(parts.next()?, 255)?;
    }
    parts.next().is_none().then_some(Ipv4Addr::from(octets))
}

fn parse_v6(text: &str) -> Option<IpAddr> {
    let address = match text.parse::<Ipv6Addr>() {
        Ok(address) => address,
        Err(_) => strip_zeros(text)?.parse().ok()?,
    };
    Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4))
}

/// `0fd00::00001:010.0.0.01` → `fd00::1:10.0.0.1`; `None` when nothing can make it an address.
fn strip_zeros(text: &str) -> Option<String> {
    let mut groups = Vec::new();
    for group in text.split(':') {
        groups.push(if group.contains('.') {
            parse_v4(group)?.to_string()
        } else if group.is_empty() {
            String::new()
        } else {
            let digits = group.trim_start_matches('0');
            if digits.is_empty() { "0".to_owned() } else { digits.to_owned() }
        });
    }
    Some(groups.join(":"))
}

/// Digits only (no sign, no space), leading zeros allowed, at most `max`.
fn parse_decimal(text: &str, max: u8) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = text.trim_start_matches('0');
    let value: u8 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    (value <= max).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kube_proxy_reads_them() {
        let table = [
            ("172.30.0.041", Some("172.30.0.41")),
            ("010.0.0.1", Some("10.0.0.1")),
            ("0000000010.0.0.1", Some("10.0.0.1")),
            ("10.0.0.0", Some("10.0.0.0")),
            ("fd00:10:96::1", Some("fd00:10:96::1")),
            ("fd00:0010:00096::00001", Some("fd00:10:96::1")),
            ("FD00::A", Some("fd00::a")),
            ("64:ff9b::010.0.0.01", Some("64:ff9b::a00:1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::ffff:010.0.0.041", Some("10.0.0.41")),
            ("::", Some("::")),
            ("", None),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.256", None),
            ("10.0.0.+1", None),
            ("10.0.0. 1", None),
            ("10.0.0.0x1", None),
            ("fe80::1%eth0", None),
            ("fd00::12345", None),
            ("fd00:::1", None),
            ("10.0.0.99999999999999999999", None),
            ("not an address", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|text| text.parse::<IpAddr>().unwrap());
            assert_eq!(parse_ip(text), expected, "{text:?}");
        }
    }

    #[test]
    fn cidrs_are_read_as_kube_proxy_reads_them() {
        let table = [
            ("203.0.113.000/025", Some("203.0.113.0/25")),
            (" 203.0.113.0/24\t", Some("203.0.113.0/24")),
            ("203.0.113.77/24", Some("203.0.113.0/24")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("::/0", Some("::/0")),
            ("fd00:0000:0::1/064", Some("fd00::/64")),
            ("::ffff:192.0.2.0/120", Some("192.0.2.0/24")),
            ("::ffff:192.0.2.0/64", None),
            ("203.0.113.0", None),
            ("203.0.113.0/33", None),
            ("203.0.113.0/", None),
            ("203.0.113.0/-1", None),
            ("fd00::/129", None),
            ("fd00::/999", None),
            ("", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|text| text.parse::<IpNet>().unwrap());
            assert_eq!(parse_cidr(text), expected, "{text:?}");
        }
    }

    #[test]
    fn endpoints_exclude_what_the_api_server_refuses() {
        for text in ["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "::", "::1", "fe80::1"] {
            assert!(unfit_endpoint(parse_ip(text).unwrap()).is_some(), "{text}");
        }
        for text in ["10.0.0.1", "203.0.113.10", "fd00::1", "2001:db8::1"] {
            assert_eq!(unfit_endpoint(parse_ip(text).unwrap()), None, "{text}");
        }
        // A load balancer VIP may be link-local (some clouds do that); it is no endpoint.
        assert_eq!(unfit_frontend(parse_ip("169.254.1.1").unwrap()), None);
    }
}
