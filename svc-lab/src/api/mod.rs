//! A double of the Kubernetes API server: list and watch of Services, EndpointSlices and Nodes over plain HTTP, as the
//! real one does them, writes of these and of Leases with its preconditions, and faults on demand.
//!
//! The real client is what is tested against it. It validates nothing: whatever a test puts in, clients get. It never
//! does anything by itself; only the methods of [`Api`] and what clients write change what it holds.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! let api = svc_lab::api::Api::new();
//! let server = svc_lab::api::Server::start(&api, "127.0.0.1:0".parse().unwrap())?;
//! api.apply(serde_json::json!({"kind": "Node", "metadata": {"name": "a"}}));
//! server.write_kubeconfig(std::path::Path::new("kubeconfig"))?;
//! api.cut_watches(svc_lab::api::Cut::Abrupt { after: 10 });
//! # Ok(())
//! # }
//! ```

mod faults;
mod http;
mod listener;
mod selector;
mod store;
mod stream;
mod write;

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::watch;

pub use self::faults::{Cut, Gone};
use self::{faults::Faults, store::Store};

/// A collection of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// `/api/v1/services`.
    Services,
    /// `/apis/discovery.k8s.io/v1/endpointslices`.
    EndpointSlices,
    /// `/api/v1/nodes`.
    Nodes,
    /// `/apis/coordination.k8s.io/v1/leases`.
    Leases,
}

impl Resource {
    /// Those that every agent follows.
    pub const ALL: [Self; 3] = [Self::Services, Self::EndpointSlices, Self::Nodes];
    /// All of them.
    pub(crate) const STORED: [Self; 4] = [Self::Services, Self::EndpointSlices, Self::Nodes, Self::Leases];

    /// `kind` of its objects.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Nodes => "Node",
            Self::Leases => "Lease",
        }
    }

    /// `apiVersion` of its objects.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Services | Self::Nodes => "v1",
            Self::EndpointSlices => "discovery.k8s.io/v1",
            Self::Leases => "coordination.k8s.io/v1",
        }
    }

    /// Whether its objects live in a namespace.
    pub fn is_namespaced(self) -> bool {
        self != Self::Nodes
    }

    fn of(kind: &str) -> Option<Self> {
        Self::STORED.into_iter().find(|resource| resource.kind() == kind)
    }
}

/// What a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// A list, or a page of one.
    List,
    /// A watch.
    Watch,
}

/// What has been asked for so far.
#[derive(Debug, Default)]
struct Counters {
    requests: HashMap<(Resource, Verb), u64>,
    /// The parameters of the latest request.
    queries: HashMap<(Resource, Verb), HashMap<String, String>>,
    /// Watches that are open.
    watching: HashMap<Resource, usize>,
    bookmarks: u64,
}

#[derive(Debug, Default)]
struct State {
    store: Store,
    faults: Faults,
    counters: Counters,
    events: Vec<Value>,
    /// What clients have written.
    writes: Vec<(Resource, String, String)>,
}

/// The API server: what it holds and what it does wrong. Clones share both.
#[derive(Clone, Debug)]
pub struct Api {
    state: Arc<Mutex<State>>,
    /// Moves whenever anything changed that watches or waiting tests may be interested in.
    tick: Arc<watch::Sender<u64>>,
}

impl Default for Api {
    fn default() -> Self {
        Self::new()
    }
}

impl Api {
    /// An empty cluster.
    pub fn new() -> Self {
        Self { state: Arc::default(), tick: Arc::new(watch::Sender::new(0)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the state, then wakes everybody.
    fn change<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        let result = action(&mut self.state());
        self.tick.send_modify(|tick| *tick = tick.wrapping_add(1));
        result
    }

    /// Creates or replaces an object, a Service, `EndpointSlice` or Node as in a manifest, and returns its resource version.
    ///
    /// # Panics
    /// If `kind` or `metadata.name` is missing: that is an error of the test; see [`Api::inject`].
    pub fn apply(&self, object: Value) -> u64 {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
        let resource = text("/kind").and_then(Resource::of).expect("kind Service, EndpointSlice or Node");
        let name = text("/metadata/name").expect("metadata.name").to_owned();
        let namespace = text("/metadata/namespace").unwrap_or("default").to_owned();
        self.inject(resource, &namespace, &name, object)
    }

    /// Creates or replaces an object by any JSON, however malformed. Clients get it as it is, but for the version, which
    /// is set if there is a `metadata` to hold it.
    pub fn inject(&self, resource: Resource, namespace: &str, name: &str, object: Value) -> u64 {
        self.change(|state| state.store.put(resource, namespace, name, object))
    }

    /// Deletes an object; whether it existed. Nodes have the namespace "".
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> bool {
        self.change(|state| state.store.delete(resource, namespace, name))
    }

    /// Makes these the only objects, in as few changes as it takes.
    pub fn replace_all(&self, objects: Vec<Value>) {
        let mut stale = self.state().store.keys();
        for object in objects {
            let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            if let Some(resource) = Resource::of(text("/kind")) {
                let namespace = match text("/metadata/namespace") {
                    _ if !resource.is_namespaced() => "",
                    "" => "default",
                    namespace => namespace,
                };
                stale.remove(&(resource, namespace.to_owned(), text("/metadata/name").to_owned()));
            }
            self.apply(object);
        }
        for (resource, namespace, name) in stale {
            self.delete(resource, &namespace, &name);
        }
    }

    /// An object as it is now.
    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        self.state().store.get(resource, namespace, name)
    }

    /// The current resource version.
    pub fn version(&self) -> u64 {
        self.state().store.version()
    }

    /// Lets time pass: `versions` changes of objects that nobody here watches.
    pub fn advance(&self, versions: u64) {
        self.change(|state| state.store.advance(versions));
    }

    /// Forgets the history: a watch from any version but the current one gets 410 Gone.
    pub fn forget_history(&self) {
        self.change(|state| state.store.forget());
    }

    /// How many changes the history holds (1,000 unless told).
    pub fn limit_history(&self, changes: usize) {
        self.change(|state| state.store.limit(changes));
    }

    /// Makes every `continue` token expire: the next page gets 410 Gone.
    pub fn expire_pages(&self) {
        self.change(|state| state.store.expire_pages());
    }

    /// Sends a bookmark to every open watch that allows them.
    pub fn bookmark(&self) {
        self.change(|state| state.faults.bookmarks += 1);
    }

    /// Sends a bookmark after every `events` events of a watch; 0: never.
    pub fn bookmark_every(&self, events: u64) {
        self.change(|state| state.faults.bookmark_every = events);
    }

    /// Ends every open watch.
    pub fn cut_watches(&self, cut: Cut) {
        self.change(|state| state.faults.cut(cut));
    }

    /// Answers the next `watches` watches of each resource with 410 Gone.
    pub fn gone(&self, watches: u32, how: Gone) {
        self.change(|state| {
            state.faults.gone = Resource::ALL.into_iter().map(|resource| (resource, (watches, how))).collect();
        });
    }

    /// Answers the next `requests` requests with an HTTP status of failure.
    pub fn fail(&self, requests: u32, status: u16) {
        self.change(|state| state.faults.fail = (requests, status));
    }

    /// Loses the answers to the next `writes` writes of a resource: they are carried out, and their clients cannot know.
    pub fn lose_answers(&self, resource: Resource, writes: u32) {
        self.change(|state| state.faults.lost.insert(resource, writes));
    }

    /// What clients have written so far: namespaces and names, oldest first.
    pub fn writes(&self, resource: Resource) -> Vec<(String, String)> {
        let state = self.state();
        let of = state.writes.iter().filter(|(of, ..)| *of == resource);
        of.map(|(_, namespace, name)| (namespace.clone(), name.clone())).collect()
    }

    /// Waits this long before every answer.
    pub fn delay(&self, delay: Duration) {
        self.change(|state| state.faults.delay = delay);
    }

    /// Keeps requests for a resource waiting, from now on until told otherwise.
    pub fn hold(&self, resource: Resource, hold: bool) {
        self.change(|state| {
            if hold {
                state.faults.held.insert(resource);
            } else {
                state.faults.held.remove(&resource);
            }
        });
    }

    /// Sends every event twice.
    pub fn duplicate(&self, duplicate: bool) {
        self.change(|state| state.faults.duplicate = duplicate);
    }

    /// Sends a line of text, JSON or not, to the watches of a resource that are open.
    pub fn send_line(&self, resource: Resource, line: &str) {
        self.change(|state| state.store.line(resource, line));
    }

    /// Closes every connection.
    pub fn disconnect(&self) {
        self.change(|state| state.faults.disconnect());
    }

    /// Closes every connection and, until told otherwise, every new one at once.
    pub fn refuse(&self, refuse: bool) {
        self.change(|state| {
            state.faults.refuse = refuse;
            if refuse {
                state.faults.disconnect();
            }
        });
    }

    /// How many requests of a kind have been made.
    pub fn requests(&self, resource: Resource, verb: Verb) -> u64 {
        self.state().counters.requests.get(&(resource, verb)).copied().unwrap_or_default()
    }

    /// A parameter of the latest request of a kind.
    pub fn query(&self, resource: Resource, verb: Verb, parameter: &str) -> Option<String> {
        self.state().counters.queries.get(&(resource, verb))?.get(parameter).cloned()
    }

    /// How many watches of a resource are open.
    pub fn watching(&self, resource: Resource) -> usize {
        self.state().counters.watching.get(&resource).copied().unwrap_or_default()
    }

    /// How many bookmarks have been sent.
    pub fn bookmarks(&self) -> u64 {
        self.state().counters.bookmarks
    }

    /// Events that clients have posted, oldest first; a patch is appended as it came.
    pub fn events(&self) -> Vec<Value> {
        self.state().events.clone()
    }

    /// Waits until a condition holds.
    pub async fn wait(&self, condition: impl Fn(&Self) -> bool) {
        let mut tick = self.tick.subscribe();
        while !condition(self) {
            if tick.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Answers requests on a listener, which may be one of another network namespace, until the future is dropped.
pub async fn serve(listener: TcpListener, api: Api) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    axum::serve(listener::Breakable::new(listener, api.clone()), http::router(api)).await
}

/// A served [`Api`]: dropping it closes the listener and every connection.
#[derive(Debug)]
pub struct Server {
    api: Api,
    address: SocketAddr,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    /// Serves on an address; port 0 takes any free one.
    pub fn start(api: &Api, address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        Ok(Self { api: api.clone(), address, task: tokio::spawn(serve(listener, api.clone())) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Writes a kubeconfig that leads here.
    pub fn write_kubeconfig(&self, path: &Path) -> std::io::Result<()> {
        write_kubeconfig(path, self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        self.api.disconnect();
    }
}

/// Writes a kubeconfig that leads to an API server double at an address.
pub fn write_kubeconfig(path: &Path, address: SocketAddr) -> std::io::Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "clusters": [{"name": "lab", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "lab", "user": {}}],
    });
    // JSON is YAML.
    std::fs::write(path, format!("{config:#}\n"))
}
