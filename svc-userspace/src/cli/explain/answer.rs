//! From what a trial and the maps say to an answer for people and scripts. Pure but for reading slots.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Serialize;
use svc_common::{
    BackendState, Frontend, Reason, Scope, SlotRange,
    config::{CONFIG_SOCKET_HOST, CONFIG_SOCKET_PODS_TCP, CONFIG_SOCKET_PODS_UDP},
    frontend::{FLAG_HOST_ONLY, FLAG_INSIDE_DROP},
};

use crate::{
    cli::{names::PortName, status},
    interfaces::route::Route,
    kernel::{
        trial::{Forward, Outcome, Trial},
        view::{Snapshot, ViewError},
    },
    model::Protocol,
    tables::FrontendAddress,
};

/// Name of an interface of this network namespace.
fn interface_name(index: u32) -> String {
    status::interface_name(index).unwrap_or_else(|| format!("interface {index}"))
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// A process of this node.
    Host,
    /// The interface with this index.
    Interface(u32),
}

/// What is known of one question.
pub(super) struct Facts<'a> {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) protocol: Protocol,
    pub(super) arrival: Arrival,
    /// Absent for processes of this node: their sockets are translated, and no packet can be tried for that.
    pub(super) trial: Option<Trial>,
    /// The way to the endpoint, or why there is none; absent without an endpoint.
    pub(super) way: Option<Result<Route, String>>,
    /// Reads SLOTS.
    pub(super) slots: &'a dyn Fn(SlotRange) -> Result<Vec<u32>, ViewError>,
}

/// The whole answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Who asks.
    pub source: SocketAddr,
    /// Whom.
    pub destination: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Where the packet comes in; absent for a process of this node.
    pub interface: Option<String>,
    /// What policies take it for: `host`, `inside`, `outside`, `overlay`, or `unattached` where no program looks.
    pub scope: &'static str,
    /// `forward`, `pass`, `refuse`, `drop`, or `connect` for a process, whose socket is translated.
    pub verdict: &'static str,
    /// The verdict in words.
    pub why: String,
    /// What else decides, if anything does.
    pub note: Option<&'static str>,
    /// The Service port that the destination belongs to.
    pub service: Option<PortName>,
    /// `address:port` of the endpoint that is chosen.
    pub endpoint: Option<SocketAddr>,
    /// The flow it belongs to, or would open.
    pub flow: Option<FlowAnswer>,
    /// Interface and router towards the endpoint.
    pub way: Option<String>,
    /// Tag of the program that decided (`bpftool prog show`); absent for processes.
    pub program: Option<String>,
    /// That program is the pinned one, instruction by instruction.
    pub program_is_loaded: bool,
    /// All endpoints of the Service port on this node's maps.
    pub endpoints: Vec<EndpointAnswer>,
}

/// A flow.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct FlowAnswer {
    /// It is there already.
    pub exists: bool,
    /// Seconds since its last packet, 0 for a new one.
    pub idle_seconds: u64,
    /// The client's port towards the endpoint, if it is another one than the client's own.
    pub client_port: Option<u16>,
    /// It leaves with an address of this node as its source.
    pub masquerade: bool,
}

/// An endpoint.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct EndpointAnswer {
    /// `address:port`.
    pub address: SocketAddr,
    /// `active` or `terminating`.
    pub state: &'static str,
    /// Runs on this node.
    pub local: bool,
    /// Part of new flows from such a client that it gets, in tenths of a per cent.
    pub share_permille: u32,
    /// Why it is chosen, or not.
    pub why: &'static str,
}

/// Judges the facts.
pub(super) fn answer(snapshot: &Snapshot, facts: &Facts<'_>) -> Result<Answer, ViewError> {
    let (interface, scope) = match facts.arrival {
        Arrival::Host => (None, "host"),
        Arrival::Interface(index) => {
            let scope = snapshot.interfaces.get(&index).map(|entry| Scope::from_u8(entry.scope).label());
            (Some(interface_name(index)), scope.unwrap_or("unattached"))
        }
    };
    let address = FrontendAddress { address: facts.destination, protocol: facts.protocol };
    let frontend = snapshot.frontends.get(&address).filter(|it| scope == "host" || it.flags & FLAG_HOST_ONLY == 0);
    let inside = matches!(scope, "host" | "inside");
    let forward = match facts.trial.as_ref().map(|trial| &trial.outcome) {
        Some(Outcome::Forward(forward)) => Some(&**forward),
        _ => None,
    };
    let (verdict, why) = match (&facts.trial, scope) {
        (_, "unattached") => {
            ("pass", "no program is attached to this interface: `svc status` lists those that are looked at".to_owned())
        }
        (Some(trial), _) => tried(&trial.outcome),
        (None, _) => connects(snapshot, facts.protocol, frontend),
    };
    let service_id = forward.map(|forward| forward.flow.service).or(frontend.map(|frontend| frontend.service));
    let range = frontend.map(|frontend| if inside { frontend.inside } else { frontend.outside });
    let slots = match range {
        Some(range) if range.len > 0 => (facts.slots)(range)?,
        _ => Vec::new(),
    };
    Ok(Answer {
        source: facts.source,
        destination: facts.destination,
        protocol: facts.protocol,
        interface,
        scope,
        verdict,
        why,
        note: (scope == "inside" && sockets_of_pods(snapshot, facts.protocol)).then_some(SOCKETS_OF_PODS),
        service: service_id.and_then(|id| snapshot.services.get(&id)).map(|name| PortName::from(&**name)),
        endpoint: forward.map(|forward| forward.flow.rewrite),
        flow: forward.map(flow),
        way: facts.way.as_ref().map(way),
        program: facts.trial.as_ref().map(|trial| trial.tag.clone()),
        program_is_loaded: facts.trial.as_ref().is_some_and(|trial| trial.loaded),
        endpoints: service_id.map(|id| endpoints(snapshot, id, &slots, forward)).unwrap_or_default(),
    })
}

const SOCKETS_OF_PODS: &str = "a pod's socket is translated when it connects (--socket-lb), by a choice of its own among the same \
                               endpoints: this is what becomes of packets that are not";

fn sockets_of_pods(snapshot: &Snapshot, protocol: Protocol) -> bool {
    match protocol {
        Protocol::Tcp => snapshot.config.flags & CONFIG_SOCKET_PODS_TCP != 0,
        Protocol::Udp => snapshot.config.flags & CONFIG_SOCKET_PODS_UDP != 0,
        Protocol::Sctp => false,
    }
}

fn tried(outcome: &Outcome) -> (&'static str, String) {
    match outcome {
        Outcome::Pass => ("pass", "no Service wants it: it passes as it is".to_owned()),
        Outcome::Forward(forward) if forward.exists => ("forward", "its flow goes there".to_owned()),
        Outcome::Forward(_) => ("forward", "it opens a flow".to_owned()),
        Outcome::Refuse(reason) => ("refuse", reason.explanation().to_owned()),
        Outcome::Drop(reason) => ("drop", reason.explanation().to_owned()),
    }
}

/// What becomes of a process that connects.
fn connects(snapshot: &Snapshot, protocol: Protocol, frontend: Option<&Frontend>) -> (&'static str, String) {
    if snapshot.config.flags & CONFIG_SOCKET_HOST == 0 || protocol == Protocol::Sctp {
        let why =
            "sockets of this node's processes are not translated: --socket-lb says so, or the protocol has no hook";
        return ("pass", why.to_owned());
    }
    match frontend {
        None => ("pass", "no Service has this address and port: the socket connects to it".to_owned()),
        Some(frontend) if frontend.inside.len > 0 => (
            "connect",
            "the socket is connected to one of the endpoints below, chosen at random or by affinity".to_owned(),
        ),
        Some(frontend) if frontend.flags & FLAG_INSIDE_DROP != 0 => {
            ("drop", Reason::PolicyEmpty.explanation().to_owned())
        }
        Some(_) => ("refuse", Reason::NoEndpoint.explanation().to_owned()),
    }
}

fn flow(forward: &Forward) -> FlowAnswer {
    FlowAnswer {
        exists: forward.exists,
        idle_seconds: forward.flow.idle_seconds,
        client_port: (forward.flow.peer_port != 0).then_some(forward.flow.peer_port),
        masquerade: forward.flow.masquerade,
    }
}

fn way(way: &Result<Route, String>) -> String {
    match way {
        Ok(route) if route.local => "this node".to_owned(),
        Ok(Route { interface, gateway: Some(gateway), .. }) => format!("{} via {gateway}", interface_name(*interface)),
        Ok(Route { interface, gateway: None, .. }) => interface_name(*interface),
        Err(error) => format!("no route: {error}"),
    }
}

/// Every endpoint of a Service port, and why it is or is not the one.
fn endpoints(snapshot: &Snapshot, service: u32, slots: &[u32], forward: Option<&Forward>) -> Vec<EndpointAnswer> {
    let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
    for id in slots {
        *counts.entry(*id).or_default() += 1;
    }
    let chosen = forward.map(|forward| forward.flow.backend);
    let mut endpoints: Vec<EndpointAnswer> = snapshot
        .backends
        .iter()
        .filter(|(_, backend)| backend.service == service)
        .map(|(id, backend)| {
            let count = counts.get(id).copied().unwrap_or(0);
            let terminating = backend.state == BackendState::Terminating;
            EndpointAnswer {
                address: backend.address,
                state: if terminating { "terminating" } else { "active" },
                local: backend.local,
                share_permille: (count * 1000).checked_div(slots.len() as u64).unwrap_or(0) as u32,
                why: match (chosen == Some(*id), count > 0, terminating) {
                    (true, true, _) => "chosen",
                    (true, false, _) => "the flow is there already; new ones do not come here",
                    (false, true, _) => "takes part",
                    (false, false, true) => "terminating: others are ready",
                    (false, false, false) => "not for such clients: traffic policy or topology hints",
                },
            }
        })
        .collect();
    endpoints.sort_by_key(|endpoint| endpoint.address);
    endpoints
}

#[cfg(test)]
mod tests {
    use svc_common::Interface;

    use super::*;

    fn facts(arrival: Arrival, trial: Option<Outcome>) -> Facts<'static> {
        Facts {
            source: SocketAddr::from(([10, 244, 1, 5], 5000)),
            destination: SocketAddr::from(([10, 96, 0, 1], 80)),
            protocol: Protocol::Tcp,
            arrival,
            trial: trial.map(|outcome| Trial { outcome, tag: "aa".to_owned(), loaded: true }),
            way: None,
            slots: &|range| Ok((0..range.len).map(|slot| 7 + slot % 2).collect()),
        }
    }

    fn snapshot(frontend: Frontend) -> Snapshot {
        let address = FrontendAddress { address: facts(Arrival::Host, None).destination, protocol: Protocol::Tcp };
        let mut snapshot = Snapshot { frontends: [(address, frontend)].into(), ..Snapshot::default() };
        snapshot.config.flags = CONFIG_SOCKET_HOST;
        snapshot.interfaces.insert(3, Interface { scope: Scope::Inside as u8, ..Interface::default() });
        snapshot
    }

    #[test]
    fn a_process_connects_is_refused_or_meets_silence() -> Result<(), ViewError> {
        let served = Frontend { inside: SlotRange { offset: 0, len: 4 }, ..Frontend::default() };
        let cases = [
            (served, "connect"),
            (Frontend::default(), "refuse"),
            (Frontend { flags: FLAG_INSIDE_DROP, ..Frontend::default() }, "drop"),
        ];
        for (frontend, verdict) in cases {
            assert_eq!(answer(&snapshot(frontend), &facts(Arrival::Host, None))?.verdict, verdict);
        }
        let mut unhooked = snapshot(served);
        unhooked.config.flags = 0;
        assert_eq!(answer(&unhooked, &facts(Arrival::Host, None))?.verdict, "pass");
        Ok(())
    }

    #[test]
    fn where_no_program_is_attached_nothing_that_was_tried_counts() -> Result<(), ViewError> {
        let refused = Some(Outcome::Refuse(Reason::NoEndpoint));
        let snapshot = snapshot(Frontend::default());
        let seen = answer(&snapshot, &facts(Arrival::Interface(3), refused.clone()))?;
        assert_eq!((seen.verdict, seen.scope), ("refuse", "inside"));
        let unseen = answer(&snapshot, &facts(Arrival::Interface(4), refused))?;
        assert_eq!((unseen.verdict, unseen.scope), ("pass", "unattached"));
        Ok(())
    }

    #[test]
    fn a_host_only_frontend_is_no_frontend_of_packets() -> Result<(), ViewError> {
        let frontend =
            Frontend { flags: FLAG_HOST_ONLY, inside: SlotRange { offset: 0, len: 4 }, ..Frontend::default() };
        let mut snapshot = snapshot(frontend);
        snapshot.services.insert(0, Box::new(bytemuck::Zeroable::zeroed()));
        assert!(answer(&snapshot, &facts(Arrival::Host, None))?.service.is_some());
        assert!(answer(&snapshot, &facts(Arrival::Interface(3), Some(Outcome::Pass)))?.service.is_none());
        Ok(())
    }
}
