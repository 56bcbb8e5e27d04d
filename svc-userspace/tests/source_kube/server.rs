//! API servers that fail, are away, come late or are slow; and the ends of the source itself.

use std::time::Duration;

use svc_lab::api::{Api, Cut, Resource, Server};
use svc_userspace::source::{SourceError, kube};

use crate::fixture::{Fixture, PATIENCE, pair, service};

#[tokio::test(flavor = "multi_thread")]
async fn failing_requests_are_tried_again() {
    for status in [500, 503, 403, 429] {
        let api = Api::new();
        api.replace_all(pair());
        api.fail(4, status);
        let mut fixture = Fixture::start(api).await;
        fixture.until("synced", |world| world.synced == 1).await;
        assert_eq!(fixture.world.services.len(), 2, "{status}");
        fixture.watched().await;
        fixture.api.fail(4, status);
        fixture.api.cut_watches(Cut::Abrupt { after: 0 });
        fixture.flush("end").await;
        fixture.assert_nothing_gone();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_costs_no_object() {
    let mut fixture = Fixture::synced(pair()).await;
    fixture.api.refuse(true);
    fixture.api.delete(Resource::Services, "shop", "b");
    fixture.api.apply(service("c", "10.0.0.3"));
    // Nothing can be reported while it is away: a wait for nothing has to take some time.
    assert!(tokio::time::timeout(Duration::from_millis(300), fixture.changes.recv()).await.is_err());
    assert!(!fixture.task.is_finished());
    fixture.api.refuse(false);
    fixture.until("back", |world| world.gone.contains("b") && world.services.contains_key("c")).await;
    assert_eq!(fixture.world.gone.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_may_come_later_and_be_restarted() {
    let api = Api::new();
    api.replace_all(pair());
    let mut fixture = Fixture::start(api.clone()).await;
    let address = fixture.server.as_ref().unwrap().address();
    fixture.server = None;
    assert!(!fixture.task.is_finished());
    let restart = async || loop {
        // The old listener closes when its task has noticed.
        match Server::start(&api, address) {
            Ok(server) => return server,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let first = restart().await;
    fixture.until("synced", |world| world.synced == 1).await;
    fixture.watched().await;
    drop(first);
    api.forget_history();
    api.advance(5);
    fixture.server = Some(restart().await);
    fixture.flush("end").await;
    fixture.assert_nothing_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_api_server_is_waited_for() {
    let api = Api::new();
    api.replace_all(pair());
    api.delay(Duration::from_millis(300));
    let mut fixture = Fixture::start(api).await;
    fixture.until("synced", |world| world.synced == 1).await;
    fixture.flush("end").await;
    fixture.assert_nothing_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn run_ends_when_nobody_listens() {
    let fixture = Fixture::synced(pair()).await;
    drop(fixture.changes);
    tokio::time::timeout(PATIENCE, fixture.task).await.expect("ends").expect("no panic").expect("no error");
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    for content in [None, Some("{"), Some("kind: Config"), Some("just text")] {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error = kube::client(Some(&path)).await.map(|_| ()).expect_err("not usable");
        assert!(matches!(error, SourceError::Kubeconfig { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.lines().count() == 1, "{text}");
    }
}
