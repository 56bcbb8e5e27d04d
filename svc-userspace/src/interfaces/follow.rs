//! Listens to rtnetlink and reports differences.
//!
//! Every burst of notifications ends in one classification of the whole inventory: some hundred links at most, and no
//! order of notifications can make it wrong. Routes, and everything after lost notifications, are listed anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use nix::sys::socket::{SockFlag, SockProtocol};
use tokio::{io::unix::AsyncFd, sync::mpsc};

use super::{
    InterfaceError, InterfaceEvent, InterfaceOptions, NodeAddress,
    classify::{Inventory, classify, node_addresses},
    link::{self, parse_address, parse_default_route, parse_link},
};
use crate::{
    kernel::InterfaceSpec,
    netlink::{DUMP, Message, REQUEST, Socket, messages},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `RTNLGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE` as bits.
const GROUPS: u32 = 1 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10;

fn failed(action: &'static str) -> impl Fn(io::Error) -> InterfaceError {
    move |error| InterfaceError::Netlink { action, error }
}

pub(super) async fn run(options: InterfaceOptions, events: mpsc::Sender<InterfaceEvent>) -> Result<(), InterfaceError> {
    // Subscribed before the first list, so that no change falls between the two. Both sockets are opened before the first
    // await: they belong to the network namespace of the thread that polls first.
    let notifications =
        Socket::open(SockProtocol::NetlinkRoute, GROUPS, SockFlag::SOCK_NONBLOCK).map_err(failed("subscribe"))?;
    let requests = Socket::open(SockProtocol::NetlinkRoute, 0, SockFlag::empty()).map_err(failed("open a socket"))?;
    // SAFETY: a Socket owns its descriptor, names the same one for as long as it lives, and closes it when it is dropped.
    let registered = unsafe { AsyncFd::register(notifications) };
    let notifications = registered.map_err(io::Error::from).map_err(failed("wait for notifications"))?;

    let mut inventory = list(&requests).map_err(failed("list interfaces"))?;
    let mut reported = Reported::default();
    if !reported.report(&inventory, &options, &events).await || events.send(InterfaceEvent::Synced).await.is_err() {
        return Ok(());
    }
    loop {
        let mut ready = tokio::select! {
            ready = notifications.readable() => ready.map_err(failed("wait for notifications"))?,
            () = events.closed() => return Ok(()),
        };
        let news = drain(notifications.get_ref(), &mut inventory).map_err(failed("receive"))?;
        match news.need {
            Need::Nothing => {}
            Need::Routes => {
                inventory.default_routes = default_routes(&requests).map_err(failed("list routes"))?;
            }
            Need::Everything => inventory = list(&requests).map_err(failed("list interfaces"))?,
        }
        if !reported.forget(&news, &events).await {
            return Ok(());
        }
        ready.clear_ready();
        if !reported.report(&inventory, &options, &events).await {
            return Ok(());
        }
    }
}

/// What is to be listed to be up to date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    #[default]
    Nothing,
    Routes,
    Everything,
}

/// What a burst of notifications says beside what it changed in the inventory.
#[derive(Debug, Default)]
struct News {
    need: Need,
    /// Interfaces that went away, even if their index is in use again.
    gone: BTreeSet<u32>,
    /// The kernel had no room for all notifications.
    lost: bool,
}

/// Applies all notifications that wait.
fn drain(socket: &Socket, inventory: &mut Inventory) -> io::Result<News> {
    let mut news = News::default();
    loop {
        match socket.receive() {
            Ok(datagram) => {
                for message in messages(&datagram) {
                    if is_default_route(&message) {
                        news.need = news.need.max(Need::Routes);
                    }
                    if let Some(index) = note(inventory, &message) {
                        // A veth whose peer left for another namespace is not told: it is seen only in a new list.
                        news.need = Need::Everything;
                        news.gone.insert(index);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(news),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                tracing::info!("rtnetlink notifications were lost; interfaces are listed anew");
                news.need = Need::Everything;
                news.lost = true;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// True for a notification about a default route: other routes come and go with every pod.
fn is_default_route(message: &crate::netlink::Received<'_>) -> bool {
    matches!(message.kind, link::NEW_ROUTE | link::DELETE_ROUTE) && message.payload.get(1) == Some(&0)
}

/// Enters a message into the inventory; returns the index of a link that is gone.
fn note(inventory: &mut Inventory, message: &crate::netlink::Received<'_>) -> Option<u32> {
    if let Some((present, link)) = parse_link(message) {
        if present {
            inventory.links.insert(link.index, link);
        } else {
            inventory.addresses.retain(|address| address.index != link.index);
            inventory.default_routes.remove(&link.index);
            inventory.links.remove(&link.index);
            return Some(link.index);
        }
    } else if let Some((present, address)) = parse_address(message) {
        let known = inventory
            .addresses
            .iter()
            .position(|known| (known.index, known.address) == (address.index, address.address));
        match (known, present) {
            (Some(at), true) => inventory.addresses[at] = address,
            (Some(at), false) => drop(inventory.addresses.remove(at)),
            (None, true) => inventory.addresses.push(address),
            (None, false) => {}
        }
    }
    None
}

/// Lists everything.
fn list(requests: &Socket) -> io::Result<Inventory> {
    let mut inventory = Inventory::default();
    // struct ifinfomsg and struct ifaddrmsg, all zero: everything there is.
    for (kind, header) in [(link::GET_LINK, &[0_u8; 16][..]), (link::GET_ADDRESS, &[0; 8])] {
        dump(requests, kind, header, &mut |message| {
            note(&mut inventory, message);
        })?;
    }
    inventory.default_routes = default_routes(requests)?;
    Ok(inventory)
}

fn default_routes(requests: &Socket) -> io::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for family in [AF_INET, AF_INET6] {
        let mut header = [0; 12];
        header[0] = family;
        dump(requests, link::GET_ROUTE, &header, &mut |message| found.extend(parse_default_route(message)))?;
    }
    Ok(found)
}

/// Lists one kind of object; a list that changed meanwhile is followed by its notifications.
fn dump(
    requests: &Socket,
    kind: u16,
    header: &[u8],
    each: &mut dyn FnMut(&crate::netlink::Received<'_>),
) -> io::Result<()> {
    requests.dump(&Message::new(kind, REQUEST | DUMP, 1, header).finish(), &mut |message| each(&message))
}

/// What the receiver knows.
#[derive(Default)]
struct Reported {
    interfaces: BTreeMap<u32, InterfaceSpec>,
    /// All interfaces are to be reported again.
    uncertain: bool,
    addresses: Option<Vec<NodeAddress>>,
}

impl Reported {
    /// Reports what went away, so that an interface that took its place is reported as new; false if the receiver is
    /// gone. After lost notifications every interface may be another one.
    async fn forget(&mut self, news: &News, events: &mpsc::Sender<InterfaceEvent>) -> bool {
        for index in &news.gone {
            if self.interfaces.remove(index).is_some() && events.send(InterfaceEvent::Gone(*index)).await.is_err() {
                return false;
            }
        }
        self.uncertain |= news.lost;
        true
    }

    /// Sends what became different; false if the receiver is gone.
    async fn report(
        &mut self,
        inventory: &Inventory,
        options: &InterfaceOptions,
        events: &mpsc::Sender<InterfaceEvent>,
    ) -> bool {
        let interfaces = classify(inventory, options);
        let mut news: Vec<InterfaceEvent> = Vec::new();
        news.extend(
            self.interfaces.keys().filter(|index| !interfaces.contains_key(index)).map(|i| InterfaceEvent::Gone(*i)),
        );
        let changed =
            interfaces.iter().filter(|(index, spec)| self.uncertain || self.interfaces.get(index) != Some(spec));
        news.extend(changed.map(|(_, spec)| InterfaceEvent::Set(spec.clone())));
        let addresses = node_addresses(inventory, options);
        if self.addresses.as_ref() != Some(&addresses) {
            news.push(InterfaceEvent::Addresses(addresses.clone()));
        }
        self.interfaces = interfaces;
        self.uncertain = false;
        self.addresses = Some(addresses);
        for event in news {
            if events.send(event).await.is_err() {
                return false;
            }
        }
        true
    }
}
