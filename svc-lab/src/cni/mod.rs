//! Pod networking in three shapes. Each shape has a file; this one picks it and never names a device itself.

mod bridge;
mod routed;
mod vxlan;

use crate::{
    Cni, LabError, Spec,
    place::Place,
    plan::{self, Addresses},
};

/// Sets up the node's part: bridge, overlay, routes to the other nodes.
pub(crate) fn node(node: &Place, index: u8, spec: &Spec) -> Result<(), LabError> {
    match spec.cni {
        Cni::Routed => routes(node, index, spec),
        Cni::Bridge => {
            bridge::node(node, index, spec)?;
            routes(node, index, spec)
        }
        Cni::Vxlan => {
            bridge::node(node, index, spec)?;
            vxlan::node(node, index, spec)
        }
    }
}

/// Connects a pod: the host end is `veth<nth>` on the node, the pod's end `eth0`.
pub(crate) fn pod(node: &Place, pod: &Place, index: u8, nth: u8, spec: &Spec) -> Result<Addresses, LabError> {
    let addresses = plan::pod(index, nth);
    let device = format!("veth{nth}");
    match spec.cni {
        Cni::Routed => routed::pod(node, pod, &device, addresses, spec)?,
        Cni::Bridge | Cni::Vxlan => bridge::pod(node, pod, &device, index, addresses, spec)?,
    }
    Ok(addresses)
}

/// The interfaces through which the node reaches its own pods, as an nftables pattern.
pub(crate) fn pod_side(cni: Cni) -> &'static str {
    match cni {
        Cni::Routed => "veth*",
        Cni::Bridge | Cni::Vxlan => "cni0",
    }
}

/// Plain routes to the other nodes' pods, through the nodes' addresses.
fn routes(node: &Place, index: u8, spec: &Spec) -> Result<(), LabError> {
    let batch: Vec<String> = others(index, spec)
        .map(|other| {
            let (net, via) = (plan::pod_net(other), plan::node(other));
            format!("route add {}/24 via {}\nroute add {}/64 via {}\n", net.v4, via.v4, net.v6, via.v6)
        })
        .collect();
    node.ip(&batch.concat()).map(drop)
}

fn others(index: u8, spec: &Spec) -> impl Iterator<Item = u8> {
    (1..=spec.nodes).filter(move |&other| other != index)
}
