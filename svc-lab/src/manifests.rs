//! Objects of the Kubernetes API as JSON values, and directories of them. It checks nothing: tests write nonsense too.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{Lab, LabError, Pod, Protocol};

/// A directory of manifests, which agents watch.
#[derive(Clone, Debug)]
pub struct Manifests {
    directory: PathBuf,
}

impl Manifests {
    /// The directory, created if need be.
    pub fn new(directory: impl Into<PathBuf>) -> Result<Self, LabError> {
        let directory = directory.into();
        fs::create_dir_all(&directory).map_err(LabError::path("create", &directory))?;
        Ok(Self { directory })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Writes objects as a `List` into `<name>.json`, atomically: a reader sees the old file or the new one.
    pub fn write(&self, name: &str, objects: &[Value]) -> Result<(), LabError> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.write_text(&format!("{name}.json"), &format!("{list:#}\n"))
    }

    /// Writes a file of any content, atomically.
    pub fn write_text(&self, file: &str, text: &str) -> Result<(), LabError> {
        let (temporary, path) = (self.directory.join(format!(".{file}.new")), self.directory.join(file));
        fs::write(&temporary, text).map_err(LabError::path("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(LabError::path("replace", &path))
    }

    /// Removes what [`write`](Self::write) wrote under this name; fine if there is nothing.
    pub fn remove(&self, name: &str) -> Result<(), LabError> {
        let path = self.directory.join(format!("{name}.json"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LabError::path("remove", &path)(error)),
            _ => Ok(()),
        }
    }
}

impl Lab {
    /// A directory of manifests of this lab, with its Nodes in it.
    pub fn manifests(&self, name: &str) -> Result<Manifests, LabError> {
        let manifests = Manifests::new(self.directory().join(name))?;
        manifests.write("nodes", &self.node_objects())?;
        Ok(manifests)
    }

    /// The Node objects.
    pub fn node_objects(&self) -> Vec<Value> {
        self.nodes()
            .iter()
            .map(|node| {
                let addresses: Vec<Value> =
                    node.addresses.both().iter().map(|it| json!({"type": "InternalIP", "address": it})).collect();
                json!({
                    "apiVersion": "v1", "kind": "Node",
                    "metadata": {"name": node.name(), "uid": format!("node-{}", node.index), "labels": {
                        "kubernetes.io/hostname": node.name(),
                        "topology.kubernetes.io/zone": format!("zone-{}", node.index),
                    }},
                    "spec": {},
                    "status": {"addresses": addresses},
                })
            })
            .collect()
    }
}

/// A Service in the making, and the slices that belong to it.
#[derive(Clone, Debug)]
pub struct Service {
    /// The object as it is; change what the methods do not cover.
    pub object: Value,
}

impl Service {
    /// A dual-stack Service of type ClusterIP without ports.
    pub fn new(namespace: &str, name: &str, cluster_ips: &[IpAddr]) -> Self {
        let families: Vec<&str> = cluster_ips.iter().map(|it| if it.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
        Self {
            object: json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}")},
                "spec": {
                    "type": "ClusterIP", "clusterIP": cluster_ips.first(), "clusterIPs": cluster_ips,
                    "ipFamilies": families, "ports": [],
                },
            }),
        }
    }

    /// A Service read from somewhere.
    pub fn from_object(object: Value) -> Self {
        Self { object }
    }

    /// Adds a port over TCP and UDP, named `tcp-<port>` and `udp-<port>`.
    #[must_use]
    pub fn port(self, port: u16, target: u16) -> Self {
        self.one_port(Protocol::Tcp, port, target, None).one_port(Protocol::Udp, port, target, None)
    }

    /// Adds a port over TCP and UDP with a node port; the type becomes NodePort.
    #[must_use]
    pub fn node_port(self, port: u16, target: u16, node_port: u16) -> Self {
        self.one_port(Protocol::Tcp, port, target, Some(node_port))
            .one_port(Protocol::Udp, port, target, Some(node_port))
            .spec("type", "NodePort")
    }

    /// Adds a port of one protocol.
    #[must_use]
    pub fn one_port(mut self, protocol: Protocol, port: u16, target: u16, node_port: Option<u16>) -> Self {
        let mut entry = json!({
            "name": format!("{}-{port}", protocol.as_str()), "protocol": protocol.as_str().to_uppercase(),
            "port": port, "targetPort": target,
        });
        if let Some(node_port) = node_port {
            entry["nodePort"] = node_port.into();
        }
        if let Value::Array(ports) = &mut self.object["spec"]["ports"] {
            ports.push(entry);
        }
        self
    }

    /// Becomes a LoadBalancer with these addresses.
    #[must_use]
    pub fn load_balancer(mut self, addresses: &[IpAddr]) -> Self {
        let ingress: Vec<Value> = addresses.iter().map(|it| json!({"ip": it, "ipMode": "VIP"})).collect();
        self.object["status"] = json!({"loadBalancer": {"ingress": ingress}});
        self.spec("type", "LoadBalancer")
    }

    /// Sets a field of `spec`, e.g. `("externalTrafficPolicy", "Local")`.
    #[must_use]
    pub fn spec(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.object["spec"][field] = value.into();
        self
    }

    /// Its EndpointSlices, one for each family it has, with these pods as ready endpoints on every port's target port.
    pub fn slices(&self, pods: &[&Pod]) -> Vec<Value> {
        self.slices_of(&pods.iter().map(|pod| Endpoint::ready(pod)).collect::<Vec<_>>())
    }

    /// Its EndpointSlices with endpoints of any state.
    pub fn slices_of(&self, endpoints: &[Endpoint<'_>]) -> Vec<Value> {
        let metadata = &self.object["metadata"];
        let families = self.object["spec"]["ipFamilies"].as_array().cloned().unwrap_or_default();
        let ports: Vec<Value> = self.ports().iter().map(slice_port).collect();
        families
            .iter()
            .filter_map(Value::as_str)
            .map(|family| {
                let items: Vec<Value> = endpoints.iter().map(|endpoint| endpoint.item(family)).collect();
                let name = metadata["name"].as_str().unwrap_or_default();
                json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": {
                        "namespace": metadata["namespace"], "name": format!("{name}-{}", family.to_lowercase()),
                        "labels": {"kubernetes.io/service-name": name},
                    },
                    "addressType": family, "ports": ports, "endpoints": items,
                })
            })
            .collect()
    }

    /// The Service and its slices: what [`Manifests::write`] takes.
    pub fn with(&self, pods: &[&Pod]) -> Vec<Value> {
        std::iter::once(self.object.clone()).chain(self.slices(pods)).collect()
    }

    /// `spec.ports`.
    pub fn ports(&self) -> Vec<Value> {
        self.object["spec"]["ports"].as_array().cloned().unwrap_or_default()
    }
}

/// Port number that a Service's port leads to; a name stands for 8080.
pub fn target_port(port: &Value) -> u16 {
    let number = |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
    match &port["targetPort"] {
        Value::String(_) => 8080,
        target => number(target).or_else(|| number(&port["port"])).unwrap_or(0),
    }
}

fn slice_port(port: &Value) -> Value {
    let protocol = port["protocol"].as_str().unwrap_or("TCP");
    json!({"name": port["name"].as_str().unwrap_or_default(), "protocol": protocol, "port": target_port(port)})
}

/// A pod as an endpoint of a Service.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
    /// `hints.forNodes`, by name.
    pub for_nodes: &'a [String],
    /// `hints.forZones`, by name.
    pub for_zones: &'a [String],
}

impl<'a> Endpoint<'a> {
    /// Ready and serving.
    pub fn ready(pod: &'a Pod) -> Self {
        Self { pod, ready: true, serving: true, terminating: false, for_nodes: &[], for_zones: &[] }
    }

    /// On its way out, but still serving.
    pub fn terminating(pod: &'a Pod) -> Self {
        Self { ready: false, terminating: true, ..Self::ready(pod) }
    }

    fn item(&self, family: &str) -> Value {
        let Self { pod, ready, serving, terminating, for_nodes, for_zones } = self;
        let address: IpAddr = if family == "IPv4" { pod.addresses.v4.into() } else { pod.addresses.v6.into() };
        let names = |names: &[String]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        let mut item = json!({
            "addresses": [address], "nodeName": format!("node{}", pod.node),
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            "targetRef": {"kind": "Pod", "name": pod.name()},
        });
        for (field, hints) in [("forNodes", for_nodes), ("forZones", for_zones)] {
            if !hints.is_empty() {
                item["hints"][field] = names(hints).into();
            }
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_what_was_asked_for() {
        let ips = ["10.96.0.1".parse().unwrap(), "fd00:10:96::1".parse().unwrap()];
        let service = Service::new("shop", "web", &ips)
            .node_port(80, 8080, 30080)
            .load_balancer(&["203.0.113.10".parse().unwrap()])
            .spec("externalTrafficPolicy", "Local");
        let object = &service.object;
        assert_eq!(object["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(object["spec"]["ports"][1]["protocol"], "UDP");
        assert_eq!(object["spec"]["type"], "LoadBalancer");
        assert_eq!(object["status"]["loadBalancer"]["ingress"][0]["ip"], "203.0.113.10");
        let slices = service.slices(&[]);
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[1]["ports"][0], json!({"name": "tcp-80", "protocol": "TCP", "port": 8080}));
        assert_eq!(slices[0]["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    }

    #[test]
    fn a_file_is_replaced_whole_and_removed_twice() {
        let directory = tempfile::tempdir().unwrap();
        let manifests = Manifests::new(directory.path().join("m")).unwrap();
        manifests.write("a", &[json!({"kind": "Node"})]).unwrap();
        manifests.write("a", &[]).unwrap();
        let names: Vec<_> = fs::read_dir(manifests.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(names, ["a.json"]);
        let text: Value = serde_json::from_slice(&fs::read(manifests.path().join("a.json")).unwrap()).unwrap();
        assert_eq!(text["items"], json!([]));
        manifests.remove("a").unwrap();
        manifests.remove("a").unwrap();
    }
}
