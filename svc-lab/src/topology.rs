//! Everything of a cluster that is there before the first pod: switch, router, outside client, nodes and their netfilter
//! rules.
//!
//! ```text
//! outside ── router ── switch ─┬─ node1 ─ pods
//!                              └─ node2 ─ pods
//! ```

use std::{fmt::Write as _, net::IpAddr, process::Command};

use crate::{
    LabError, Spec, cni,
    place::{Place, capture},
    plan::{self, OUTSIDE, POD_NETS, ROUTER, ROUTER_OUTSIDE, VIP_NETS},
    teardown::Traces,
};

/// Creates the namespaces: `sw`, `router`, `outside` and the nodes, in this order.
pub(crate) fn namespaces(traces: &Traces, spec: &Spec) -> Result<Vec<Place>, LabError> {
    let fixed = ["sw", "router", "outside"].map(str::to_owned);
    let names: Vec<String> = fixed.into_iter().chain((1..=spec.nodes).map(|index| format!("node{index}"))).collect();
    let batch: Vec<String> = names.iter().map(|name| format!("netns add {}\n", traces.namespace(name))).collect();
    capture(Command::new("ip").args(["-batch", "-"]), Some(&batch.concat()))?;
    names
        .iter()
        .map(|name| {
            let place = Place::new(name, &traces.namespace(name), traces.cgroup.join(name))?;
            calm(&place)?;
            Ok(place)
        })
        .collect()
}

/// Settings every namespace gets before it has devices: addresses usable at once, nothing inherited from this machine.
pub(crate) fn calm(place: &Place) -> Result<(), LabError> {
    place.set_sysctls(&[
        ("net.ipv6.conf.all.accept_dad", "0"),
        ("net.ipv6.conf.default.accept_dad", "0"),
        ("net.ipv6.conf.all.accept_ra", "0"),
        ("net.ipv6.conf.default.accept_ra", "0"),
        ("net.ipv6.conf.all.disable_ipv6", "0"),
        ("net.ipv6.conf.default.disable_ipv6", "0"),
        ("net.ipv6.conf.default.router_solicitations", "0"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
        ("net.bridge.bridge-nf-call-iptables", "0"),
        ("net.bridge.bridge-nf-call-ip6tables", "0"),
        ("net.bridge.bridge-nf-call-arptables", "0"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
    ])?;
    place.ip("link set lo up\n").map(drop)
}

/// Wires the switch, the router and the outside client.
pub(crate) fn wire(switch: &Place, router: &Place, outside: &Place, spec: &Spec) -> Result<(), LabError> {
    let (mtu, narrow) = (spec.mtu.uplink, spec.mtu.outside);
    for place in [router, outside] {
        forward(place, place.name() == "router")?;
    }
    switch.ip(&format!(
        "link add br0 mtu {mtu} type bridge mcast_snooping 0\nlink set br0 up\n{}",
        port("router", router, mtu)
    ))?;
    router.ip(&format!(
        "link add outside0 mtu {narrow} type veth peer name eth0 mtu {narrow} netns {}\n\
         addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n\
         addr add {}/24 dev outside0\naddr add {}/64 dev outside0 nodad\nlink set outside0 up\n",
        outside.namespace(),
        ROUTER.v4,
        ROUTER.v6,
        ROUTER_OUTSIDE.v4,
        ROUTER_OUTSIDE.v6
    ))?;
    outside.ip(&format!(
        "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via {}\nroute add default via {}\n",
        OUTSIDE.v4, OUTSIDE.v6, ROUTER_OUTSIDE.v4, ROUTER_OUTSIDE.v6
    ))?;
    Ok(())
}

/// Routes the load balancer addresses to a node.
pub(crate) fn route_vips(router: &Place, node: u8) -> Result<(), LabError> {
    let via = plan::node(node).both();
    let batch: Vec<String> =
        VIP_NETS.iter().zip(via).map(|(net, via)| format!("route replace {net} via {via}\n")).collect();
    router.ip(&batch.concat()).map(drop)
}

/// Adds a route at the router, e.g. of the Service CIDR.
pub(crate) fn route(router: &Place, net: &str, via: IpAddr) -> Result<(), LabError> {
    router.ip(&format!("route replace {net} via {via}\n")).map(drop)
}

/// Connects a node and makes it what a Kubernetes node is.
pub(crate) fn node(switch: &Place, node: &Place, index: u8, spec: &Spec) -> Result<(), LabError> {
    forward(node, true)?;
    let filter = spec.rp_filter.to_string();
    let bridged = if spec.br_netfilter { "1" } else { "0" };
    node.set_sysctls(&[
        ("net.ipv4.conf.all.rp_filter", &filter),
        ("net.ipv4.conf.default.rp_filter", &filter),
        ("net.ipv4.conf.lo.rp_filter", &filter),
        ("net.bridge.bridge-nf-call-iptables", bridged),
        ("net.bridge.bridge-nf-call-ip6tables", bridged),
    ])?;
    switch.ip(&port(node.name(), node, spec.mtu.uplink))?;
    let addresses = plan::node(index);
    node.ip(&format!(
        "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via {}\nroute add default via {}\n",
        addresses.v4, addresses.v6, ROUTER.v4, ROUTER.v6
    ))?;
    cni::node(node, index, spec)?;
    node.exec_with("nft", &["-f", "-"], &ruleset(index, spec)).map(drop)
}

/// One port of the switch, with the other end as `eth0` of the namespace.
fn port(name: &str, place: &Place, mtu: u32) -> String {
    format!(
        "link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\nlink set {name} master br0 up\n",
        place.namespace()
    )
}

fn forward(place: &Place, on: bool) -> Result<(), LabError> {
    let on = if on { "1" } else { "0" };
    place.set_sysctls(&[
        ("net.ipv4.ip_forward", on),
        ("net.ipv6.conf.all.forwarding", on),
        ("net.ipv6.conf.default.forwarding", on),
    ])
}

/// What netfilter holds on a real node, as far as it concerns us: conntrack is on and strict, and the CNI masquerades
/// what its pods send out of the cluster.
fn ruleset(index: u8, spec: &Spec) -> String {
    let mut rules = String::from("table inet lab {\n");
    for chain in ["input", "forward", "output"] {
        // The kernel's own advice to pods and nodes that they could reach each other directly belongs to no connection: it
        // would be counted with the packets that lost theirs.
        let _ = writeln!(
            rules,
            "chain {chain} {{ type filter hook {chain} priority 0; policy accept; icmp type redirect drop; \
             icmpv6 type nd-redirect drop; \
             ct state invalid counter drop; }}"
        );
    }
    let own = plan::pod_net(index);
    let pod_side = cni::pod_side(spec.cni);
    let [all_v4, all_v6] = POD_NETS;
    let _ = writeln!(
        rules,
        "chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;\n\
         ip saddr {}/24 ip daddr != {all_v4} oifname != \"{pod_side}\" counter masquerade\n\
         ip6 saddr {}/64 ip6 daddr != {all_v6} oifname != \"{pod_side}\" counter masquerade\n\
         }}\n}}",
        own.v4, own.v6
    );
    rules
}
