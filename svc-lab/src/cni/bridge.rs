//! A bridge `cni0` on each node, with the pods' gateway address, and a veth port for each pod.

use crate::{
    LabError, Spec,
    place::Place,
    plan::{self, Addresses},
};

pub(super) fn node(node: &Place, index: u8, spec: &Spec) -> Result<(), LabError> {
    let gateway = plan::gateway(index);
    node.ip(&format!(
        "link add cni0 mtu {} address {} type bridge mcast_snooping 0\nlink set cni0 up\n\
         addr add {}/24 dev cni0\naddr add {}/64 dev cni0 nodad\n",
        spec.pod_mtu(),
        format_args!("0a:00:00:00:00:{index:02x}"),
        gateway.v4,
        gateway.v6
    ))
    .map(drop)
}

pub(super) fn pod(
    node: &Place,
    pod: &Place,
    device: &str,
    index: u8,
    addresses: Addresses,
    spec: &Spec,
) -> Result<(), LabError> {
    let mtu = spec.pod_mtu();
    let gateway = plan::gateway(index);
    node.ip(&format!(
        "link add {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\nlink set {device} master cni0 up\n",
        pod.namespace()
    ))?;
    pod.ip(&format!(
        "link set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
         route add default via {}\nroute add default via {}\n",
        addresses.v4, addresses.v6, gateway.v4, gateway.v6
    ))?;
    Ok(())
}
