//! Services and slices of the size that clusters have, by number. Their endpoints do not exist.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Port of Services.
pub(super) const PORT: u16 = 80;
/// More than there are endpoints.
const TURN: u32 = 1 << 19;
/// Nodes that endpoints are on.
const NODES: u32 = 200;

/// How many Services, and endpoints of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) services: u32,
    pub(super) endpoints: u32,
}

/// The cluster IP of a Service.
pub(super) fn address(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + service)
}

fn metadata(name: &str, service: u32) -> Value {
    json!({
        "namespace": format!("namespace-{}", service % 100), "name": name,
        "uid": format!("{service:08x}-3f3c-4c3a-9e0e-5d7c4f1b2a60"),
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "labels": {
            "app.kubernetes.io/name": format!("application-{service}"), "app.kubernetes.io/managed-by": "Helm",
            "kubernetes.io/service-name": format!("service-{service}"),
        },
    })
}

/// A Service with one port over TCP.
pub(super) fn service(service: u32) -> Value {
    let address = address(service);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata(&format!("service-{service}"), service),
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "selector": {"app.kubernetes.io/name": format!("application-{service}")},
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// The slice of a Service; its versions differ in one endpoint. No two of 32 in a row are alike: of changes that come together
/// only the last one counts, and that must be one.
pub(super) fn slice(size: Size, service: u32, version: u32) -> Value {
    let first = service * size.endpoints;
    let endpoint = |nth: u32| {
        let number = first + nth;
        // Endpoints that take a turn have addresses that no other has.
        let (base, turn) = match (nth, version) {
            (0, 1..) => (Ipv4Addr::new(11, 0, 0, 0), version % 32),
            _ => (Ipv4Addr::new(10, 128, 0, 0), 0),
        };
        json!({
            "addresses": [Ipv4Addr::from(u32::from(base) + turn * TURN + number)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}.example.internal", number % NODES), "zone": format!("zone-{}", number % 3),
            "targetRef": {
                "kind": "Pod", "namespace": format!("namespace-{}", service % 100),
                "name": format!("application-{service}-7d4b9c6f5-{nth:05x}"),
                "uid": format!("{number:08x}-9a1b-4c3a-9e0e-5d7c4f1b2a60"),
            },
        })
    };
    let endpoints: Vec<Value> = (0..size.endpoints).map(endpoint).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": metadata(&format!("service-{service}-x7k2p"), service),
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    })
}
