//! What makes no sense costs itself alone.

use serde_json::json;
use svc_lab::api::{Api, Resource};

use crate::fixture::{Fixture, pair, service};

#[tokio::test(flavor = "multi_thread")]
async fn malformed_objects_are_skipped_alone() {
    let api = Api::new();
    api.replace_all(pair());
    let junk = [json!(7), json!(null), json!([]), json!("x"), json!({}), json!({"metadata": 5})];
    for (i, value) in junk.iter().enumerate() {
        api.inject(Resource::Services, "shop", &format!("junk{i}"), value.clone());
        api.inject(Resource::EndpointSlices, "shop", &format!("junk{i}"), value.clone());
    }
    let mut half = service("half", "10.0.0.5");
    half["spec"]["ports"] = json!([{"port": "eighty"}, {"port": 81}]);
    api.apply(half.clone());
    let mut fixture = Fixture::start(api.clone()).await;
    fixture.until("synced", |world| world.synced == 1).await;
    assert_eq!(fixture.world.services.keys().collect::<Vec<_>>(), ["a", "b", "half"]);
    assert_eq!(fixture.world.services["half"].ports.len(), 1, "the good port is used");
    let problem = fixture.world.problems.iter().find(|problem| problem.name == "shop/half").expect("reported");
    assert_eq!((problem.kind, problem.field.as_str()), ("Service", "spec.ports[0].port"));

    // In the watch: an object that was good keeps what it had, others go on.
    fixture.watched().await;
    let broken = json!({"kind": "Service", "metadata": {"name": "a", "namespace": "shop"}, "spec": "junk"});
    api.apply(broken);
    fixture.until("problem", |world| world.problems.iter().any(|problem| problem.name == "shop/a")).await;
    for (i, value) in junk.iter().enumerate() {
        api.inject(Resource::Services, "shop", &format!("later{i}"), value.clone());
        fixture.flush(&format!("after{i}")).await;
    }
    assert_eq!(fixture.world.address("a").as_deref(), Some("10.0.0.1"));
    fixture.assert_nothing_gone();
    api.apply(service("a", "10.0.0.7"));
    fixture.until("good again", |world| world.address("a").as_deref() == Some("10.0.0.7")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_no_event_costs_a_list_and_no_object() {
    for line in ["{oops}", "{\"type\":\"WHAT\",\"object\":{}}", "5", "{\"type\":\"ADDED\"}", "", "null"] {
        let mut fixture = Fixture::synced(pair()).await;
        fixture.api.send_line(Resource::Services, line);
        fixture.api.delete(Resource::Services, "shop", "b");
        fixture.until(line, |world| world.gone.contains("b")).await;
        fixture.flush("end").await;
        assert_eq!(fixture.world.gone.len(), 1, "{line}");
    }
}
