//! A routed veth for each pod: link-local gateway, one host route per pod, no bridge.

use crate::{LabError, Spec, place::Place, plan::Addresses};

/// The pods' IPv4 gateway, which no interface has: the host end answers for it by proxy ARP.
const GATEWAY_V4: &str = "169.254.1.1";
/// Every host end has this address, so that every pod has the same IPv6 gateway.
const HOST_MAC: &str = "ee:ee:ee:ee:ee:ee";
/// The link-local address that follows from [`HOST_MAC`].
const GATEWAY_V6: &str = "fe80::ecee:eeff:feee:eeee";

pub(super) fn pod(node: &Place, pod: &Place, device: &str, addresses: Addresses, spec: &Spec) -> Result<(), LabError> {
    let mtu = spec.pod_mtu();
    let Addresses { v4, v6 } = addresses;
    node.ip(&format!(
        "link add {device} mtu {mtu} address {HOST_MAC} type veth peer name eth0 mtu {mtu} netns {}\n\
         link set {device} up\n\
         route add {v4}/32 dev {device} scope link\nroute add {v6}/128 dev {device}\n",
        pod.namespace()
    ))?;
    node.set_sysctls(&[
        (&format!("net/ipv4/conf/{device}/proxy_arp"), "1"),
        (&format!("net/ipv4/neigh/{device}/proxy_delay"), "0"),
    ])?;
    pod.ip(&format!(
        "link set eth0 up\naddr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
         route add {GATEWAY_V4} dev eth0 scope link\nroute add default via {GATEWAY_V4} dev eth0\n\
         route add default via {GATEWAY_V6} dev eth0\n"
    ))?;
    Ok(())
}
