//! Addresses as Kubernetes reads them (`netutils.ParseIPSloppy`): leading zeros are decimal.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An address; an IPv4 address in IPv6 form is an IPv4 address.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return dotted(text).map(IpAddr::V4);
    }
    let groups = match text.split_once("::") {
        None => groups(text)?,
        Some((before, after)) => {
            let (mut before, after) = (groups(before)?, groups(after)?);
            let missing = 8usize.checked_sub(before.len() + after.len()).filter(|n| *n > 0)?;
            before.extend(std::iter::repeat_n(0, missing));
            before.extend(after);
            before
        }
    };
    let groups: [u16; 8] = groups.try_into().ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(groups)).to_canonical())
}

/// A CIDR without its host bits, white space around it.
pub(super) fn cidr(text: &str) -> Option<IpNet> {
    let (network, length) = text.trim().split_once('/')?;
    let length = number(length, 10, 128)?;
    Some(IpNet::new(address(network)?, u8::try_from(length).ok()?).ok()?.trunc())
}

/// An address that a Service can have: somebody outside a node can send to it, and it means one host.
pub(super) fn is_unicast(address: IpAddr) -> bool {
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast)
}

/// An address that an endpoint can have (`ValidateEndpointIP` of the API server).
pub(super) fn is_endpoint(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.octets().starts_with(&[169, 254]),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    };
    is_unicast(address) && !link_local
}

fn dotted(text: &str) -> Option<Ipv4Addr> {
    let octets: Option<Vec<u32>> = text.split('.').map(|part| number(part, 10, 255)).collect();
    let octets: Vec<u8> =
        octets?.into_iter().filter_map(|octet| u8::try_from(octet).ok()).collect();
    <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from)
}

/// The 16-bit groups between colons; the last may be two, in dotted form.
fn groups(text: &str) -> Option<Vec<u16>> {
    let mut groups = Vec::new();
    if text.is_empty() {
        return Some(groups);
    }
    for part in text.split(':') {
        if part.contains('.') {
            let [a, b, c, d] = dotted(part)?.octets();
            groups.extend([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]);
        } else {
            groups.push(u16::try_from(number(part, 16, 0xffff)?).ok()?);
        }
    }
    Some(groups)
}

/// Digits alone, as many leading zeros as they like.
fn number(text: &str, radix: u32, most: u32) -> Option<u32> {
    let mut value = None;
    for digit in text.chars() {
        let so_far = value.unwrap_or(0) * radix + digit.to_digit(radix)?;
        value = Some(so_far).filter(|value| *value <= most);
        value?;
    }
    value
}
