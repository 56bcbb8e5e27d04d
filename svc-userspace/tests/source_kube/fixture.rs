//! A source that follows an API server's double, what it has reported, and objects to put there.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};
use svc_lab::api::{Api, Resource, Server};
use svc_userspace::{
    model::{Change, Node, Problem, Service, Slice},
    source::{SourceError, SourceOptions, kube},
};
use tokio::{sync::mpsc, task::JoinHandle};

/// Upper bound of every wait; none of them takes that long unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What a receiver of changes knows.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) services: BTreeMap<String, Service>,
    pub(crate) slices: BTreeMap<String, Slice>,
    pub(crate) node: Option<Node>,
    pub(crate) synced: u32,
    pub(crate) problems: Vec<Problem>,
    /// Everything that was ever reported gone.
    pub(crate) gone: BTreeSet<String>,
    /// Changes of objects.
    pub(crate) changes: u32,
}

impl World {
    pub(crate) fn apply(&mut self, change: Change) {
        self.changes += 1;
        match change {
            Change::Service(name, Some(service)) => {
                self.services.insert(name.name.to_string(), *service);
            }
            Change::Service(name, None) => {
                self.services.remove(&*name.name);
                self.gone.insert(name.name.to_string());
            }
            Change::Unbalanced(name, _) => panic!("{name}: nobody serves names"),
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

    pub(crate) fn address(&self, service: &str) -> Option<String> {
        Some(self.services.get(service)?.cluster_ips[0].to_string())
    }
}

pub(crate) struct Fixture {
    pub(crate) api: Api,
    pub(crate) server: Option<Server>,
    pub(crate) changes: mpsc::Receiver<Change>,
    pub(crate) world: World,
    pub(crate) task: JoinHandle<Result<(), SourceError>>,
    pub(crate) _dir: tempfile::TempDir,
}

impl Fixture {
    /// A source that follows an API server with these objects, synced.
    pub(crate) async fn synced(objects: Vec<Value>) -> Self {
        let api = Api::new();
        api.replace_all(objects);
        let mut fixture = Self::start(api).await;
        fixture.until("synced", |world| world.synced == 1).await;
        fixture.watched().await;
        fixture
    }

    pub(crate) async fn start(api: Api) -> Self {
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
    pub(crate) async fn until(&mut self, what: &str, condition: impl Fn(&World) -> bool) {
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
    pub(crate) async fn watched(&self) {
        let all = |api: &Api| Resource::ALL.into_iter().all(|resource| api.watching(resource) == 1);
        tokio::time::timeout(PATIENCE, self.api.wait(all)).await.expect("watching in time");
    }

    /// A change that is made now arrives: whatever came before it has arrived as well.
    pub(crate) async fn flush(&mut self, name: &str) {
        self.api.apply(service(name, "10.9.9.9"));
        self.api.apply(slice(name, "10.9.9.9"));
        let (service, slice) = (name.to_owned(), format!("{name}-1"));
        self.until(name, |world| world.services.contains_key(&service) && world.slices.contains_key(&slice)).await;
    }

    /// Nothing was ever reported gone.
    pub(crate) fn assert_nothing_gone(&self) {
        assert!(self.world.gone.is_empty(), "{:?}", self.world.gone);
        assert_eq!(self.world.synced, 1, "once");
    }
}

fn options() -> SourceOptions {
    SourceOptions {
        node_name: "node-a".into(),
        external_ips: false,
        claims: svc_userspace::model::Claims::Nobody,
        names: false,
    }
}

pub(crate) fn service(name: &str, address: &str) -> Value {
    json!({
        "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": [{"port": 80}]},
    })
}

pub(crate) fn slice(service: &str, address: &str) -> Value {
    json!({
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-1"), "namespace": "shop", "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": [address]}],
    })
}

pub(crate) fn node(name: &str, zone: &str) -> Value {
    json!({"kind": "Node", "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}})
}

pub(crate) fn labelled(mut object: Value, label: &str) -> Value {
    object["metadata"]["labels"][label] = json!("");
    object
}

pub(crate) fn pair() -> Vec<Value> {
    vec![service("a", "10.0.0.1"), slice("a", "10.1.0.1"), service("b", "10.0.0.2"), slice("b", "10.1.0.2")]
}
