//! `NETLINK_NETFILTER`: dumps, and batches that are carried out whole or not at all. `NETLINK_GENERIC`, whose
//! messages look the same: a family of commands stands where a subsystem's message is named, and a
//! command where netfilter has the family of addresses.
//!
//! The messages are those of include/uapi/linux/netfilter/nfnetlink.h and genetlink.h.

use std::os::fd::{AsRawFd as _, OwnedFd};

use netlink_packet_core::{DefaultNla, Emitable as _, NlaBuffer, NlasIterator};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    setsockopt, socket, sockopt::SndBufForce,
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// A new object, and an error if there is one. (Without `NLM_F_EXCL`, conntrack changes whatever has the
/// same answers: a connection of the other proxy in TIME_WAIT, port and all, is open again.)
pub(super) const NLM_F_CREATE_EXCL: u16 = 0x400 | 0x200;
/// An attribute that holds attributes.
const NLA_F_NESTED: u16 = 1 << 15;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `struct nlmsghdr`, and `struct nfgenmsg` or `struct genlmsghdr`.
const HEADERS: usize = 16 + 4;
/// As large as the kernel's own buffer for a dump.
const BUFFER: usize = 64 << 10;
/// What the kernel counts beside a datagram's bytes.
const HEADROOM: usize = 4 << 10;

/// So many orders go to the kernel at once: their acknowledgements have to fit in the socket's buffer.
const AT_ONCE: usize = 64;

/// One order: kind of message, family of addresses (or command), attributes.
pub(super) struct Order {
    pub kind: u16,
    pub family: u8,
    pub attributes: Vec<u8>,
}

/// A socket to the kernel, in the network namespace of the thread that opened it.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// To netfilter.
    pub fn netfilter() -> Result<Self, Errno> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    /// To the families of commands.
    pub fn generic() -> Result<Self, Errno> {
        Self::open(SockProtocol::NetlinkGeneric)
    }

    fn open(protocol: SockProtocol) -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        // To the kernel, and from nobody else.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Calls `visit` with the family and the attributes of each object of a dump.
    pub fn dump(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &[u8],
        visit: impl FnMut(u8, &[u8]),
    ) -> Result<(), Errno> {
        self.request(NLM_F_DUMP, kind, family, attributes, visit)
    }

    /// Calls `visit` with each answer to a question.
    pub fn ask(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &[u8],
        visit: impl FnMut(u8, &[u8]),
    ) -> Result<(), Errno> {
        self.request(NLM_F_ACK, kind, family, attributes, visit)
    }

    fn request(
        &mut self,
        flags: u16,
        kind: u16,
        family: u8,
        attributes: &[u8],
        mut visit: impl FnMut(u8, &[u8]),
    ) -> Result<(), Errno> {
        let sequence = self.next();
        let request = message(kind, flags, sequence, family, 0, attributes);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        self.listen(sequence, |body| {
            if let Some((head, attributes)) = body.split_at_checked(4) {
                visit(head.first().copied().unwrap_or_default(), attributes);
            }
        })
    }

    /// Carries out all orders of a subsystem, or none.
    pub fn batch(&mut self, subsystem: u16, orders: &[Order]) -> Result<(), Errno> {
        let begin = self.next();
        let mut bytes = message(BATCH_BEGIN, 0, begin, 0, subsystem, &[]);
        for Order { kind, family, attributes } in orders {
            let sequence = self.next();
            bytes.extend(message(*kind, 0, sequence, *family, 0, attributes));
        }
        // The last order's acknowledgement comes after everything was done.
        let end = self.next();
        bytes.extend(message(BATCH_END, NLM_F_ACK, end, 0, subsystem, &[]));
        // One datagram, however many rules there are: thousands of Services are megabytes.
        let room = bytes.len() + HEADROOM;
        setsockopt(&self.socket, SndBufForce, &room)?;
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        self.listen_for_batch(begin, end)
    }

    /// Carries out orders one by one, each with these flags; what became of each.
    pub fn each(&mut self, flags: u16, orders: &[Order]) -> Result<Vec<Result<(), Errno>>, Errno> {
        let mut outcomes = Vec::with_capacity(orders.len());
        for part in orders.chunks(AT_ONCE) {
            let mut sequences = Vec::with_capacity(part.len());
            let mut bytes = Vec::new();
            for Order { kind, family, attributes } in part {
                let sequence = self.next();
                sequences.push(sequence);
                bytes.extend(message(*kind, NLM_F_ACK | flags, sequence, *family, 0, attributes));
            }
            send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
            for sequence in sequences {
                outcomes.push(self.listen(sequence, |_| {}));
            }
        }
        Ok(outcomes)
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    fn listen(&self, wanted: u32, mut visit: impl FnMut(&[u8])) -> Result<(), Errno> {
        let mut buffer = vec![0; BUFFER];
        let mut is_torn = false;
        loop {
            let length = self.receive(&mut buffer)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, flags, sequence, body, behind)) = split(rest) {
                rest = behind;
                if sequence != wanted {
                    continue;
                }
                is_torn |= flags & NLM_F_DUMP_INTR != 0;
                match kind {
                    // Rules that change while they are listed: the caller asks again.
                    NLMSG_DONE if is_torn => return Err(Errno::EAGAIN),
                    NLMSG_ERROR | NLMSG_DONE => return outcome(body),
                    _ => visit(body),
                }
            }
        }
    }

    /// The first error is the batch's: after it the kernel takes everything back.
    fn listen_for_batch(&self, begin: u32, end: u32) -> Result<(), Errno> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => continue,
                // nf_tables before 6.10 acknowledges no end; a batch is done when `send` returns.
                Err(Errno::EAGAIN) => return Ok(()),
                other => other?,
            };
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, _, sequence, body, behind)) = split(rest) {
                rest = behind;
                if kind == NLMSG_ERROR && (begin..=end).contains(&sequence) {
                    outcome(body)?;
                }
            }
        }
    }
}

/// The kernel has no such subsystem: there is nothing to list.
pub(super) fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL)
}

fn outcome(body: &[u8]) -> Result<(), Errno> {
    let errno = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if errno == 0 { Ok(()) } else { Err(Errno::from_raw(-errno)) }
}

fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    attributes: &[u8],
) -> Vec<u8> {
    let length = (HEADERS + attributes.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

type Split<'a> = (u16, u16, u32, &'a [u8], &'a [u8]);

/// Kind, flags, sequence and body of the first message, and what is behind it.
fn split(datagram: &[u8]) -> Option<Split<'_>> {
    let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*datagram.get(4..)?.first_chunk()?);
    let flags = u16::from_ne_bytes(*datagram.get(6..)?.first_chunk()?);
    let sequence = u32::from_ne_bytes(*datagram.get(8..)?.first_chunk()?);
    let body = datagram.get(16..length)?;
    let behind = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, flags, sequence, body, behind))
}

/// An attribute, ready to be sent.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// An attribute that holds others.
pub(super) fn nested(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    attribute(NLA_F_NESTED | kind, &attributes.concat())
}

/// An attribute that is a name.
pub(super) fn name(kind: u16, value: &str) -> Vec<u8> {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    attribute(kind, &bytes)
}

/// The value of the attribute `kind` among `attributes`.
pub(super) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    all(attributes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// All attributes.
pub(super) fn all(attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(attributes).map_while(Result::ok).map(|nla: NlaBuffer<&[u8]>| {
        let (kind, length) = (nla.kind(), nla.value_length());
        let value = nla.into_inner();
        (kind, value.get(4..4 + length).unwrap_or_default())
    })
}

/// The text of an attribute that is a name.
pub(super) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.split(|byte| *byte == 0).next()?).ok()
}
