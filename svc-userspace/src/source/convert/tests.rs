//! Tables of objects: what the model must have, and which fields must be reported.

use k8s_openapi::api::{
    core::v1::{Node as ApiNode, Service as ApiService},
    discovery::v1::EndpointSlice,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Outcome, convert_value};
use crate::{
    model::{Family, Node, Problem, Protocol, Service, Slice},
    source::{SourceOptions, names::Names},
};

fn options() -> SourceOptions {
    SourceOptions { node_name: "node-a".into(), external_ips: true, claims: crate::model::Claims::Nobody }
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
    let converted = convert_value::<ApiService>(merged(base, over), &options(), &mut Names::default());
    (converted.outcome, converted.problems)
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

#[test]
fn a_service_without_fault_is_taken_as_it_is() {
    let service = used(
        service_with(&json!({
            "spec": {
                "externalIPs": ["198.51.100.1", "198.51.100.1"], "externalTrafficPolicy": "Local",
                "internalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                "loadBalancerSourceRanges": [" 192.0.2.1/24 "],
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "VIP"}, {"ip": "203.0.113.3", "ipMode": "Proxy"},
                {"hostname": "lb.example"},
            ]}},
        })),
        &[],
        &Value::Null,
    );
    assert_eq!(service.name.to_string(), "shop/web");
    assert_eq!(service.cluster_ips, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    assert_eq!(service.external_ips, ["198.51.100.1".parse::<std::net::IpAddr>().unwrap()], "each address once");
    assert_eq!(service.load_balancer_ips.len(), 2, "Proxy and host names are not programmed");
    assert_eq!(service.source_ranges, ["192.0.2.0/24".parse().unwrap()]);
    assert!(service.external_local && service.internal_local);
    assert_eq!((service.affinity_seconds, service.health_check_node_port), (Some(60), Some(32000)));
    let port = &service.ports[0];
    assert_eq!((&*port.name, port.protocol, port.port, port.node_port), ("http", Protocol::Tcp, 80, Some(30080)));
}

#[test]
fn bad_fields_of_a_service_are_reported_and_left_out_alone() {
    // What is laid over a good Service, the fields reported, and the number of ports that remain.
    let port =
        |over: Value| json!({"spec": {"ports": [{"port": 80}, merged(json!({"name": "b", "port": 81}), &over)]}});
    let cases = [
        (port(json!({})), vec![], 2),
        (port(json!({"port": 0})), vec!["spec.ports[1].port"], 1),
        (port(json!({"port": -1})), vec!["spec.ports[1].port"], 1),
        (port(json!({"port": 65536})), vec!["spec.ports[1].port"], 1),
        (port(json!({"port": 99_999_999_999_u64})), vec!["spec.ports[1].port"], 1),
        (port(json!({"port": "eighty"})), vec!["spec.ports[1].port"], 1),
        (port(json!({"port": 80, "protocol": "UDP"})), vec![], 2),
        (port(json!({"port": 80})), vec!["spec.ports[1].port"], 1),
        (port(json!({"name": ""})), vec!["spec.ports[1].name"], 1),
        (port(json!({"name": "x".repeat(64)})), vec!["spec.ports[1].name"], 1),
        (port(json!({"protocol": "ICMP"})), vec!["spec.ports[1].protocol"], 1),
        (port(json!({"nodePort": 65536})), vec!["spec.ports[1].nodePort"], 2),
        (port(json!({"nodePort": -5})), vec!["spec.ports[1].nodePort"], 2),
        (port(json!({"nodePort": 0})), vec![], 2),
        (port(json!({"targetPort": "named"})), vec![], 2),
        (
            json!({"spec": {"ports": [{"port": 80, "nodePort": 30000}, {"name": "b", "port": 81, "nodePort": 30000}]}}),
            vec!["spec.ports[1].nodePort"],
            2,
        ),
        (json!({"spec": {"ports": null}}), vec![], 0),
        (json!({"spec": {"clusterIPs": ["10.0.0.1", "junk"]}}), vec!["spec.clusterIPs[1]"], 1),
        (json!({"spec": {"clusterIPs": ["10.0.0.1", "::1"]}}), vec!["spec.clusterIPs[1]"], 1),
        (json!({"spec": {"clusterIPs": ["10.0.0.1", "10.0.0.2"]}}), vec!["spec.clusterIPs[1]"], 1),
        (json!({"spec": {"clusterIPs": ["10.0.0.1", "::ffff:10.0.0.1"]}}), vec!["spec.clusterIPs[1]"], 1),
        (json!({"spec": {"ipFamilies": ["IPv4"]}}), vec!["spec.clusterIPs[1]"], 1),
        (
            json!({"spec": {"externalIPs": ["127.0.0.1", "0.0.0.0", "224.0.0.1", 5]}}),
            vec!["spec.externalIPs[3]", "spec.externalIPs[0]", "spec.externalIPs[1]", "spec.externalIPs[2]"],
            1,
        ),
        (
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "255.255.255.255"}, {"ip": "192.0.2.1", "ipMode": "?"}]}}}),
            vec!["status.loadBalancer.ingress[1].ipMode", "status.loadBalancer.ingress[0].ip"],
            1,
        ),
        (json!({"spec": {"externalTrafficPolicy": "Near"}}), vec!["spec.externalTrafficPolicy"], 1),
        (json!({"spec": {"internalTrafficPolicy": "Near"}}), vec!["spec.internalTrafficPolicy"], 1),
        (json!({"spec": {"sessionAffinity": "Cookie"}}), vec!["spec.sessionAffinity"], 1),
        (json!({"spec": {"healthCheckNodePort": 70000}}), vec!["spec.healthCheckNodePort"], 1),
    ];
    for (over, fields, ports) in cases {
        let service = used(service_with(&over), &fields, &over);
        assert_eq!(service.ports.len(), ports, "{over}");
    }
}

#[test]
fn affinity_has_a_default_and_bounds() {
    let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    for (seconds, want, fields) in [
        (json!(null), 10_800, vec![]),
        (json!(1), 1, vec![]),
        (json!(86_400), 86_400, vec![]),
        (json!(0), 10_800, vec![field]),
        (json!(-1), 10_800, vec![field]),
        (json!(86_401), 10_800, vec![field]),
        (json!("long"), 10_800, vec![field]),
    ] {
        let over = json!({"spec": {
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
        }});
        assert_eq!(used(service_with(&over), &fields, &over).affinity_seconds, Some(want), "{over}");
    }
}

#[test]
fn source_ranges_never_open_up_by_a_typing_error() {
    let nobody = ["0.0.0.0/32".parse().unwrap(), "::/128".parse().unwrap()];
    let field = "spec.loadBalancerSourceRanges";
    for (ranges, want, fields) in [
        (json!([]), vec![], vec![]),
        (json!(["0.0.0.0/0"]), vec!["0.0.0.0/0".parse().unwrap()], vec![]),
        (json!(["10.0.0.0/8", "::/0"]), vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()], vec![]),
        (
            json!(["10.0.0.0/8", "10.0.0.0/8 ", "x"]),
            vec!["10.0.0.0/8".parse().unwrap()],
            vec!["spec.loadBalancerSourceRanges[2]"],
        ),
        (json!(["x"]), nobody.to_vec(), vec!["spec.loadBalancerSourceRanges[0]", field]),
    ] {
        let over = json!({"spec": {"loadBalancerSourceRanges": ranges}});
        assert_eq!(used(service_with(&over), &fields, &over).source_ranges, want, "{over}");
    }
    let over = json!({"spec": {"loadBalancerSourceRanges": [7]}});
    let (Outcome::Use(service), _) = service_with(&over) else { panic!("used") };
    assert_eq!(service.source_ranges, nobody);
    let (outcome, _) = service_with(&json!({"spec": {"loadBalancerSourceRanges": "10.0.0.0/8"}}));
    assert!(matches!(outcome, Outcome::Unreadable));
}

#[test]
fn families_come_from_the_cluster_addresses() {
    let over = json!({
        "spec": {"clusterIPs": ["fd00::1"], "ipFamilies": ["IPv6"], "externalIPs": ["192.0.2.1", "2001:db8::1"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"ip": "2001:db8::2"}]}},
    });
    let service = used(service_with(&over), &[], &over);
    assert_eq!(service.external_ips, ["2001:db8::1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(service.load_balancer_ips, ["2001:db8::2".parse::<std::net::IpAddr>().unwrap()]);
    let old = json!({"spec": {"clusterIPs": null, "ipFamilies": null}});
    assert_eq!(
        used(service_with(&old), &[], &old).cluster_ips.len(),
        1,
        "only spec.clusterIP, as before there were two"
    );
}

#[test]
fn external_addresses_are_off_by_default() {
    let value =
        json!({"metadata": {"name": "a"}, "spec": {"clusterIP": "10.0.0.1", "externalIPs": ["192.0.2.1", "junk"]}});
    let off = SourceOptions { external_ips: false, ..options() };
    let converted = convert_value::<ApiService>(value, &off, &mut Names::default());
    assert!(converted.problems.is_empty(), "what is not honoured is not judged");
    let Outcome::Use(service) = converted.outcome else { panic!("used") };
    assert_eq!((service.external_ips.len(), &*service.name.namespace), (0, "default"));
}

#[test]
fn services_that_are_none_of_ours() {
    for over in [
        json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}),
        json!({"spec": {"clusterIP": "None", "clusterIPs": null}}),
        json!({"spec": {"type": "ExternalName", "externalName": "x.example"}}),
        json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": ""}}}),
        json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "other"}}}),
    ] {
        let (outcome, problems) = service_with(&over);
        assert!(matches!(outcome, Outcome::Unused) && problems.is_empty(), "{over}: {problems:?}");
    }
    for (over, field) in [
        (json!({"spec": null}), "spec"),
        (json!({"spec": {"clusterIP": null, "clusterIPs": null}}), "spec.clusterIPs"),
        (json!({"metadata": {"name": "x".repeat(64)}}), "metadata.name"),
        (json!({"metadata": {"namespace": "x".repeat(64)}}), "metadata.namespace"),
    ] {
        let (outcome, problems) = service_with(&over);
        assert!(matches!(outcome, Outcome::Unused), "{over}");
        assert_eq!(problems.iter().map(|problem| &problem.field).collect::<Vec<_>>(), [field], "{over}");
    }
}

#[test]
fn an_object_that_cannot_be_read_says_so() {
    for over in [
        json!({"spec": "junk"}),
        json!({"spec": {"ports": {"a": 1}}}),
        json!({"metadata": {"name": 5}}),
        json!({"status": []}),
        json!(7),
    ] {
        let (outcome, problems) = service_with(&over);
        assert!(matches!(outcome, Outcome::Unreadable), "{over}");
        assert!(!problems.is_empty(), "{over}");
    }
    let (outcome, problems) = slice_with(&json!({"endpoints": "junk"}));
    assert!(matches!(outcome, Outcome::Unreadable) && problems[0].field == "endpoints");
}

#[test]
fn endpoints_have_the_defaults_of_kubernetes() {
    let slice = used(slice_with(&json!({})), &[], &Value::Null);
    assert_eq!((slice.service.to_string().as_str(), slice.family), ("shop/web", Family::V4));
    let endpoint = &slice.endpoints[0];
    assert!(endpoint.ready && endpoint.serving && !endpoint.terminating);
    let over = json!({
        "metadata": {"annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:00:01.5Z"}},
        "endpoints": [{
            "addresses": ["10.1.0.1", "10.1.0.2"], "nodeName": "node-a",
            "conditions": {"ready": false, "serving": true, "terminating": true},
            "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "n"}]},
        }],
    });
    let slice = used(slice_with(&over), &[], &over);
    let endpoint = &slice.endpoints[0];
    assert_eq!(slice.endpoints.len(), 1, "only the first address");
    assert!(!endpoint.ready && endpoint.serving && endpoint.terminating);
    assert_eq!(endpoint.node.as_deref(), Some("node-a"));
    assert_eq!((&*endpoint.hint_zones[0], &*endpoint.hint_nodes[0]), ("z", "n"));
    assert_eq!(slice.triggered_ms, Some(1500));
}

#[test]
fn bad_addresses_of_endpoints_are_left_out_alone() {
    let v6 =
        ["::1", "::", "fe80::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "10.0.0.1", "x", "fd00::1%eth0"];
    let v4 = [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "fd00::1",
        "010.0.0.1",
        "",
        "10.0.0.1/8",
    ];
    for (family, good, bad) in [("IPv4", "10.1.0.9", v4), ("IPv6", "fd00::9", v6)] {
        for address in bad {
            let over = json!({"addressType": family, "endpoints": [{"addresses": [address]}, {"addresses": [good]}]});
            let slice = used(slice_with(&over), &["endpoints[0].addresses[0]"], &over);
            assert_eq!(slice.endpoints.len(), 1, "{over}");
            assert_eq!(slice.endpoints[0].address, good.parse::<std::net::IpAddr>().unwrap());
        }
    }
    let over =
        json!({"endpoints": [{"addresses": []}, 5, {"addresses": ["10.1.0.1"], "conditions": {"ready": "yes"}}]});
    let slice =
        used(slice_with(&over), &["endpoints[1]", "endpoints[2].conditions.ready", "endpoints[0].addresses[0]"], &over);
    assert_eq!(slice.endpoints.len(), 1);
}

#[test]
fn ports_of_slices_without_number_are_skipped_silently() {
    for (ports, want, fields) in [
        (json!(null), 0, vec![]),
        (json!([]), 0, vec![]),
        (json!([{"name": "a"}, {"port": null}, {"port": 0}]), 0, vec![]),
        (json!([{"port": 1}, {"port": 2, "protocol": "UDP"}]), 2, vec![]),
        (json!([{"port": 1}, {"port": 2}]), 1, vec!["ports[1].name"]),
        (json!([{"port": -1}, {"port": 65_536}, {"port": 65_535}]), 1, vec!["ports[0].port", "ports[1].port"]),
        (json!([{"port": 1, "protocol": "tcp"}]), 0, vec!["ports[0].protocol"]),
    ] {
        let over = json!({"ports": ports});
        assert_eq!(used(slice_with(&over), &fields, &over).ports.len(), want, "{over}");
    }
}

#[test]
fn slices_that_are_none_of_ours() {
    for (over, fields) in [
        (json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}}), vec![]),
        (json!({"metadata": {"labels": null}}), vec![]),
        (json!({"metadata": {"labels": {"kubernetes.io/service-name": ""}}}), vec![]),
        (json!({"addressType": "FQDN"}), vec![]),
        (json!({"addressType": "IPX"}), vec!["addressType"]),
    ] {
        let (outcome, problems) = slice_with(&over);
        assert!(matches!(outcome, Outcome::Unused), "{over}");
        assert_eq!(problems.iter().map(|problem| problem.field.as_str()).collect::<Vec<_>>(), fields, "{over}");
    }
}

#[test]
fn a_node_has_addresses_a_zone_and_may_be_leaving() {
    let node = used(node_with(&json!({})), &[], &Value::Null);
    assert_eq!((node.addresses.len(), node.zone.as_deref(), node.leaving), (2, Some("z"), false));
    let over = json!({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}});
    assert!(used(node_with(&over), &[], &over).leaving);
    let over = json!({"status": {"addresses": [{"type": "InternalIP", "address": "x"}]}});
    assert!(used(node_with(&over), &["status.addresses[0].address"], &over).addresses.is_empty());
}

#[test]
fn thousands_of_problems_are_summed_up() {
    let endpoints: Vec<Value> = (0..5000).map(|_| json!({"addresses": ["127.0.0.1"]})).collect();
    let (outcome, problems) = slice_with(&json!({"endpoints": endpoints}));
    assert!(matches!(outcome, Outcome::Use(slice) if slice.endpoints.is_empty()));
    assert_eq!(problems.len(), 16);
    assert!(problems[15].message.starts_with("4985 more"), "{}", problems[15]);
}

/// Any JSON, with texts and keys that mean something here more often than by chance.
fn junk() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just("None".to_owned()),
        Just("10.0.0.1".to_owned()),
        Just("::ffff:1.2.3.4".to_owned()),
        Just("ClientIP".to_owned()),
        Just("1/0".to_owned()),
        ".{0,12}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let keys = prop_oneof![
        Just("port"),
        Just("name"),
        Just("protocol"),
        Just("nodePort"),
        Just("addresses"),
        Just("conditions"),
        Just("ip"),
        Just("ready"),
        Just("hints"),
        Just("forZones"),
        Just("ingress"),
        Just("loadBalancer"),
        Just("labels"),
        Just("key"),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(keys.clone(), inner, 0..6)
                .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn junk_in_any_field_never_panics(value in junk(), field in 0_usize..26) {
        const SERVICE: [&str; 14] = [
            "ports", "clusterIP", "clusterIPs", "ipFamilies", "externalIPs", "type", "sessionAffinity", "sessionAffinityConfig",
            "loadBalancerSourceRanges", "externalTrafficPolicy", "internalTrafficPolicy", "healthCheckNodePort", "selector", "x",
        ];
        let whole = ["metadata", "spec", "status", "endpoints", "ports", "addressType"];
        let over = match field {
            0..14 => json!({"spec": {SERVICE[field]: value.clone()}}),
            14..20 => json!({whole[field - 14]: value.clone()}),
            20 => json!({"spec": {"ports": [{"port": 1}, value.clone()]}}),
            21 => json!({"endpoints": [value.clone(), {"addresses": [value.clone()]}]}),
            22 => json!({"ports": [value.clone(), {"port": value.clone()}]}),
            23 => json!({"status": {"loadBalancer": {"ingress": [value.clone()]}, "addresses": [value.clone()]}}),
            24 => json!({"metadata": {"labels": value.clone()}}),
            _ => value.clone(),
        };
        for problems in [service_with(&over).1, slice_with(&over).1, node_with(&over).1] {
            prop_assert!(problems.len() <= 16);
            for problem in problems {
                prop_assert!(!problem.field.is_empty() && !problem.message.is_empty());
            }
        }
    }
}
