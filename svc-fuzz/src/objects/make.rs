//! Manifests of arbitrary bytes: Services and EndpointSlices from small pools, so that they clash, with a field now and then
//! that makes no sense.
//!
//! It only makes text; what of it is used is what is tested.

use arbitrary::{Result, Unstructured};
use serde_json::{Value, json};

/// One value in so many makes no sense.
const ODD: u32 = 40;

/// Now and then, something else than what belongs here.
fn odd(u: &mut Unstructured<'_>, value: Value) -> Result<Value> {
    // A source of bytes that is exhausted answers 1 of n.
    if u.int_in_range(1..=ODD)? < ODD {
        return Ok(value);
    }
    Ok(match u.int_in_range(0..=7)? {
        0 => Value::Null,
        1 => json!(u.arbitrary::<i64>()?),
        2 => json!(u.arbitrary::<&str>()?),
        3 => json!([]),
        4 => json!({}),
        5 => json!([value]),
        6 => json!(u.arbitrary::<bool>()?),
        _ => json!("None"),
    })
}

fn text(u: &mut Unstructured<'_>, texts: &[&str]) -> Result<Value> {
    let text = json!(u.choose(texts)?);
    odd(u, text)
}

/// An object without its members that are null: a label that is null is there, and a slice with such a one is headless.
fn present(mut object: Value) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    object
}

/// One time in `n`, a value; else null, which is as good as absent.
fn maybe(u: &mut Unstructured<'_>, n: u8, value: impl FnOnce(&mut Unstructured<'_>) -> Result<Value>) -> Result<Value> {
    if u.int_in_range(1..=n)? == n { value(u) } else { Ok(Value::Null) }
}

fn list(u: &mut Unstructured<'_>, most: usize, item: impl Fn(&mut Unstructured<'_>) -> Result<Value>) -> Result<Value> {
    let count = u.int_in_range(0..=most)?;
    let items = (0..count).map(|_| item(u)).collect::<Result<Vec<_>>>()?;
    odd(u, Value::Array(items))
}

fn number(u: &mut Unstructured<'_>, numbers: &[i32]) -> Result<Value> {
    let number = json!(u.choose(numbers)?);
    odd(u, number)
}

const NAMES: [&str; 4] = ["web", "api", "db", "dns"];
/// Mostly the same name and protocol: a port that no slice has serves nobody, and there is little to judge.
const PORT_NAMES: [&str; 4] = ["", "", "", "a-name-that-is-quite-long-but-still-within-the-limit-of-labels"];
const PROTOCOLS: [&str; 5] = ["TCP", "UDP", "TCP", "TCP", "SCTP"];
const V4: [&str; 4] = ["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4"];
const V6: [&str; 3] = ["fd00::1", "fd00::2", "FD00:0::3"];
const EXTERNAL: [&str; 6] = ["203.0.113.1", "203.0.113.2", " 203.0.113.2 ", "2001:db8::1", "127.0.0.1", "10.96.0.1"];

/// A Service as JSON.
pub(super) fn service(u: &mut Unstructured<'_>, number_of: usize) -> Result<String> {
    let name = NAMES[number_of % NAMES.len()];
    let families = match u.int_in_range(0..=3)? {
        0 | 1 => json!([V4[number_of % 4]]),
        2 => json!([V4[number_of % 4], V6[number_of % 3]]),
        _ => list(u, 3, |u| text(u, &["10.96.0.1", "10.96.0.2", "fd00::1", "None", "", "::ffff:10.0.0.1"]))?,
    };
    let ports = list(u, 4, |u| {
        Ok(json!({
            "name": text(u, &PORT_NAMES)?,
            "port": number(u, &[80, 443, 53, 80, 0, 65535, 65536])?,
            "protocol": text(u, &PROTOCOLS)?,
            "nodePort": maybe(u, 2, |u| number(u, &[30080, 30081, 30080, 0, -1]))?,
        }))
    })?;
    let policies = ["Cluster", "Local", "Cluster", "Elsewhere"];
    let spec = json!({
        "type": maybe(u, 3, |u| text(u, &["NodePort", "LoadBalancer", "ExternalName", "ClusterIP"]))?,
        "clusterIP": maybe(u, 5, |u| text(u, &["10.96.0.1", "None", ""]))?,
        "clusterIPs": odd(u, families)?,
        "ipFamilies": maybe(u, 6, |u| list(u, 2, |u| text(u, &["IPv4", "IPv6"])))?,
        "ports": ports,
        "externalIPs": maybe(u, 3, |u| list(u, 3, |u| text(u, &EXTERNAL)))?,
        "loadBalancerSourceRanges":
            maybe(u, 5, |u| list(u, 2, |u| text(u, &["192.0.2.0/24", "0.0.0.0/0", " 10.0.0.0/8", "2001:db8::/32", "x"])))?,
        "externalTrafficPolicy": maybe(u, 2, |u| text(u, &policies))?,
        "internalTrafficPolicy": maybe(u, 3, |u| text(u, &policies))?,
        "sessionAffinity": maybe(u, 3, |u| text(u, &["ClientIP", "None"]))?,
        "sessionAffinityConfig":
            maybe(u, 4, |u| Ok(json!({"clientIP": {"timeoutSeconds": number(u, &[1, 10800, 0, 86401, -5])?}})))?,
        "healthCheckNodePort": maybe(u, 4, |u| number(u, &[31000, 0]))?,
    });
    let ingress = list(u, 3, |u| {
        Ok(json!({
            "ip": text(u, &EXTERNAL)?,
            "ipMode": maybe(u, 3, |u| text(u, &["VIP", "Proxy"]))?,
        }))
    })?;
    let labels = maybe(u, 16, |u| Ok(json!({"service.kubernetes.io/service-proxy-name": text(u, &["", "x"])?})))?;
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": odd(u, json!({"name": name, "namespace": "default", "labels": labels}))?,
        "spec": odd(u, spec)?,
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    Ok(object.to_string())
}

/// An EndpointSlice as JSON.
pub(super) fn slice(u: &mut Unstructured<'_>, number_of: usize) -> Result<String> {
    let family = u.int_in_range(0..=3)?;
    let addresses: &[&str] = match family {
        0..=2 => &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "169.254.0.1", "fd01::1"],
        _ => &["fd01::1", "fd01::2", "FD01::2", "fe80::1", "10.0.0.1"],
    };
    let endpoints = list(u, 6, |u| {
        let condition = |u: &mut Unstructured<'_>| maybe(u, 2, |u| Ok(json!(u.arbitrary::<bool>()?)));
        Ok(json!({
            "addresses": [text(u, addresses)?],
            "conditions": {
                "ready": condition(u)?, "serving": condition(u)?, "terminating": condition(u)?,
            },
            "nodeName": maybe(u, 2, |u| text(u, &["n1", "n2", ""]))?,
            "hints": maybe(u, 3, |u| Ok(json!({
                "forZones": maybe(u, 2, |u| list(u, 2, |u| Ok(json!({"name": text(u, &["z1", "z2"])?}))))?,
                "forNodes": maybe(u, 3, |u| list(u, 2, |u| Ok(json!({"name": text(u, &["n1", "n2"])?}))))?,
            })))?,
        }))
    })?;
    let ports = list(u, 3, |u| {
        Ok(json!({
            "name": text(u, &PORT_NAMES)?,
            "port": number(u, &[8080, 8081, 53, 0])?,
            "protocol": text(u, &PROTOCOLS)?,
        }))
    })?;
    let service = text(u, &NAMES)?;
    let headless = maybe(u, 16, |u| text(u, &["", "true"]))?;
    let trigger = maybe(u, 8, |u| text(u, &["2026-01-02T03:04:05Z", "yesterday"]))?;
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": odd(u, json!({
            "name": format!("slice-{number_of}"), "namespace": "default",
            "labels": present(json!({"kubernetes.io/service-name": service, "service.kubernetes.io/headless": headless})),
            "annotations": present(json!({"endpoints.kubernetes.io/last-change-trigger-time": trigger})),
        }))?,
        "addressType": text(u, if family < 3 { &["IPv4"] } else { &["IPv6", "IPv6", "IPv6", "FQDN"] })?,
        "endpoints": endpoints,
        "ports": ports,
    });
    Ok(object.to_string())
}
