//! Lists and watches that end before their time.

use std::time::Duration;

use svc_lab::api::{Api, Cut, Gone, Resource, Verb};

use crate::fixture::{Fixture, PATIENCE, World, node, pair, service, slice};

#[tokio::test(flavor = "multi_thread")]
async fn a_list_in_pages_is_complete_before_synced() {
    let objects = (0..600).flat_map(|i| {
        let name = format!("s{i:03}");
        [service(&name, &format!("10.0.{}.{}", i / 200, i % 200 + 1)), slice(&name, "10.1.0.1")]
    });
    let fixture = Fixture::synced(objects.collect()).await;
    assert_eq!((fixture.world.services.len(), fixture.world.slices.len()), (600, 600));
    assert_eq!(fixture.api.requests(Resource::Services, Verb::List), 3);
    assert!(fixture.api.query(Resource::Services, Verb::List, "continue").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_expires_starts_the_list_again() {
    let api = Api::new();
    let objects = (0..600).map(|i| service(&format!("s{i:03}"), &format!("10.0.{}.{}", i / 200, i % 200 + 1)));
    api.replace_all(objects.collect());
    // Slow enough for the token to expire between two pages.
    api.delay(Duration::from_millis(100));
    let mut fixture = Fixture::start(api.clone()).await;
    tokio::time::timeout(PATIENCE, api.wait(|api| api.requests(Resource::Services, Verb::List) == 2)).await.unwrap();
    api.expire_pages();
    fixture.until("synced", |world| world.synced == 1).await;
    assert_eq!(fixture.world.services.len(), 600);
    assert_eq!(api.requests(Resource::Services, Verb::List), 5, "two pages, the second refused; then all three");
    fixture.assert_nothing_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_cut_goes_on_where_it_was() {
    let mut fixture = Fixture::synced(pair()).await;
    let lists = fixture.api.requests(Resource::Services, Verb::List);
    let mut cuts = vec![Cut::Clean];
    for after in [0, 1, 17, 200, 10_000] {
        cuts.extend([Cut::Truncated { after }, Cut::Abrupt { after }]);
    }
    for (i, cut) in cuts.into_iter().enumerate() {
        let watches = fixture.api.requests(Resource::Services, Verb::Watch);
        fixture.api.cut_watches(cut);
        // With bytes left to send, the watch is cut in the middle of what comes next.
        fixture.flush(&format!("x{i}")).await;
        fixture.api.delete(Resource::Services, "shop", &format!("x{i}"));
        let gone = format!("x{i}");
        fixture.until("gone", |world| world.gone.contains(&gone)).await;
        if cut != (Cut::Truncated { after: 10_000 }) && cut != (Cut::Abrupt { after: 10_000 }) {
            assert!(fixture.api.requests(Resource::Services, Verb::Watch) > watches, "{cut:?}");
        }
    }
    assert!(fixture.world.services.contains_key("a") && fixture.world.services.contains_key("b"));
    assert_eq!(fixture.world.gone.len(), 11, "only what was deleted: {:?}", fixture.world.gone);
    assert_eq!(fixture.api.requests(Resource::Services, Verb::List), lists, "no list was needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_may_be_cut_at_any_byte_of_an_event() {
    let mut fixture = Fixture::synced(pair()).await;
    // An event of one of these Services has some 400 bytes.
    for (i, after) in (2..420).step_by(19).enumerate() {
        let cut = if i % 2 == 0 { Cut::Truncated { after } } else { Cut::Abrupt { after } };
        fixture.api.cut_watches(cut);
        let address = format!("10.0.7.{i}");
        fixture.api.apply(service("a", &address));
        fixture.until(&format!("{cut:?}"), |world| world.address("a").as_deref() == Some(&*address)).await;
        fixture.watched().await;
    }
    fixture.assert_nothing_gone();
    assert_eq!(fixture.world.problems.len(), 0, "{:?}", fixture.world.problems);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_out_of_order_and_of_nothing_are_put_right_by_the_next_list() {
    let mut fixture = Fixture::synced(pair()).await;
    let event = |kind: &str, object: serde_json::Value| {
        let mut object = object;
        object["metadata"]["resourceVersion"] = "1".into();
        serde_json::json!({"type": kind, "object": object}).to_string()
    };
    fixture.api.apply(service("a", "10.0.0.8"));
    fixture.until("the newer one", |world| world.address("a").as_deref() == Some("10.0.0.8")).await;
    // The state before comes after it; one that was never there goes; one that is there comes again.
    for line in [
        event("MODIFIED", service("a", "10.0.0.1")),
        event("DELETED", service("never", "10.0.0.4")),
        event("ADDED", service("b", "10.0.0.2")),
        event("DELETED", service("b", "10.0.0.2")),
        event("MODIFIED", service("b", "10.0.0.2")),
    ] {
        fixture.api.send_line(Resource::Services, &line);
    }
    fixture.until("b again", |world| world.gone.contains("b") && world.services.contains_key("b")).await;
    fixture.api.forget_history();
    fixture.api.gone(1, Gone::Event);
    fixture.api.cut_watches(Cut::Clean);
    fixture.until("what is so", |world| world.address("a").as_deref() == Some("10.0.0.8")).await;
    assert!(fixture.world.services.contains_key("b") && fixture.world.slices.len() == 2);
    assert_eq!(fixture.world.synced, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_half_of_the_objects_takes_these_and_no_others_until_they_are_back() {
    let all: Vec<_> = (0..40_u8)
        .flat_map(|i| [service(&format!("s{i:02}"), &format!("10.0.3.{i}")), slice(&format!("s{i:02}"), "10.1.0.1")])
        .collect();
    let mut fixture = Fixture::synced(all.clone()).await;
    let changes = fixture.world.changes;
    fixture.api.refuse(true);
    fixture.api.replace_all(all[..40].to_vec());
    fixture.api.forget_history();
    fixture.api.refuse(false);
    fixture.until("half to be gone", |world| world.gone.len() == 40).await;
    fixture.watched().await;
    assert_eq!((fixture.world.services.len(), fixture.world.slices.len()), (20, 20));
    assert_eq!(fixture.world.changes - changes, 40, "those that stayed were not touched");
    fixture.api.refuse(true);
    fixture.api.replace_all(all);
    fixture.api.forget_history();
    fixture.api.refuse(false);
    fixture.until("all of them", |world| world.services.len() == 40 && world.slices.len() == 40).await;
    assert_eq!(fixture.world.changes - changes, 80);
    assert_eq!(fixture.world.synced, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_history_is_listed_anew_and_only_the_difference_reported() {
    for how in [Gone::Status, Gone::Event] {
        let mut fixture = Fixture::synced(pair()).await;
        let before = fixture.world.changes;
        // All three watches begin again and are told so; meanwhile an object goes, one comes and one changes.
        fixture.api.refuse(true);
        fixture.api.delete(Resource::Services, "shop", "b");
        fixture.api.apply(service("c", "10.0.0.3"));
        fixture.api.apply(slice("a", "10.1.0.9"));
        fixture.api.gone(1, how);
        fixture.api.refuse(false);
        let done = |world: &World| {
            let changed =
                world.slices.get("a-1").is_some_and(|slice| slice.endpoints[0].address.to_string() == "10.1.0.9");
            world.gone.contains("b") && world.services.contains_key("c") && changed
        };
        fixture.until("difference", done).await;
        fixture.watched().await;
        fixture.flush("end").await;
        assert_eq!(fixture.world.gone.len(), 1, "{how:?}: {:?}", fixture.world.gone);
        assert_eq!(fixture.world.changes - before, 5, "{how:?}: three, and two to flush");
        assert_eq!(fixture.world.synced, 1);
        assert_eq!(fixture.api.requests(Resource::Services, Verb::List), 2, "{how:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_too_short_is_noticed_by_an_open_watch() {
    let mut fixture = Fixture::synced(pair()).await;
    fixture.api.refuse(true);
    fixture.api.limit_history(2);
    fixture.api.delete(Resource::Services, "shop", "b");
    for i in 1..9 {
        fixture.api.apply(service("a", &format!("10.0.1.{i}")));
    }
    fixture.api.refuse(false);
    let done = |world: &World| world.gone.contains("b") && world.address("a").as_deref() == Some("10.0.1.8");
    fixture.until("difference", done).await;
    assert_eq!(fixture.world.gone.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_spare_a_list() {
    let mut fixture = Fixture::synced(pair()).await;
    fixture.api.advance(1000);
    fixture.api.bookmark();
    tokio::time::timeout(PATIENCE, fixture.api.wait(|api| api.bookmarks() == 3)).await.expect("bookmarks sent");
    // An event after the bookmark says that the bookmark has arrived; it is of one kind only.
    fixture.flush("after").await;
    fixture.api.apply(node("node-a", "z1"));
    fixture.until("node", |world| world.node.is_some()).await;
    fixture.api.advance(1000);
    fixture.api.bookmark();
    tokio::time::timeout(PATIENCE, fixture.api.wait(|api| api.bookmarks() == 6)).await.expect("bookmarks sent");
    fixture.api.cut_watches(Cut::Clean);
    let again = |api: &Api| Resource::ALL.into_iter().all(|resource| api.requests(resource, Verb::Watch) == 2);
    tokio::time::timeout(PATIENCE, fixture.api.wait(again)).await.expect("watching again in time");
    fixture.flush("end").await;
    for resource in Resource::ALL {
        assert_eq!(fixture.api.requests(resource, Verb::List), 1, "{resource:?}");
        let version: u64 = fixture.api.query(resource, Verb::Watch, "resourceVersion").unwrap().parse().unwrap();
        assert!(version > 2000, "{resource:?} goes on after the bookmark, not at {version}");
    }
    fixture.assert_nothing_gone();
}
