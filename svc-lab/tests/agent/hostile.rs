//! Services and slices that are made to take what is another's ([docs/security.md] has the cases).

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use svc_lab::{FailureKind, Service, Source};

use crate::shop::{SMALL, Shop, eventually, logged, service, vips, works};

/// A Service of namespace `evil`, whose name is the first of all, with a load balancer's address and external IPs.
fn thief(shop: &Shop, name: &str, nth: u8, port: u16, balancer: &Value, external: &Value) -> Vec<Value> {
    let mut web = Service::new("evil", name, &vips(nth)).port(port, 8080);
    web.object["spec"]["type"] = json!("LoadBalancer");
    web.object["spec"]["externalIPs"] = external.clone();
    let ingress = balancer.as_array().into_iter().flatten().map(|ip| json!({"ip": ip}));
    web.object["status"] = json!({"loadBalancer": {"ingress": ingress.collect::<Vec<_>>()}});
    web.with(&[&shop.b])
}

#[test]
fn nobody_takes_over_a_cluster_ip_a_load_balancers_address_or_the_api_server() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    let api = shop.lab.pod(1, "api")?;
    shop.lab.serve(&api, 8080)?;
    let api_address = api.addresses.v4;
    // The thieves are there first, and come first in every order.
    let victims = json!(vips(1));
    manifests.write("a", &thief(&shop, "a", 7, 80, &victims, &victims))?;
    manifests.write("b", &thief(&shop, "b", 8, 80, &json!([]), &json!(["203.0.113.7"])))?;
    manifests.write("c", &thief(&shop, "c", 9, 8080, &json!([api_address]), &json!([])))?;
    let options = [&SMALL[..], &["--external-ips"]].concat();
    let mut agent = shop.lab.start_agent(1, Source::Manifests(manifests.path()), &options)?;
    works(&shop.client, 7, &["b"])?;

    let balanced = service(1).load_balancer(&["203.0.113.7".parse()?]);
    manifests.write("web", &balanced.with(&[&shop.a]))?;
    let mut kubernetes = Service::new("default", "kubernetes", &vips(2)).port(443, 8080).with(&[&api]);
    kubernetes[0]["spec"]["ports"][0]["name"] = json!("tcp-443");
    manifests.write("kubernetes", &kubernetes)?;
    let safe = || -> Result<()> {
        eventually("the owners to be served", || works(&shop.client, 1, &["a"]))?;
        eventually("the load balancer's address", || {
            let answer = shop.client.tcp(("203.0.113.7".parse::<std::net::IpAddr>()?, 80))?;
            ensure!(answer.answer.server == "a", "{answer:?}");
            Ok(())
        })?;
        eventually("the API server itself", || {
            let answer = shop.client.tcp((api_address, 8080))?;
            ensure!(answer.answer.server == "api", "{answer:?}");
            Ok(())
        })
    };
    safe()?;
    logged(agent.log(), &["WARN", "evil/a", "withheld", "10.96.0.1:80 is another Service's cluster IP"])?;
    logged(agent.log(), &["WARN", "evil/b", "203.0.113.7:80 is a load balancer's address of shop/web-1"])?;
    logged(agent.log(), &["WARN", "evil/c", "is the API server"])?;
    let metrics = agent.metrics()?;
    for name in ["a", "b", "c"] {
        let start = format!("svc_withheld_addresses{{namespace=\"evil\",name=\"{name}\"}}");
        assert!(metrics.lines().any(|line| line.starts_with(&start)), "{metrics}");
    }
    // On a node that knows nothing yet, and with nothing left of what was.
    agent.terminate()?;
    shop.lab.svc(1, &["cleanup"])?;
    agent.start()?;
    agent.wait_ready()?;
    safe()?;
    works(&shop.client, 7, &["b"])
}

#[test]
fn addresses_that_nobody_can_have_lead_nowhere() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    let hostile = ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255"];
    manifests.write("virtual", &thief(&shop, "virtual", 7, 80, &json!(hostile), &json!(hostile)))?;
    let mut lost = service(8).with(&[&shop.a]);
    for slice in &mut lost[1..] {
        let addresses: &[&str] =
            if slice["addressType"] == "IPv4" { &hostile } else { &["::1", "::", "fe80::1", "ff02::1"] };
        slice["endpoints"] = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    }
    manifests.write("endpoints", &lost)?;
    let options = [&SMALL[..], &["--external-ips"]].concat();
    let agent = shop.lab.start_agent(1, Source::Manifests(manifests.path()), &options)?;
    works(&shop.client, 7, &["b"])?;
    for address in vips(8) {
        let refused = shop.client.tcp((address, 80));
        ensure!(refused.as_ref().is_err_and(|it| it.kind == FailureKind::Refused), "{refused:?}");
    }
    let frontends = shop.lab.svc(1, &["services", "-o", "json"])?;
    let backends = shop.lab.svc(1, &["backends", "-o", "json"])?;
    for address in hostile.iter().skip(1).chain(&["fe80::1", "ff02::1"]) {
        ensure!(!frontends.contains(address) && !backends.contains(address), "{address}: {frontends} {backends}");
    }
    logged(agent.log(), &["WARN", "169.254.169.254 is a link-local address, which no Service can have"])?;
    logged(agent.log(), &["WARN", "169.254.169.254 is a link-local address, which no endpoint can have"])?;
    Ok(())
}
