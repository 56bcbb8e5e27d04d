//! The Kubernetes source with the real client against the double of the API server, one fault at a time.
//!
//! In every case: nothing is reported gone because of the fault, and in the end what was reported is what exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};
use svc_lab::api::{Api, Cut, Gone, Resource, Server, Verb};
use svc_userspace::{
    model::{Change, Node, Problem, Service, Slice},
    source::{SourceError, SourceOptions, kube},
};
use tokio::{sync::mpsc, task::JoinHandle};

/// Upper bound of every wait; none of them takes that long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a receiver of changes knows.
#[derive(Default)]
struct World {
    services: BTreeMap<String, Service>,
    slices: BTreeMap<String, Slice>,
    node: Option<Node>,
    synced: u32,
    problems: Vec<Problem>,
    /// Everything that was ever reported gone.
    gone: BTreeSet<String>,
    /// Changes of objects.
    changes: u32,
}

impl World {
    fn apply(&mut self, change: Change) {
        self.changes += 1;
        match change {
            Change::Service(name, Some(service)) => {
                self.services.insert(name.name.to_string(), *service);
            }
            Change::Service(name, None) => {
                self.services.remove(&*name.name);
                self.gone.insert(name.name.to_string());
            }
            Change::Slice(name, Some(slice)) => {
                self.slices.insert(name.name.to_string(), *slice);
            }
            Change::Slice(name, None) => {
                self.slices.remove(&*name.name);
                self.gone.insert(name.name.to_string());
            }
            Change::Node(node) => self.node = node.map(|node| *node),
            Change::Synced => self.synced += 1,
            Change::Problem(problem) => self.problems.push(problem),
            Change::Readable(path) => self.problems.retain(|problem| problem.name != path),
        }
    }

    fn address(&self, service: &str) -> Option<String> {
        Some(self.services.get(service)?.cluster_ips[0].to_string())
    }
}

struct Fixture {
    api: Api,
    server: Option<Server>,
    changes: mpsc::Receiver<Change>,
    world: World,
    task: JoinHandle<Result<(), SourceError>>,
    _dir: tempfile::TempDir,
}

impl Fixture {
    /// A source that follows an API server with these objects, synced.
    async fn synced(objects: Vec<Value>) -> Self {
        let api = Api::new();
        api.replace_all(objects);
        let mut fixture = Self::start(api).await;
        fixture.until("synced", |world| world.synced == 1).await;
        fixture.watched().await;
        fixture
    }

    async fn start(api: Api) -> Self {
        let server = Server::start(&api, "127.0.0.1:0".parse().unwrap()).expect("listening");
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("kubeconfig");
        server.write_kubeconfig(&path).expect("kubeconfig");
        let client = kube::client(Some(&path)).await.expect("client");
        let (sender, changes) = mpsc::channel(4096);
        let task = tokio::spawn(kube::run(client, options(), sender));
        Self { api, server: Some(server), changes, world: World::default(), task, _dir: dir }
    }

    /// Takes changes until the condition holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&World) -> bool) {
        let world = &mut self.world;
        let wait = async {
            while !condition(world) {
                world.apply(self.changes.recv().await.expect("the source runs"));
            }
        };
        let done = tokio::time::timeout(PATIENCE, wait).await;
        assert!(done.is_ok(), "{what} in time; problems: {:?}, gone: {:?}", self.world.problems, self.world.gone);
    }

    /// Waits until every kind is watched.
    async fn watched(&self) {
        let all = |api: &Api| Resource::ALL.into_iter().all(|resource| api.watching(resource) == 1);
        tokio::time::timeout(PATIENCE, self.api.wait(all)).await.expect("watching in time");
    }

    /// A change that is made now arrives: whatever came before it has arrived as well.
    async fn flush(&mut self, name: &str) {
        self.api.apply(service(name, "10.9.9.9"));
        self.api.apply(slice(name, "10.9.9.9"));
        let (service, slice) = (name.to_owned(), format!("{name}-1"));
        self.until(name, |world| world.services.contains_key(&service) && world.slices.contains_key(&slice)).await;
    }

    /// Nothing was ever reported gone.
    fn assert_nothing_gone(&self) {
        assert!(self.world.gone.is_empty(), "{:?}", self.world.gone);
        assert_eq!(self.world.synced, 1, "once");
    }
}

fn options() -> SourceOptions {
    SourceOptions { node_name: "node-a".into(), external_ips: false, claims: svc_userspace::model::Claims::Nobody }
}

fn service(name: &str, address: &str) -> Value {
    json!({
        "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": [{"port": 80}]},
    })
}

fn slice(service: &str, address: &str) -> Value {
    json!({
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-1"), "namespace": "shop", "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": [address]}],
    })
}

fn node(name: &str, zone: &str) -> Value {
    json!({"kind": "Node", "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}})
}

fn labelled(mut object: Value, label: &str) -> Value {
    object["metadata"]["labels"][label] = json!("");
    object
}

fn pair() -> Vec<Value> {
    vec![service("a", "10.0.0.1"), slice("a", "10.1.0.1"), service("b", "10.0.0.2"), slice("b", "10.1.0.2")]
}

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
