//! The nf_tables rules of this project: packets that a program marked get an address of this node as their source.
//!
//! The kernel's own NAT chooses the source port, so it can collide with nobody's. A second chain clears the mark, which
//! would otherwise be copied to the outer packet of a tunnel: NAT chains only see the first packet of a connection, but
//! every packet is marked, so that a connection which conntrack has forgotten is masqueraded again. Nothing else is ever
//! written to nf_tables, and no `nft` is needed.
//!
//! ```text
//! table inet svc {
//!     chain masquerading {
//!         type nat hook postrouting priority 99
//!         meta mark & MARK == MARK  masquerade
//!     }
//!     chain unmark {
//!         type filter hook postrouting priority 101
//!         meta mark & MARK == MARK  meta mark set meta mark & ~MARK
//!     }
//! }
//! ```

use std::io;

use nix::{
    errno::Errno,
    sys::socket::{SockFlag, SockProtocol},
};

use crate::netlink::{ACK, APPEND, CREATE, DUMP, Message, REQUEST, Socket, attributes, text};

/// Name of the table, family `inet`.
pub const TABLE: &str = "svc";
/// Not called `masquerade`, a word that nft's grammar keeps for itself: nobody could list or change the chain by name.
/// Just before the 100 at which other rules masquerade (`NF_IP_PRI_NAT_SRC`, uapi/linux/netfilter_ipv4.h).
const MASQUERADE: Chain = Chain { name: "masquerading", kind: "nat", priority: 99 };
/// Just after it.
const UNMARK: Chain = Chain { name: "unmark", kind: "filter", priority: 101 };

struct Chain {
    name: &'static str,
    kind: &'static str,
    priority: u32,
}

/// Why the rule cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum MasqueradeError {
    /// The kernel has no nf_tables, or no NAT for it.
    #[error(
        "nf_tables table inet {TABLE}: {0}: the kernel has no nf_tables NAT: load the modules nf_tables and nft_masq \
         (CONFIG_NF_TABLES_INET, CONFIG_NFT_MASQ)"
    )]
    Unsupported(io::Error),
    /// `CAP_NET_ADMIN` is missing.
    #[error("nf_tables table inet {TABLE}: {0}: run with the capability NET_ADMIN")]
    NotPermitted(io::Error),
    /// Anything else.
    #[error("nf_tables table inet {TABLE}: {0}: `nft list ruleset` shows what is there")]
    Other(io::Error),
}

impl From<io::Error> for MasqueradeError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => Self::NotPermitted(error),
            Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::ENOENT) => {
                Self::Unsupported(error)
            }
            _ => Self::Other(error),
        }
    }
}

/// Installs the rule for packets that carry `mark` (one bit of `skb->mark`), in the network namespace of the calling
/// thread. One transaction: whatever the table held before is replaced, and no packet sees anything in between.
pub fn install(mark: u32) -> Result<(), MasqueradeError> {
    let mut batch = Batch::new();
    batch.add(NEWTABLE, CREATE, table);
    batch.add(DELTABLE, 0, table);
    batch.add(NEWTABLE, CREATE, table);
    batch.add_chains(TABLE, mark);
    Ok(batch.commit()?)
}

/// Whether the table and a rule in both of its chains are there.
pub fn is_installed() -> Result<bool, MasqueradeError> {
    let socket = Socket::open(SockProtocol::NetlinkNetFilter, 0, SockFlag::empty())?;
    // nfgenmsg: family, version 0, resource 0.
    let request = table(Message::new(GETRULE, REQUEST | DUMP, 1, &[NFPROTO_INET, 0, 0, 0])).finish();
    let mut found = Vec::new();
    let dumped = socket.dump(&request, &mut |message| {
        let attribute = |wanted| {
            let mut all = attributes(message.payload.get(4..).unwrap_or_default());
            all.find(|(kind, _)| *kind == wanted).map(|(_, value)| text(value))
        };
        if attribute(1).as_deref() == Some(TABLE) {
            found.extend(attribute(2));
        }
    });
    match dumped {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
        Err(error) => Err(error.into()),
        Ok(()) => Ok([MASQUERADE, UNMARK].iter().all(|chain| found.iter().any(|found| found == chain.name))),
    }
}

/// Removes the table; true if there was one.
pub fn remove() -> Result<bool, MasqueradeError> {
    let mut batch = Batch::new();
    batch.add(DELTABLE, 0, table);
    match batch.commit() {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
        // No nf_tables at all: nothing of ours can be in it.
        Err(error) if matches!(error.raw_os_error(), Some(code) if code == Errno::EPROTONOSUPPORT as i32) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Tries whether the kernel would take the rule, without leaving it: a transaction that ends with its own removal.
pub(crate) fn probe() -> Result<(), MasqueradeError> {
    let name = "svc_probe";
    let renamed = |message: Message| message.text(1, name);
    let mut batch = Batch::new();
    batch.add(NEWTABLE, CREATE, renamed);
    batch.add_chains(name, 1);
    batch.add(DELTABLE, 0, renamed);
    Ok(batch.commit()?)
}

// uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = (SUBSYSTEM << 8) | 2;
const NEWCHAIN: u16 = (SUBSYSTEM << 8) | 3;
const NEWRULE: u16 = (SUBSYSTEM << 8) | 6;
const GETRULE: u16 = (SUBSYSTEM << 8) | 7;
const NFPROTO_INET: u8 = 1;
const HOOK_POSTROUTING: u32 = 4;
/// The first 32-bit register (`NFT_REG32_00`).
const REGISTER: u32 = 8;
const META_MARK: u32 = 3;

fn table(message: Message) -> Message {
    message.text(1, TABLE)
}

fn chain_of(message: Message, table: &str, chain: &Chain) -> Message {
    message
        .text(1, table)
        .text(3, chain.name)
        .nested(4, |hook| hook.u32_network(1, HOOK_POSTROUTING).u32_network(2, chain.priority))
        .text(7, chain.kind)
}

/// A rule of `chain` for packets that carry `mark`.
fn rule_of(message: Message, table: &str, chain: &Chain, mark: u32, then: fn(Message, u32) -> Message) -> Message {
    message.text(1, table).text(2, chain.name).nested(4, |list| {
        let list = expression(list, "meta", |e| e.u32_network(1, REGISTER).u32_network(2, META_MARK));
        let list = bitwise(list, mark);
        let list = expression(list, "cmp", |e| {
            // Register, operation "equal", value; a mark is compared in host order.
            e.u32_network(1, REGISTER).u32_network(2, 0).nested(3, |data| data.bytes(1, &mark.to_ne_bytes()))
        });
        then(list, mark)
    })
}

fn masquerade(list: Message, _mark: u32) -> Message {
    expression(list, "masq", |e| e)
}

fn unmark(list: Message, mark: u32) -> Message {
    let list = expression(list, "meta", |e| e.u32_network(1, REGISTER).u32_network(2, META_MARK));
    let list = bitwise(list, !mark);
    expression(list, "meta", |e| e.u32_network(2, META_MARK).u32_network(3, REGISTER))
}

/// `register = (register & mask) ^ 0`.
fn bitwise(list: Message, mask: u32) -> Message {
    expression(list, "bitwise", |e| {
        e.u32_network(1, REGISTER)
            .u32_network(2, REGISTER)
            .u32_network(3, 4)
            .nested(4, |data| data.bytes(1, &mask.to_ne_bytes()))
            .nested(5, |data| data.bytes(1, &[0; 4]))
    })
}

fn expression(list: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    list.nested(1, |element| element.text(1, name).nested(2, data))
}

/// A transaction: all of its messages take effect, or none.
struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Batch {
    fn new() -> Self {
        let begin = Message::new(BATCH_BEGIN, REQUEST, 1, &subsystem_header()).finish();
        Self { bytes: begin, sequence: 1 }
    }

    fn add(&mut self, kind: u16, flags: u16, fill: impl FnOnce(Message) -> Message) {
        self.sequence += 1;
        // nfgenmsg: family, version 0, resource 0.
        let message = Message::new(kind, REQUEST | ACK | flags, self.sequence, &[NFPROTO_INET, 0, 0, 0]);
        self.bytes.extend_from_slice(&fill(message).finish());
    }

    fn add_chains(&mut self, table: &str, mark: u32) {
        self.add(NEWCHAIN, CREATE, |message| chain_of(message, table, &MASQUERADE));
        self.add(NEWRULE, CREATE | APPEND, |message| rule_of(message, table, &MASQUERADE, mark, masquerade));
        self.add(NEWCHAIN, CREATE, |message| chain_of(message, table, &UNMARK));
        self.add(NEWRULE, CREATE | APPEND, |message| rule_of(message, table, &UNMARK, mark, unmark));
    }

    fn commit(mut self) -> io::Result<()> {
        self.bytes
            .extend_from_slice(&Message::new(BATCH_END, REQUEST, self.sequence + 1, &subsystem_header()).finish());
        let socket = Socket::open(SockProtocol::NetlinkNetFilter, 0, SockFlag::empty())?;
        socket.request(&self.bytes, self.sequence)
    }
}

/// nfgenmsg of the batch's ends: its resource is the subsystem, in *network order*.
fn subsystem_header() -> [u8; 4] {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
}
