//! Removes a clsact qdisc that we made, unless somebody else uses it by now.

use std::io;

use futures::TryStreamExt as _;
use netlink_packet_route::tc::TcHandle;
use rtnetlink::{Error, Handle};

/// Removes the qdisc of a device if no filter is left on it; whether it was removed.
pub(super) fn remove_if_empty(device: u32) -> io::Result<bool> {
    // On a thread of its own: the caller may be inside another runtime. It is in the same network
    // namespace, as all new threads of this one.
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let result = remove(&handle, device.cast_signed()).await;
            connection.abort();
            result.map_err(to_io)
        })
    });
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
}

async fn remove(handle: &Handle, device: i32) -> Result<bool, Error> {
    let filters = || handle.traffic_filter(device).get();
    for request in [filters().ingress(), filters().egress()] {
        let mut others = std::pin::pin!(request.execute());
        if others.try_next().await?.is_some() {
            return Ok(false);
        }
    }
    let mut request = handle.qdisc().del(device);
    let header = &mut request.message_mut().header;
    header.handle = TcHandle { major: u16::MAX, minor: 0 };
    header.parent = TcHandle::CLSACT;
    request.execute().await?;
    Ok(true)
}

fn to_io(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
