//! The device that has every Service's address, so that the kernel takes in what is for these.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;

/// Its name.
pub const DEVICE: &str = "kube-ipvs0";

/// Addresses of this network namespace.
pub struct Addresses {
    /// Those of kube-proxy's device; `None` without one.
    pub of_device: Option<HashSet<IpAddr>>,
    /// Those of all others.
    pub own: HashSet<IpAddr>,
}

/// Looks at all devices; sysfs may be another namespace's.
pub fn addresses() -> io::Result<Addresses> {
    let of_device = if_nametoindex(DEVICE).is_ok().then(HashSet::new);
    let mut found = Addresses { of_device, own: HashSet::new() };
    for interface in getifaddrs()? {
        let address = interface.address.as_ref().and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        });
        let of = match &mut found.of_device {
            Some(of_device) if interface.interface_name == DEVICE => of_device,
            _ => &mut found.own,
        };
        of.extend(address);
    }
    Ok(found)
}

/// Removes it; gone already is fine.
pub fn remove() -> io::Result<()> {
    let index = match if_nametoindex(DEVICE) {
        Ok(index) => index,
        Err(Errno::ENODEV) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let removed = handle.link().del(index).execute().await;
        connection.abort();
        match removed {
            Err(rtnetlink::Error::NetlinkError(message)) => Err(message.to_io()),
            other => other.map_err(io::Error::other),
        }
    })
}
