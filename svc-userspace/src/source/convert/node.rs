//! Nodes: addresses, zone, and whether the node is about to go.

use k8s_openapi::api::core::v1;

use super::{Context, Convert, fields};
use crate::model::{Node, ObjectName};

/// Label that carries the zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Taint of a node that will be removed.
const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";

impl Convert for v1::Node {
    type Model = Node;
    const KIND: &'static str = "Node";
    const NAMESPACED: bool = false;
    const ESSENTIAL: &'static [&'static str] = &["spec", "spec.taints", "status", "status.addresses"];

    fn convert(&self, name: &ObjectName, context: &mut Context<'_>) -> Option<Node> {
        let mut addresses = Vec::new();
        let listed = self.status.iter().flat_map(|status| status.addresses.iter().flatten());
        for (i, entry) in listed.enumerate().filter(|(_, entry)| entry.type_ == "InternalIP") {
            match fields::virtual_address(&entry.address) {
                Ok(address) if addresses.contains(&address) => {}
                Ok(address) => addresses.push(address),
                Err(message) => context.problem(format!("status.addresses[{i}].address"), message),
            }
        }
        let zone = self.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).filter(|zone| !zone.is_empty());
        let tainted = self.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taint.key == LEAVING);
        Some(Node {
            name: name.name.clone(),
            addresses,
            zone: zone.map(|zone| context.names.intern(zone)),
            leaving: tainted || self.metadata.deletion_timestamp.is_some(),
        })
    }
}
