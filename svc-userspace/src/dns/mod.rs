//! A DNS server of this node: names of the cluster from the agent's own model, everything else from the node's resolvers.
//!
//! `docs/dns.md` has the whole. The server has a thread and a runtime of its own, which owns the zone; whoever knows of a
//! change sends it. It never touches a map, and nothing of it keeps the agent waiting.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hickory_proto::rr::Name;
use ipnet::IpNet;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use self::{
    client::Clients,
    metrics::Counters,
    records::Records,
    server::Server,
    up::{Doors, kept_up},
    upstream::{Upstream, Upstreams},
    zone::Zone,
};
use crate::{hash::HashSet, model::ObjectName, privileges, world::World};

pub mod answer;
pub mod cache;
pub mod client;
mod forward;
pub mod limit;
pub mod metrics;
pub mod names;
pub mod records;
mod server;
mod share;
mod tcp;
#[cfg(test)]
mod tests;
mod up;
pub mod upstream;
pub mod zone;

/// Changes taken at once.
const CHANGES_A_TURN: usize = 1024;
/// How often the file with the resolvers is looked at.
const RESOLVERS_EVERY: Duration = Duration::from_secs(2);

/// What the server has to be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens, over UDP and TCP. Each is an address of this node's, never the unspecified one: an answer must
    /// come from the address that was asked.
    pub addresses: Vec<SocketAddr>,
    /// Who may ask besides these addresses.
    pub clients: Vec<IpNet>,
    /// The cluster domain.
    pub domain: Name,
    /// Who is asked for everything else.
    pub upstream: Upstream,
}

/// A change of the zone.
enum Update {
    Set(ObjectName, Option<Records>),
    Complete,
}

/// The server, for whoever knows of changes. The server ends with it.
#[derive(Debug)]
pub struct Handle {
    updates: UnboundedSender<Update>,
    complete: bool,
    /// Services with ports that have no records, which was said.
    told: HashSet<ObjectName>,
}

impl Handle {
    /// Tells what has become of the names of all Services that changed.
    pub fn follow(&mut self, world: &mut World) {
        for name in world.take_renamed() {
            let records = Records::of(world, &name);
            let left_out = match &records {
                Some(Records::Headless(members)) => members.left_out(),
                _ => 0,
            };
            if left_out == 0 {
                self.told.remove(&name);
            } else if self.told.insert(name.clone()) {
                tracing::warn!(
                    service = %name, ports = left_out,
                    "dns: too many named ports times endpoints: these ports have no SRV records, give the Service fewer"
                );
            }
            self.send(Update::Set(name, records));
        }
        if world.is_synced() && !self.complete {
            self.complete = true;
            self.send(Update::Complete);
        }
    }

    fn send(&self, update: Update) {
        if self.updates.send(update).is_err() {
            tracing::error!("dns: the server's thread has ended");
        }
    }
}

/// Starts the server.
pub fn start(options: Options, counters: Arc<Counters>) -> std::io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (updates, changes) = unbounded_channel();
    privileges::spawn("svc-dns", move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, serve(options, counters, changes));
    })?;
    Ok(Handle { updates, complete: false, told: HashSet::default() })
}

async fn serve(options: Options, counters: Arc<Counters>, mut changes: UnboundedReceiver<Update>) {
    // Serial numbers grow from one agent to the next.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let serial = u32::try_from(now.as_secs() & u64::from(u32::MAX)).unwrap_or_default();
    let Options { addresses, clients, domain, upstream } = options;
    let own: BTreeSet<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
    let own: Vec<IpAddr> = own.into_iter().collect();
    let clients = Clients::new(clients, &own);
    let doors = Doors::new(2 * addresses.len(), counters.clone());
    let server = Server::new(Zone::new(domain, own, serial), clients, counters);
    let connections = tcp::shares();
    for &address in &addresses {
        let (udp, udp_doors) = (server.clone(), doors.clone());
        kept_up("udp", move || udp.clone().serve_udp(address, udp_doors.clone()));
        let (tcp, connections, doors) = (server.clone(), connections.clone(), doors.clone());
        kept_up("tcp", move || tcp::serve(tcp.clone(), address, connections.clone(), doors.clone()));
    }
    let resolvers = server.clone();
    kept_up("resolvers", move || {
        follow_resolvers(resolvers.clone(), Upstreams::new(upstream.clone(), addresses.clone()))
    });

    let mut batch = Vec::new();
    while changes.recv_many(&mut batch, CHANGES_A_TURN).await > 0 {
        let mut zone = server.zone.borrow_mut();
        server.counters.zone_changed(batch.len(), 0);
        for update in batch.drain(..) {
            match update {
                Update::Set(name, records) => zone.set(&name, records),
                Update::Complete => zone.set_complete(),
            }
        }
        server.counters.zone_changed(0, zone.len());
    }
}

async fn follow_resolvers(server: Rc<Server>, mut upstreams: Upstreams) {
    loop {
        if let Some(resolvers) = upstreams.changed() {
            server.forwarder.set_resolvers(&resolvers);
        }
        tokio::time::sleep(RESOLVERS_EVERY).await;
    }
}
