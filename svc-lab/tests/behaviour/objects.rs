//! Families, labels and the addresses that a Service has beside its cluster IPs: what each field does, and what becomes of
//! it when the field changes.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use svc_lab::Service;

use crate::{
    doors::{BOTH, Expected, Kind, doors, lead_to, loopback},
    feed::Feed,
    shop::{NODE_PORT, PORT, Shop, TARGET, cluster_ips, external, service},
};

/// Addresses in `spec.externalIPs`.
const EXTERNAL: u8 = 200;

/// A Service with an address of every sort, in both families.
fn web() -> Service {
    service("web", 1)
        .node_port(PORT, TARGET, NODE_PORT)
        .load_balancer(&external(1))
        .spec("externalIPs", json!(external(EXTERNAL)))
}

/// The doors of [`web`] in some of the families: 0 is IPv4, 1 is IPv6. The others are shut.
fn of_families<'a>(shop: &Shop, families: &[usize], servers: &'a [&'a str]) -> Expected<'a> {
    let node = shop.lab.node(1).addresses.both();
    let sorts = [
        (Kind::ClusterIp, cluster_ips(1), PORT),
        (Kind::NodePort, node, NODE_PORT),
        (Kind::NodePort, loopback(), NODE_PORT),
        (Kind::LoadBalancer, external(1), PORT),
        (Kind::ExternalIp, external(EXTERNAL), PORT),
    ];
    let each = |(kind, addresses, port): (Kind, [std::net::IpAddr; 2], u16)| {
        let door = move |family: usize| doors(kind, &addresses[family..=family], port, &BOTH);
        let servers = move |family| if families.contains(&family) { servers } else { &[] };
        (0..2).flat_map(move |family| lead_to(door(family), servers(family)))
    };
    sorts.into_iter().flat_map(each).collect()
}

#[test]
fn a_family_comes_and_goes_with_everything_that_belongs_to_it() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let dual = web();
    // The slices of both families stay whatever the Service says.
    feed.put("slices", &dual.slices(&[&shop.a, &shop.b]))?;
    let put = |families: &[usize]| {
        let mut object = dual.object.clone();
        let pick = |all: [Value; 2]| families.iter().map(|&family| all[family].clone()).collect::<Value>();
        let addresses = cluster_ips(1).map(|it| json!(it));
        object["spec"]["clusterIP"] = addresses[families[0]].clone();
        object["spec"]["clusterIPs"] = pick(addresses);
        object["spec"]["ipFamilies"] = pick(["IPv4".into(), "IPv6".into()]);
        object["spec"]["ipFamilyPolicy"] = if families.len() == 1 { "SingleStack" } else { "RequireDualStack" }.into();
        feed.put("web", &[object])
    };
    put(&[0])?;
    let _agent = shop.agent(feed.source(), &["--external-ips"])?;
    for families in [&[0][..], &[0, 1], &[1], &[1, 0], &[0], &[1], &[0, 1], &[1, 0]] {
        put(families)?;
        shop.has(&of_families(&shop, families, &["a", "b"])).with_context(|| format!("families {families:?}"))?;
    }
    Ok(())
}

fn another_proxys(shop: &Shop, feed: &Feed) -> Result<()> {
    let put = |label: Option<&str>| {
        let mut objects = web().with(&[&shop.a, &shop.b]);
        if let Some(value) = label {
            objects[0]["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = value.into();
        }
        feed.put("web", &objects)
    };
    put(Some("other"))?;
    feed.put("ours", &service("ours", 2).port(PORT, TARGET).with(&[&shop.a]))?;
    let _agent = shop.agent(feed.source(), &["--external-ips"])?;
    for (label, families) in [(Some("other"), &[][..]), (None, &[0, 1]), (Some(""), &[]), (None, &[0, 1])] {
        put(label)?;
        let mut expected = of_families(shop, families, &["a", "b"]);
        expected.extend(lead_to(doors(Kind::ClusterIp, &cluster_ips(2), PORT, &BOTH), &["a"]));
        shop.has(&expected).with_context(|| format!("with the label {label:?}"))?;
    }
    Ok(())
}

#[test]
fn a_service_of_another_proxy_is_ours_while_it_has_no_label_in_manifests() -> Result<()> {
    let shop = Shop::open()?;
    another_proxys(&shop, &Feed::manifests(&shop)?)
}

#[test]
fn a_service_of_another_proxy_is_ours_while_it_has_no_label_in_the_api() -> Result<()> {
    let shop = Shop::open()?;
    another_proxys(&shop, &Feed::api(&shop)?)
}

#[test]
fn external_addresses_are_served_only_where_the_agent_is_told_to() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    feed.put("web", &web().with(&[&shop.a]))?;
    for (extra, servers) in [(&[][..], &[][..]), (&["--external-ips"], &["a"]), (&[], &[])] {
        let mut agent = shop.agent(feed.source(), extra)?;
        let mut expected = of_families(&shop, &[0, 1], &["a"]);
        for (door, behind) in &mut expected {
            if door.kind == Kind::ExternalIp {
                *behind = servers;
            }
        }
        shop.has(&expected).with_context(|| format!("with {extra:?}"))?;
        agent.terminate()?;
    }
    Ok(())
}

#[test]
fn load_balancer_addresses_count_by_their_mode_and_host_names_do_not() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let put = |mode: Value| {
        let mut objects = service("web", 1).node_port(PORT, TARGET, NODE_PORT).load_balancer(&[]).with(&[&shop.a]);
        let named = [json!({"hostname": "web.example"}), json!({"hostname": "192.0.2.1", "ipMode": "VIP"})];
        let entries = external(1).into_iter().map(|ip| json!({"ip": ip, "ipMode": mode, "hostname": "web.example"}));
        objects[0]["status"]["loadBalancer"]["ingress"] = named.into_iter().chain(entries).collect();
        feed.put("web", &objects)
    };
    put("Proxy".into())?;
    let _agent = shop.agent(feed.source(), &[])?;
    for (mode, servers) in
        [("Proxy".into(), &[][..]), ("VIP".into(), &["a"]), ("Proxy".into(), &[]), (Value::Null, &["a"])]
    {
        put(mode.clone())?;
        let mut expected = of_families(&shop, &[0, 1], &["a"]);
        expected.retain(|(door, _)| door.kind != Kind::ExternalIp);
        for (door, behind) in &mut expected {
            if door.kind == Kind::LoadBalancer {
                *behind = servers;
            }
        }
        shop.has(&expected).with_context(|| format!("with mode {mode}"))?;
    }
    ensure!(
        !shop.lab.svc(1, &["services", "-o", "wide"])?.contains("192.0.2.1"),
        "a host name was taken for an address"
    );
    Ok(())
}

#[test]
fn a_load_balancer_has_no_node_ports_if_none_are_allocated() -> Result<()> {
    let shop = Shop::open()?;
    let feed = Feed::manifests(&shop)?;
    let without = || {
        service("web", 1)
            .port(PORT, TARGET)
            .load_balancer(&external(1))
            .spec("allocateLoadBalancerNodePorts", false)
            .with(&[&shop.a])
    };
    feed.put("web", &without())?;
    let _agent = shop.agent(feed.source(), &[])?;
    for allocated in [false, true, false] {
        let objects = if allocated { web().spec("externalIPs", Value::Null).with(&[&shop.a]) } else { without() };
        feed.put("web", &objects)?;
        let mut expected = of_families(&shop, &[0, 1], &["a"]);
        expected.retain(|(door, _)| door.kind != Kind::ExternalIp);
        for (door, behind) in &mut expected {
            if door.kind == Kind::NodePort && !allocated {
                *behind = &[];
            }
        }
        shop.has(&expected).with_context(|| format!("allocated: {allocated}"))?;
    }
    Ok(())
}
