//! Netlink, as little of it as this project needs: messages with nested attributes out, messages and attributes in.
//!
//! Own code instead of a crate because the same few lines serve rtnetlink and nf_tables, and because an attribute that is
//! unknown or odd must never cost the whole message. It knows no protocol: kinds and attribute numbers are its users'.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};

const HEADER_LEN: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_DUMP`.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_EXCL`.
pub(crate) const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(crate) const APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const ALIGNMENT: usize = 4;

/// One message under construction.
#[derive(Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of a kind, with the fixed header its protocol puts before attributes.
    pub(crate) fn new(kind: u16, flags: u16, sequence: u32, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(header);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// An attribute with these bytes as its value.
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let len = (value.len() + 4) as u16;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// A zero-terminated string.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut terminated = Vec::from(value.as_bytes());
        terminated.push(0);
        self.bytes(kind, &terminated)
    }

    /// A 32-bit integer in *host order* (rtnetlink).
    pub(crate) fn u32_host(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A 32-bit integer in *network order* (nf_tables).
    pub(crate) fn u32_network(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// An attribute whose value is what `fill` appends.
    pub(crate) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        let mut filled = fill(self);
        let len = (filled.bytes.len() - start) as u16;
        filled.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        filled
    }

    /// The finished message.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes
    }
}

/// One message as received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    /// Message kind.
    pub(crate) kind: u16,
    /// Sequence number of the request it answers; 0 for notifications.
    pub(crate) sequence: u32,
    /// What follows the netlink header.
    pub(crate) payload: &'a [u8],
}

impl Received<'_> {
    /// The result an acknowledgement carries; `None` if it is another kind of message.
    fn acknowledgement(&self) -> Option<io::Result<()>> {
        if self.kind != NLMSG_ERROR {
            return None;
        }
        Some(match u32_at(self.payload, 0).unwrap_or_default().cast_signed() {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(-code)),
        })
    }
}

/// The messages of one datagram.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let len = u32_at(datagram, 0)? as usize;
        let payload = datagram.get(HEADER_LEN..len)?;
        let kind = u16_at(datagram, 4)?;
        let sequence = u32_at(datagram, 8)?;
        datagram = datagram.get(len.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(Received { kind, sequence, payload })
    })
}

/// The attributes in `bytes`, as `(kind, value)`; what is cut short ends the list.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The 16-bit integer in *host order* at an offset.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The 32-bit integer in *host order* at an offset.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The string in an attribute, without its terminating zero.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A netlink socket in the network namespace of the calling thread.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// A socket of a netlink protocol, subscribed to multicast groups (a mask of `1 << (group - 1)`).
    pub(crate) fn open(protocol: SockProtocol, groups: u32, flags: SockFlag) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags | SockFlag::SOCK_CLOEXEC, protocol)?;
        // Bursts of interface changes come with every rollout; the kernel charges notifications to this buffer.
        setsockopt(&fd, sockopt::RcvBuf, &(1 << 20))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { fd })
    }

    /// Sends one datagram.
    pub(crate) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let sent = send(self.fd.as_raw_fd(), datagram, MsgFlags::empty())?;
        if sent == datagram.len() { Ok(()) } else { Err(io::Error::other("netlink took only a part of a message")) }
    }

    /// Receives one datagram.
    pub(crate) fn receive(&self) -> io::Result<Vec<u8>> {
        // The kernel sizes dump datagrams by the receiver's buffer, 32 KiB at most (`netlink_dump`, net/netlink/af_netlink.c).
        let mut buffer = vec![0; 64 << 10];
        let len = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        buffer.truncate(len);
        Ok(buffer)
    }

    /// Sends a datagram whose last message is numbered `last` and asks for acknowledgements, and waits for the first
    /// error, or for that last acknowledgement.
    pub(crate) fn request(&self, datagram: &[u8], last: u32) -> io::Result<()> {
        self.send(datagram)?;
        loop {
            for message in messages(&self.receive()?) {
                match message.acknowledgement() {
                    Some(Err(error)) => return Err(error),
                    Some(Ok(())) if message.sequence == last => return Ok(()),
                    _ => {}
                }
            }
        }
    }

    /// Sends a dump request and passes each message of the answer to `each`.
    pub(crate) fn dump(&self, request: &[u8], each: &mut dyn FnMut(Received<'_>)) -> io::Result<()> {
        self.send(request)?;
        loop {
            for message in messages(&self.receive()?) {
                match message.acknowledgement() {
                    Some(result) => return result,
                    None if message.kind == NLMSG_DONE => {
                        return match u32_at(message.payload, 0).unwrap_or_default().cast_signed() {
                            code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                            _ => Ok(()),
                        };
                    }
                    None => each(message),
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let message = Message::new(16, REQUEST, 7, &[1, 2])
            .text(3, "eth0")
            .nested(18, |inner| inner.u32_host(1, 5).u32_network(2, 6))
            .finish();
        assert_eq!(message.len() % 4, 0);
        let received: Vec<_> = messages(&message).collect();
        assert_eq!(received.len(), 1);
        assert_eq!((received[0].kind, received[0].sequence), (16, 7));
        let top: Vec<_> = attributes(&received[0].payload[4..]).collect();
        assert_eq!(top.len(), 2);
        assert_eq!((top[0].0, text(top[0].1)), (3, "eth0".to_owned()));
        let inner: Vec<_> = attributes(top[1].1).collect();
        assert_eq!(inner, [(1, &5_u32.to_ne_bytes()[..]), (2, &6_u32.to_be_bytes()[..])]);
    }

    #[test]
    fn what_is_cut_short_ends_the_list_and_nothing_else() {
        let message = Message::new(16, REQUEST, 7, &[0; 4]).text(3, "eth0").text(4, "eth1").finish();
        for len in 0..message.len() {
            assert_eq!(messages(&message[..len]).count(), 0, "a message of {len} bytes");
        }
        let attribute_bytes = &message[20..];
        assert_eq!(attributes(&attribute_bytes[..attribute_bytes.len() - 4]).count(), 1);
        assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0);
    }
}
