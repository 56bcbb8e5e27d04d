//! The cluster of the demonstration: Services from the examples, pods that serve them, manifests for the agents.

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::{
    Lab, Pod, Service,
    manifests::{Manifests, target_port},
};

/// The five Services, told apart by their fields, not by their names.
pub(super) struct Services {
    pub(super) cluster_ip: Service,
    pub(super) node_port: Service,
    pub(super) load_balancer: Service,
    pub(super) local: Service,
    pub(super) headless: Service,
}

impl Services {
    /// Reads them from a directory of YAML files.
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let objects = objects(directory)?;
        let find = |kind: &str, policy: &str, what: &str| {
            objects
                .iter()
                .find(|object| {
                    let spec = &object["spec"];
                    let type_ = if spec["clusterIP"] == "None" {
                        "headless"
                    } else {
                        spec["type"].as_str().unwrap_or("ClusterIP")
                    };
                    type_ == kind && spec["externalTrafficPolicy"].as_str().unwrap_or("Cluster") == policy
                })
                .map(|object| Service::from_object(complete(object.clone())))
                .ok_or_else(|| anyhow!("{} holds no {what}", directory.display()))
        };
        Ok(Self {
            cluster_ip: find("ClusterIP", "Cluster", "Service of type ClusterIP")?,
            node_port: find("NodePort", "Cluster", "Service of type NodePort with externalTrafficPolicy Cluster")?,
            load_balancer: find("LoadBalancer", "Cluster", "Service of type LoadBalancer")?,
            local: find("NodePort", "Local", "Service of type NodePort with externalTrafficPolicy Local")?,
            headless: find("headless", "Cluster", "headless Service")?,
        })
    }
}

/// All Services found in the YAML files of a directory.
fn objects(directory: &Path) -> Result<Vec<Value>> {
    let entries = fs::read_dir(directory).with_context(|| {
        format!("cannot read the examples in {}: run it in the repository, or pass --examples", directory.display())
    })?;
    let mut paths: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"));
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        for document in documents {
            match document["items"].as_array() {
                Some(items) => found.extend(items.iter().cloned()),
                None => found.push(document),
            }
        }
    }
    found.retain(|object| object["kind"] == "Service");
    Ok(found)
}

/// Fills in what the API server would: the families, from the addresses.
fn complete(mut object: Value) -> Value {
    let families: Vec<&str> = addresses(&object["spec"]["clusterIPs"])
        .iter()
        .map(|address| if address.is_ipv4() { "IPv4" } else { "IPv6" })
        .collect();
    if object["spec"]["ipFamilies"].is_null() {
        object["spec"]["ipFamilies"] = families.into();
    }
    if object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = "default".into();
    }
    object
}

/// The IP addresses in an array of strings, or of objects with a field `ip`.
pub(super) fn addresses(value: &Value) -> Vec<IpAddr> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let texts = items.iter().filter_map(|item| item.as_str().or_else(|| item["ip"].as_str()));
    texts.filter_map(|text| text.parse().ok()).collect()
}

impl Service {
    pub(super) fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    pub(super) fn namespace(&self) -> &str {
        self.object["metadata"]["namespace"].as_str().unwrap_or_default()
    }
}

/// What runs in the cluster.
pub(super) struct Shop {
    pub(super) services: Services,
    /// A client that serves nothing, on node 1.
    pub(super) client: Pod,
    /// Local to node 1, on node 2, and in node 2's own network.
    pub(super) web: [Pod; 3],
    /// On node 1 and on node 2.
    pub(super) orders: [Pod; 2],
    pub(super) front: [Pod; 2],
    /// Only on node 1.
    pub(super) api: Pod,
    /// On node 1 and on node 2.
    pub(super) members: [Pod; 2],
    pub(super) manifests: Manifests,
}

impl Shop {
    /// Starts the pods and writes the manifests.
    pub(super) fn open(lab: &Lab, services: Services) -> Result<Self> {
        let pair = |service: &Service| -> Result<[Pod; 2]> {
            let pod = |node| start(lab, service, node, &format!("{}-{node}", service.name()), false);
            Ok([pod(1)?, pod(2)?])
        };
        let client = lab.pod(1, "client")?;
        let [web_1, web_2] = pair(&services.cluster_ip)?;
        let web_host = start(lab, &services.cluster_ip, 2, &format!("{}-host", services.cluster_ip.name()), true)?;
        let (orders, front) = (pair(&services.node_port)?, pair(&services.load_balancer)?);
        let members = pair(&services.headless)?;
        let api = start(lab, &services.local, 1, &format!("{}-1", services.local.name()), false)?;
        let manifests = lab.manifests("manifests")?;
        let web = [web_1, web_2, web_host];
        for (service, pods) in [
            (&services.cluster_ip, web.iter().collect::<Vec<_>>()),
            (&services.node_port, orders.iter().collect()),
            (&services.load_balancer, front.iter().collect()),
            (&services.local, vec![&api]),
            (&services.headless, members.iter().collect()),
        ] {
            manifests.write(service.name(), &service.with(&pods))?;
        }
        Ok(Self { services, client, web, orders, front, api, members, manifests })
    }

    /// Every pod.
    pub(super) fn pods(&self) -> impl Iterator<Item = &Pod> {
        let served = self.web.iter().chain(&self.orders).chain(&self.front).chain(&self.members);
        served.chain([&self.api, &self.client])
    }
}

fn start(lab: &Lab, service: &Service, node: u8, name: &str, host: bool) -> Result<Pod> {
    let pod = if host { lab.host_pod(node, name)? } else { lab.pod(node, name)? };
    let ports: BTreeSet<u16> = service.ports().iter().map(target_port).collect();
    for port in ports {
        lab.serve(&pod, port)?;
    }
    Ok(pod)
}
