//! An overlay between nodes: `flannel.1`, VXLAN 1 over UDP 8472, with permanent neighbours and forwarding entries in
//! place of learning. Both families of pods travel over the nodes' IPv4.

use std::fmt::Write as _;

use super::others;
use crate::{LabError, Spec, place::Place, plan};

pub(super) fn node(node: &Place, index: u8, spec: &Spec) -> Result<(), LabError> {
    let own = plan::pod_net(index);
    let mut links = format!(
        "link add flannel.1 mtu {} address {} type vxlan id 1 dev eth0 local {} dstport 8472 nolearning\n\
         addr add {}/32 dev flannel.1\naddr add {}/128 dev flannel.1 nodad\nlink set flannel.1 up\n",
        spec.mtu.uplink.saturating_sub(50),
        mac(index),
        plan::node(index).v4,
        own.v4,
        own.v6
    );
    let mut forwarding = String::new();
    for other in others(index, spec) {
        let (net, mac, via) = (plan::pod_net(other), mac(other), plan::node(other).v4);
        let _ = write!(
            links,
            "neigh add {v4} lladdr {mac} dev flannel.1 nud permanent\nneigh add {v6} lladdr {mac} dev flannel.1 nud permanent\n\
             route add {v4}/24 via {v4} dev flannel.1 onlink\nroute add {v6}/64 via {v6} dev flannel.1 onlink\n",
            v4 = net.v4,
            v6 = net.v6
        );
        let _ = writeln!(forwarding, "fdb add {mac} dev flannel.1 dst {via} self permanent");
    }
    node.ip(&links)?;
    if !forwarding.is_empty() {
        node.exec_with("bridge", &["-batch", "-"], &forwarding)?;
    }
    Ok(())
}

fn mac(index: u8) -> String {
    format!("0e:00:00:00:00:{index:02x}")
}
