//! What is kept besides where names are served.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::{
    super::{AnyService, Outcome, convert_value},
    any_service_with, options, used,
};
use crate::{
    model::{Protocol, Unbalanced},
    source::{SourceOptions, names::Names},
};

fn with_names() -> SourceOptions {
    SourceOptions { names: true, ..options() }
}

#[test]
fn where_names_are_served_services_that_are_not_balanced_are_kept_apart() {
    let service = |spec: Value, labels: Value| {
        let value = json!({"metadata": {"name": "web", "namespace": "shop", "labels": labels}, "spec": spec});
        any_service_with(value, &with_names())
    };
    let ports = json!([{"name": "http", "port": 80}]);
    for (spec, labels, want) in [
        (json!({"clusterIP": "None", "ports": ports}), json!({}), Unbalanced::Headless),
        (
            json!({"type": "ExternalName", "externalName": "Www.example.com.", "clusterIP": "10.0.0.1"}),
            json!({}),
            Unbalanced::ExternalName("Www.example.com".into()),
        ),
        (
            json!({"clusterIP": "10.0.0.1", "ports": ports}),
            json!({"service.kubernetes.io/service-proxy-name": "other"}),
            Unbalanced::Elsewhere {
                cluster_ips: vec!["10.0.0.1".parse().unwrap()],
                ports: vec![crate::model::ServicePort {
                    name: "http".into(),
                    protocol: Protocol::Tcp,
                    port: 80,
                    node_port: None,
                }],
            },
        ),
    ] {
        let found = used(service(spec.clone(), labels), &[], &spec);
        assert_eq!(found, AnyService::Unbalanced(want));
    }
    for bad in ["", ".", "a..b", "-a.b", &"x.".repeat(200)] {
        let (outcome, problems) = service(json!({"type": "ExternalName", "externalName": bad}), json!({}));
        assert!(matches!(outcome, Outcome::Unused), "{bad}");
        assert_eq!(problems[0].field, "spec.externalName");
    }
}

#[test]
fn names_that_cannot_be_in_dns_are_reported_and_the_service_is_balanced_all_the_same() {
    let value = json!({
        "metadata": {"name": "Web_1", "namespace": "shop"},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "x".repeat(63), "port": 80}]},
    });
    let case = Value::Null;
    let found = used(any_service_with(value.clone(), &with_names()), &["metadata.name", "spec.ports[0].name"], &case);
    assert!(matches!(found, AnyService::Balanced(_)));
    used(any_service_with(value, &options()), &[], &case);
}

#[test]
fn where_names_are_served_headless_slices_are_marked_and_hostnames_kept() {
    let value = json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {
            "kubernetes.io/service-name": "web", "service.kubernetes.io/headless": "",
        }},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.1.0.1"], "hostname": "web-0"},
            {"addresses": ["junk"], "hostname": "web-1"},
            {"addresses": ["10.1.0.3"]},
            {"addresses": ["10.1.0.4"], "hostname": "web_3"},
        ],
    });
    let convert = |options: &SourceOptions| {
        let converted = convert_value::<EndpointSlice>(value.clone(), options, &mut Names::default());
        (converted.outcome, converted.problems)
    };
    let slice = used(convert(&with_names()), &["endpoints[1].addresses[0]", "endpoints[3].hostname"], &value);
    assert!(slice.headless);
    assert_eq!(slice.hostnames, [Some("web-0".into()), None, None]);
    assert_eq!(slice.endpoints.len(), 3);
    assert!(matches!(convert(&options()), (Outcome::Unused, _)));
}
