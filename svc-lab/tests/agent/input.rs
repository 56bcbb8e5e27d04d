//! Bad input: it is named, and costs itself alone.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use svc_lab::{Protocol, Service, Source};

use crate::shop::{Shop, eventually, is_silent, logged, said, service, vips, works};

#[test]
fn a_broken_manifest_is_named_by_line_and_its_last_good_content_stays() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("one", &service(1).with(&[&shop.a]))?;
    let agent = shop.agent(Source::Manifests(manifests.path()))?;
    manifests.write_text("one.json", "{\n  \"kind\": \"List\",\n  \"items\": [}\n")?;
    manifests.write("two", &service(2).with(&[&shop.b]))?;
    eventually("the Service of a good file", || works(&shop.client, 2, &["b"]))?;
    let line = logged(agent.log(), &["WARN", "one.json"])?;
    assert!(line.contains("3:"), "line 3 is not named: {line}");
    works(&shop.client, 1, &["a"])?;
    manifests.write("one", &service(1).with(&[&shop.b]))?;
    eventually("the corrected file", || works(&shop.client, 1, &["b"]))?;
    manifests.remove("one")?;
    eventually("the end of a removed Service", || is_silent(&shop.client, 1))?;
    works(&shop.client, 2, &["b"])
}

#[test]
fn nonsense_next_to_good_objects_leaves_these_alone() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("good", &service(1).with(&[&shop.a]))?;
    let mut agent = shop.lab.start_agent(1, Source::Manifests(manifests.path()), &["--backends", "16384"])?;

    let mut absurd = service(2).with(&[&shop.a]);
    for port in [json!(0), json!(-1), json!(70_000), json!("http"), json!(1e40), json!(null)] {
        absurd[0]["spec"]["ports"]
            .as_array_mut()
            .context("ports")?
            .push(json!({"name": port.to_string(), "port": port}));
    }
    absurd.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": 7, "spec": []}));
    absurd.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": [[]]}));
    manifests.write("absurd", &absurd)?;
    manifests.write("no-objects", &[json!([[]]), json!(7)])?;
    let mut twice = service(3).with(&[&shop.a, &shop.a, &shop.a]);
    let mut again = twice[1].clone();
    again["metadata"]["name"] = "again".into();
    twice.push(again);
    // A second Service that claims the addresses of the first.
    let mut thief = service(1);
    thief.object["metadata"]["name"] = "thief".into();
    twice.extend(thief.with(&[&shop.b]));
    manifests.write("twice", &twice)?;
    manifests.write("empty", &service(4).with(&[]))?;
    let crowd = Service::new("shop", "crowd", &vips(5)).one_port(Protocol::Tcp, 80, 8080, None);
    let mut slices = crowd.with(&[&shop.a]);
    let endpoint = |nth: u32| json!({"addresses": [format!("10.200.{}.{}", nth / 250, nth % 250 + 1)]});
    slices[1]["endpoints"] = (0..5000).map(endpoint).collect();
    manifests.write("crowd", &slices)?;

    eventually("a Service with duplicate endpoints", || works(&shop.client, 3, &["a"]))?;
    eventually("a Service with absurd ports", || works(&shop.client, 2, &["a"]))?;
    eventually("5,000 endpoints", || {
        let rows = said(&shop.lab, "services")?;
        let crowd = rows.iter().find(|row| row.to_string().contains("crowd") && row.to_string().contains("10.96.0.5"));
        ensure!(crowd.is_some_and(|row| row["active_backends"] == 5000), "{crowd:?}");
        Ok(())
    })?;
    eventually("the rejection of a Service without endpoints", || {
        let refused = shop.client.tcp((vips(4)[0], 80));
        ensure!(refused.as_ref().is_err_and(|it| it.kind == svc_lab::FailureKind::Refused), "{refused:?}");
        Ok(())
    })?;
    works(&shop.client, 1, &["a"])?;
    for words in [["shop/web-2", "spec.ports[2].port"], ["shop/thief", "web-1"]] {
        logged(agent.log(), &words)?;
    }
    assert!(agent.has_ended()?.is_none());
    let (code, body) = agent.healthz("/livez")?;
    assert_eq!(code, 200, "{body}");
    Ok(())
}
