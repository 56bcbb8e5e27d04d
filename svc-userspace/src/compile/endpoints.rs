//! Which endpoints back a Service port: identity, conditions, hints and the fallback to terminating ones.
//!
//! It never decides which frontend uses which set; it only reads that, to tell people why an endpoint is unused.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
    sync::Arc,
};

use super::{BackendEntry, FrontendEntry, NodeContext, Set, Unused};
use crate::model::{Endpoint, Family, Service, ServicePort, Slice};

/// The endpoints of a port and the two sets; indices point into `backends`.
pub(super) struct Selection {
    pub(super) backends: Vec<BackendEntry>,
    pub(super) cluster: Vec<usize>,
    pub(super) local: Vec<usize>,
    pub(super) not_serving: Vec<SocketAddr>,
}

/// Selects the endpoints of `port` in `family`.
pub(super) fn select(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: &[&Slice],
    node: &NodeContext,
    frontends: &[FrontendEntry],
) -> Selection {
    let (usable, dead): (Vec<_>, Vec<_>) =
        gather(service, port, family, slices).into_iter().partition(|(_, endpoint)| endpoint.ready || endpoint.serving);
    let hints = Hints::of(&usable, node);
    let is_local = |endpoint: &Endpoint| endpoint.node.as_ref() == Some(&node.name);
    let draining = |endpoint: &Endpoint| endpoint.serving && endpoint.terminating;
    let indices = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<usize> {
        usable.iter().enumerate().filter(|(_, (_, endpoint))| wanted(endpoint)).map(|(index, _)| index).collect()
    };
    let or_else = |first: Vec<usize>, second: &dyn Fn(&Endpoint) -> bool| {
        if first.is_empty() { indices(second) } else { first }
    };
    let cluster = or_else(indices(&|endpoint| endpoint.ready && hints.allow(endpoint, node)), &draining);
    let local = or_else(indices(&|endpoint| endpoint.ready && is_local(endpoint)), &|endpoint| {
        is_local(endpoint) && draining(endpoint)
    });

    let uses = |set| frontends.iter().any(|frontend| frontend.inside == set || frontend.outside == set);
    let (uses_cluster, uses_local) = (uses(Set::Cluster), uses(Set::Local));
    let backends = usable
        .iter()
        .enumerate()
        .map(|(index, (address, endpoint))| {
            let in_cluster = cluster.binary_search(&index).is_ok();
            let named = uses_cluster && in_cluster || uses_local && local.binary_search(&index).is_ok();
            let unused = if named {
                None
            } else if !endpoint.ready {
                Some(if endpoint.terminating { Unused::Terminating } else { Unused::NotReady })
            } else if in_cluster {
                Some(Unused::Policy)
            } else {
                Some(Unused::Hints)
            };
            // A used endpoint that is not ready is still marked as terminating: state is the endpoint's, not the set's.
            BackendEntry { address: *address, terminating: !endpoint.ready, local: is_local(endpoint), unused }
        })
        .collect();
    Selection { backends, cluster, local, not_serving: dead.into_iter().map(|(address, _)| address).collect() }
}

/// Every endpoint of the port once, sorted by address. Two slices may give one name different numbers, so the number
/// comes from the endpoint's own slice. Of an endpoint that is listed twice, [`preference`] says which entry counts.
fn gather<'a>(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: &[&'a Slice],
) -> Vec<(SocketAddr, &'a Endpoint)> {
    let mut found: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.family == family && slice.service == service.name) {
        for slice_port in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
            for endpoint in slice.endpoints.iter().filter(|endpoint| Family::of(endpoint.address) == family) {
                match found.entry(SocketAddr::new(endpoint.address, slice_port.port)) {
                    Entry::Vacant(entry) => {
                        entry.insert(endpoint);
                    }
                    Entry::Occupied(mut entry) => {
                        if preference(endpoint) < preference(entry.get()) {
                            entry.insert(endpoint);
                        }
                    }
                }
            }
        }
    }
    found.into_iter().collect()
}

/// Least first: the entry that does not terminate, then the healthier one; the rest only makes the order total.
#[expect(clippy::type_complexity, reason = "a sort key, used twice in one expression")]
fn preference(
    endpoint: &Endpoint,
) -> (bool, Reverse<bool>, Reverse<bool>, &Option<Arc<str>>, &[Arc<str>], &[Arc<str>]) {
    let Endpoint { address: _, ready, serving, terminating, node, hint_nodes, hint_zones } = endpoint;
    (*terminating, Reverse(*ready), Reverse(*serving), node, hint_nodes, hint_zones)
}

/// What the hints of the ready endpoints amount to.
enum Hints {
    /// They are incomplete, or none of them names this node or its zone: every ready endpoint will do.
    Ignored,
    /// Every ready endpoint has node hints, and some name this node.
    Nodes,
    /// Every ready endpoint has zone hints, and some name this zone.
    Zones,
}

impl Hints {
    fn of(endpoints: &[(SocketAddr, &Endpoint)], node: &NodeContext) -> Self {
        let ready = || endpoints.iter().map(|(_, endpoint)| *endpoint).filter(|endpoint| endpoint.ready);
        if ready().all(|endpoint| !endpoint.hint_nodes.is_empty())
            && ready().any(|endpoint| Self::Nodes.allow(endpoint, node))
        {
            Self::Nodes
        } else if ready().all(|endpoint| !endpoint.hint_zones.is_empty())
            && ready().any(|endpoint| Self::Zones.allow(endpoint, node))
        {
            Self::Zones
        } else {
            Self::Ignored
        }
    }

    fn allow(&self, endpoint: &Endpoint, node: &NodeContext) -> bool {
        match self {
            Self::Ignored => true,
            Self::Nodes => endpoint.hint_nodes.contains(&node.name),
            Self::Zones => node.zone.as_ref().is_some_and(|zone| endpoint.hint_zones.contains(zone)),
        }
    }
}
