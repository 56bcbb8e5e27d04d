//! What the engine tells of Services while it programs them: refused ports, withheld addresses, health ports, and who has no
//! endpoint on this node. It decides nothing.

use std::collections::HashSet;

use super::{Engine, Maps};
use crate::{
    compile::PortTable,
    health::node_ports::HealthPort,
    model::{Family, ObjectName},
    tables::Refused,
    world::Withheld,
};

impl<M: Maps> Engine<M> {
    pub(super) fn note_refused(&mut self, name: &ObjectName, refused: Vec<Refused>) {
        if self.refused.get(name).map_or(&[][..], Vec::as_slice) == refused {
            return;
        }
        for refusal in &refused {
            tracing::warn!(service = %name, "refused: {refusal}");
        }
        if refused.is_empty() {
            tracing::info!(service = %name, "no longer refused");
            self.refused.remove(name);
        } else {
            self.refused.insert(name.clone(), refused);
        }
        self.metrics.set_refused(name, self.refused.get(name).map_or(0, Vec::len));
    }

    pub(super) fn note_withheld(&mut self, name: &ObjectName, withheld: Vec<Withheld>) {
        if self.withheld.get(name).map_or(&[][..], Vec::as_slice) == withheld {
            return;
        }
        for withheld in &withheld {
            tracing::warn!(service = %name, "withheld: {withheld}");
        }
        self.metrics.set_withheld(name, withheld.len());
        if withheld.is_empty() {
            self.withheld.remove(name);
        } else {
            self.withheld.insert(name.clone(), withheld);
        }
    }

    pub(super) fn note_health_port(&mut self, name: &ObjectName) {
        let service = self.world.service(name);
        let Some((service, port)) = service.and_then(|service| Some((service, service.health_check_node_port?))) else {
            self.health_ports.remove(name);
            return;
        };
        let own = &self.world.context().name;
        let endpoints = self.world.slices_of(name).flat_map(|slice| &slice.endpoints);
        let local = endpoints.filter(|endpoint| endpoint.ready && endpoint.node.as_ref() == Some(own));
        let addresses: HashSet<_> = local.map(|endpoint| endpoint.address).collect();
        // A pod of two families is one endpoint to a load balancer, as it is to kube-proxy, which counts by family.
        let of = |family| addresses.iter().filter(|&&address| Family::of(address) == family).count();
        let counts = service.cluster_ips.iter().map(|&address| of(Family::of(address)));
        let local_endpoints = counts.max().unwrap_or(0);
        self.health_ports.insert(name.clone(), HealthPort { port, local_endpoints });
    }

    pub(super) fn note_without_local(&mut self, name: &ObjectName, ports: &[PortTable]) {
        let none = ports.iter().any(|port| !port.cluster.is_empty() && port.local.is_empty());
        let policies = self.world.service(name).map(|service| (service.internal_local, service.external_local));
        match policies.filter(|&(internal, external)| none && (internal || external)) {
            Some(policies) => self.without_local.insert(name.clone(), policies),
            None => self.without_local.remove(name),
        };
    }
}
