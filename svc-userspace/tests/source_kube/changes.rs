//! What is listed and what changes without any fault: it arrives, once, and nothing else does.

use serde_json::json;
use svc_lab::api::{Resource, Verb};

use crate::fixture::{Fixture, World, labelled, node, pair, service, slice};

#[tokio::test(flavor = "multi_thread")]
async fn what_concerns_us_is_listed_and_nothing_else() {
    let mut headless = service("headless", "None");
    headless["spec"]["clusterIPs"] = json!(["None"]);
    let mut objects = pair();
    objects.extend([
        headless,
        labelled(service("other", "10.0.0.3"), "service.kubernetes.io/service-proxy-name"),
        labelled(slice("headless", "10.1.0.3"), "service.kubernetes.io/headless"),
        node("node-a", "z1"),
        node("node-b", "z2"),
    ]);
    let mut fixture = Fixture::synced(objects).await;
    fixture.until("node", |world| world.node.is_some()).await;
    let world = &fixture.world;
    assert_eq!(world.services.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(world.slices.keys().collect::<Vec<_>>(), ["a-1", "b-1"]);
    assert_eq!(world.node.as_ref().unwrap().zone.as_deref(), Some("z1"));
    for verb in [Verb::List, Verb::Watch] {
        let query = |resource, parameter: &str| fixture.api.query(resource, verb, parameter);
        let proxy = query(Resource::Services, "labelSelector");
        assert_eq!(proxy.as_deref(), Some("!service.kubernetes.io/service-proxy-name"));
        assert_eq!(query(Resource::Services, "fieldSelector").as_deref(), Some("spec.clusterIP!=None"));
        let headless = query(Resource::EndpointSlices, "labelSelector");
        assert_eq!(headless.as_deref(), Some("!service.kubernetes.io/headless"));
        assert_eq!(query(Resource::Nodes, "fieldSelector").as_deref(), Some("metadata.name=node-a"));
    }
    fixture.assert_nothing_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_arrive() {
    let mut fixture = Fixture::synced(pair()).await;
    fixture.api.apply(service("a", "10.0.0.9"));
    fixture.api.apply(node("node-a", "z1"));
    fixture.api.delete(Resource::Services, "shop", "b");
    fixture.api.delete(Resource::EndpointSlices, "shop", "b-1");
    let changed = |world: &World| {
        world.address("a").as_deref() == Some("10.0.0.9") && world.node.is_some() && world.gone.len() == 2
    };
    fixture.until("changes", changed).await;
    fixture.api.delete(Resource::Nodes, "", "node-a");
    fixture.until("no node", |world| world.node.is_none()).await;
    assert_eq!(fixture.world.gone.iter().collect::<Vec<_>>(), ["b", "b-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_kinds_change_at_run_time() {
    let mut fixture = Fixture::synced(pair()).await;
    fixture.api.apply(labelled(service("a", "10.0.0.1"), "service.kubernetes.io/service-proxy-name"));
    fixture.api.apply(labelled(slice("a", "10.1.0.1"), "service.kubernetes.io/headless"));
    let mut external = service("b", "10.0.0.2");
    external["spec"]["type"] = json!("ExternalName");
    fixture.api.apply(external);
    fixture.until("gone", |world| world.gone.len() == 3).await;
    assert_eq!(fixture.world.services.len(), 0);
    for object in pair() {
        fixture.api.apply(object);
    }
    fixture.until("back", |world| world.services.len() == 2 && world.slices.len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_event_twice_is_one_change() {
    let mut fixture = Fixture::synced(pair()).await;
    let changes = fixture.world.changes;
    fixture.api.duplicate(true);
    fixture.api.apply(service("a", "10.0.0.9"));
    fixture.api.delete(Resource::Services, "shop", "b");
    fixture.flush("end").await;
    assert_eq!(fixture.world.changes - changes, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_changes_nothing_for_us_is_not_reported() {
    let mut fixture = Fixture::synced(pair()).await;
    let changes = fixture.world.changes;
    let mut annotated = service("a", "10.0.0.1");
    annotated["metadata"]["annotations"] = json!({"x": "y"});
    fixture.api.apply(annotated);
    fixture.flush("end").await;
    assert_eq!(fixture.world.changes - changes, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_of_thousands_of_endpoints_arrives_whole() {
    let mut large = slice("large", "10.1.0.1");
    let endpoints =
        (0..5000).map(|i| json!({"addresses": [format!("10.2.{}.{}", i / 250, i % 250 + 1)], "nodeName": "n"}));
    large["endpoints"] = endpoints.collect();
    let fixture = Fixture::synced(vec![service("large", "10.0.0.1"), large]).await;
    assert_eq!(fixture.world.slices["large-1"].endpoints.len(), 5000);
}
