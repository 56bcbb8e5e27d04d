//! Tables of objects: what the model must have, and which fields must be reported.

mod junk;
mod names;
mod service;
mod slice;

use k8s_openapi::api::{
    core::v1::{Node as ApiNode, Service as ApiService},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, json};

use super::{AnyService, Outcome, convert_value};
use crate::{
    model::{Node, Problem, Service, Slice},
    source::{SourceOptions, names::Names},
};

fn options() -> SourceOptions {
    SourceOptions { node_name: "node-a".into(), external_ips: true, claims: crate::model::Claims::Nobody, names: false }
}

/// `base` with the values of `over` laid over it; null removes.
fn merged(mut base: Value, over: &Value) -> Value {
    fn merge(base: &mut Value, over: &Value) {
        match (base, over) {
            (Value::Object(base), Value::Object(over)) => {
                for (key, value) in over {
                    if value.is_null() {
                        base.remove(key);
                    } else {
                        merge(base.entry(key.clone()).or_insert(Value::Null), value);
                    }
                }
            }
            (base, over) => *base = over.clone(),
        }
    }
    merge(&mut base, over);
    base
}

fn service_with(over: &Value) -> (Outcome<Service>, Vec<Problem>) {
    let base = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}],
        },
    });
    let (outcome, problems) = any_service_with(merged(base, over), &options());
    (balanced(outcome), problems)
}

fn any_service_with(value: Value, options: &SourceOptions) -> (Outcome<AnyService>, Vec<Problem>) {
    let converted = convert_value::<ApiService>(value, options, &mut Names::default());
    (converted.outcome, converted.problems)
}

fn balanced(outcome: Outcome<AnyService>) -> Outcome<Service> {
    match outcome {
        Outcome::Use(service) => match *service {
            AnyService::Balanced(service) => Outcome::Use(service),
            AnyService::Unbalanced(service) => panic!("not load-balanced: {service:?}"),
        },
        Outcome::Unused => Outcome::Unused,
        Outcome::Unreadable => Outcome::Unreadable,
    }
}

fn slice_with(over: &Value) -> (Outcome<Slice>, Vec<Problem>) {
    let base = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.1.0.1"]}],
    });
    let converted = convert_value::<EndpointSlice>(merged(base, over), &options(), &mut Names::default());
    (converted.outcome, converted.problems)
}

fn node_with(over: &Value) -> (Outcome<Node>, Vec<Problem>) {
    let base = json!({
        "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "z"}},
        "status": {"addresses": [
            {"type": "Hostname", "address": "node-a"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
        ]},
    });
    let converted = convert_value::<ApiNode>(merged(base, over), &options(), &mut Names::default());
    (converted.outcome, converted.problems)
}

fn used<T>((outcome, problems): (Outcome<T>, Vec<Problem>), fields: &[&str], case: &Value) -> T {
    let found: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(found, fields, "{case}: {problems:?}");
    assert!(problems.iter().all(|problem| !problem.message.contains('\n')), "one line each: {problems:?}");
    match outcome {
        Outcome::Use(object) => *object,
        Outcome::Unused | Outcome::Unreadable => panic!("{case}: not used"),
    }
}
