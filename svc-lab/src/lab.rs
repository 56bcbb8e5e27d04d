//! The cluster: builds it, hands out its nodes and pods, removes it when dropped.

use std::{
    collections::HashMap,
    net::IpAddr,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    LabError, Spec, binary, cni,
    place::Place,
    plan::{self, Addresses, MAX_NODES, MAX_PODS},
    process::Process,
    teardown::{self, Traces},
    topology,
};

/// A node: the host's network namespace of one machine of the cluster.
#[derive(Clone, Debug)]
pub struct Node {
    place: Place,
    /// Counted from 1.
    pub index: u8,
    /// Addresses of `eth0`.
    pub addresses: Addresses,
    /// An empty bpffs directory for the agent of this node; `<it>/…` is gone with the lab.
    pub bpffs: PathBuf,
}

impl Node {
    /// The directory of the pinned maps of this node's agent, whatever version their layout has.
    pub fn maps(&self) -> Result<PathBuf, LabError> {
        let entries = std::fs::read_dir(&self.bpffs).map_err(LabError::path("read", &self.bpffs))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let layout = names.filter(|name| name.starts_with("layout-")).max();
        let layout = layout
            .ok_or_else(|| LabError::Invalid(format!("no agent has pinned maps below {}", self.bpffs.display())))?;
        Ok(self.bpffs.join(layout).join("maps"))
    }
}

/// A pod, or a process in its node's network.
#[derive(Clone, Debug)]
pub struct Pod {
    place: Place,
    /// The node it is on, counted from 1.
    pub node: u8,
    /// Its addresses; those of the node for a pod in the host's network.
    pub addresses: Addresses,
    /// Whether it lives in its node's network namespace.
    pub host_network: bool,
    /// Name of the host end of its veth, if it has one.
    pub host_interface: Option<String>,
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// A running cluster. Dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    spec: Spec,
    nodes: Vec<Node>,
    outside: Place,
    router: Place,
    switch: Place,
    pods: Mutex<HashMap<String, Pod>>,
    counts: Mutex<HashMap<u8, u8>>,
    servers: Mutex<HashMap<String, Process>>,
    remains: Remains,
}

/// Removes the lab when dropped, also one that was built only half.
#[derive(Debug)]
struct Remains {
    traces: Traces,
    keep: bool,
}

impl Drop for Remains {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = teardown::remove(&self.traces.id) {
            eprintln!("svc-lab: {error}; run `svc-lab clean` when this process has ended");
        }
    }
}

impl Lab {
    /// Builds a cluster: all namespaces wired, no pods yet.
    pub fn build(spec: Spec) -> Result<Self, LabError> {
        if spec.nodes == 0 || spec.nodes > MAX_NODES {
            return Err(LabError::Invalid(format!("a lab has 1 to {MAX_NODES} nodes, not {}", spec.nodes)));
        }
        let remains = Remains { traces: Traces::create()?, keep: spec.keep };
        let traces = &remains.traces;
        let mut places = topology::namespaces(traces, &spec)?.into_iter();
        let (Some(switch), Some(router), Some(outside)) = (places.next(), places.next(), places.next()) else {
            return Err(LabError::Invalid("the lab's namespaces were not created".into()));
        };
        topology::wire(&switch, &router, &outside, &spec)?;
        let mut nodes = Vec::new();
        for (index, place) in (1..).zip(places) {
            topology::node(&switch, &place, index, &spec)?;
            let bpffs = traces.bpffs.join(place.name());
            std::fs::create_dir_all(&bpffs).map_err(LabError::path("create", &bpffs))?;
            nodes.push(Node { place, index, addresses: plan::node(index), bpffs });
        }
        topology::route_vips(&router, 1)?;
        Ok(Self {
            spec,
            nodes,
            outside,
            router,
            switch,
            pods: Mutex::default(),
            counts: Mutex::default(),
            servers: Mutex::default(),
            remains,
        })
    }

    /// The lab's name, which all its namespaces start with.
    pub fn id(&self) -> &str {
        &self.remains.traces.id
    }

    /// What it was built from.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// A node, counted from 1.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn node(&self, index: u8) -> &Node {
        self.nodes
            .get(usize::from(index).wrapping_sub(1))
            .unwrap_or_else(|| panic!("{} has no node {index}", self.id()))
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The client outside: not on-link with the nodes, behind the router.
    pub fn outside(&self) -> &Place {
        &self.outside
    }

    /// The router between the nodes and the outside.
    pub fn router(&self) -> &Place {
        &self.router
    }

    /// The switch that joins the nodes and the router (bridge `br0`).
    pub fn switch(&self) -> &Place {
        &self.switch
    }

    /// A directory for files of this lab, gone with it.
    pub fn directory(&self) -> &Path {
        &self.remains.traces.state
    }

    /// Where the logs of its processes are.
    pub fn logs(&self) -> PathBuf {
        self.remains.traces.state.join("logs")
    }

    /// Sends traffic for the load balancer addresses (203.0.113.0/24, 2001:db8:f::/64) to another node than node 1.
    pub fn route_vips(&self, node: u8) -> Result<(), LabError> {
        topology::route_vips(&self.router, node)
    }

    /// Adds a route at the router, e.g. of the Service CIDR to a node.
    pub fn route(&self, net: &str, via: impl Into<IpAddr>) -> Result<(), LabError> {
        topology::route(&self.router, net, via.into())
    }

    /// Adds a pod to a node (counted from 1); the nth on a node always has the same addresses.
    pub fn pod(&self, node: u8, name: &str) -> Result<Pod, LabError> {
        let host = self.node(node).clone();
        let traces = &self.remains.traces;
        let nth = {
            let mut counts = lock(&self.counts);
            let count = counts.entry(node).or_default();
            if *count >= MAX_PODS {
                return Err(LabError::Invalid(format!("{} has {MAX_PODS} pods already: add a node", host.name())));
            }
            *count += 1;
            *count - 1
        };
        self.check_name(name)?;
        let namespace = traces.namespace(&format!("{}-{nth}", host.name()));
        crate::place::capture(std::process::Command::new("ip").args(["netns", "add", &namespace]), None)?;
        let place = Place::new(name, &namespace, host.cgroup().join(format!("pod-{name}")))?;
        topology::calm(&place)?;
        let addresses = cni::pod(&host, &place, node, nth, &self.spec)?;
        let pod = Pod { place, node, addresses, host_network: false, host_interface: Some(format!("veth{nth}")) };
        lock(&self.pods).insert(name.into(), pod.clone());
        Ok(pod)
    }

    /// Adds a pod in a node's own network: same namespace and addresses, a cgroup of its own.
    pub fn host_pod(&self, node: u8, name: &str) -> Result<Pod, LabError> {
        let host = self.node(node);
        self.check_name(name)?;
        let place = Place::new(name, host.namespace(), host.cgroup().join(format!("pod-{name}")))?;
        let pod = Pod { place, node, addresses: host.addresses, host_network: true, host_interface: None };
        lock(&self.pods).insert(name.into(), pod.clone());
        Ok(pod)
    }

    /// The pod of that name.
    pub fn pod_named(&self, name: &str) -> Option<Pod> {
        lock(&self.pods).get(name).cloned()
    }

    /// Removes a pod: its processes, its namespace and with it its veth. It does not touch manifests.
    pub fn remove_pod(&self, name: &str) -> Result<(), LabError> {
        let pod = lock(&self.pods)
            .remove(name)
            .ok_or_else(|| LabError::Invalid(format!("{} has no pod {name}", self.id())))?;
        lock(&self.servers).retain(|server, _| server.split('@').next() != Some(name));
        teardown::remove_cgroup(pod.cgroup())?;
        if !pod.host_network {
            let mut ip = std::process::Command::new("ip");
            crate::place::capture(ip.args(["netns", "delete", pod.namespace()]), None)?;
        }
        Ok(())
    }

    /// Starts an echo server in a place, on the same port for TCP and UDP and both families; returns once it listens.
    /// It answers with the place's name.
    pub fn serve(&self, place: &Place, port: u16) -> Result<(), LabError> {
        let mut command = place.command(binary::lab()?)?;
        let port = port.to_string();
        command.args(["echo", "--name", place.name(), "--tcp", &port, "--udp", &port]);
        if !self.spec.keep {
            command.arg("--with-stdin");
        }
        let key = format!("{}@{port}", place.name());
        let mut server = Process::start(command, &self.logs().join(format!("{key}.log")))?;
        server.line()?;
        lock(&self.servers).insert(key, server.kept(self.spec.keep));
        Ok(())
    }

    /// Stops an echo server, as if its pod had crashed; waits until it is gone.
    pub fn stop(&self, place: &Place, port: u16) -> Result<(), LabError> {
        let key = format!("{}@{port}", place.name());
        let server = lock(&self.servers).remove(&key);
        server.map(drop).ok_or_else(|| LabError::Invalid(format!("nothing serves on port {port} of {}", place.name())))
    }

    fn check_name(&self, name: &str) -> Result<(), LabError> {
        let legal = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !legal || lock(&self.pods).contains_key(name) {
            return Err(LabError::Invalid(format!("pod name {name:?} is taken, or not of letters, digits and dashes")));
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Children are reaped first; `Remains`, the last field, then removes the rest.
        lock(&self.servers).clear();
    }
}

/// A test that panicked while it held a lock must not keep the others from cleaning up.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
