//! Services: what is taken, what is left out alone, what is none of ours.

use k8s_openapi::api::core::v1::Service as ApiService;
use serde_json::{Value, json};

use super::{
    super::{Outcome, convert_value},
    balanced, merged, options, service_with, used,
};
use crate::{
    model::Protocol,
    source::{SourceOptions, names::Names},
};

#[test]
fn a_service_without_fault_is_taken_as_it_is() {
    let service = used(
        service_with(&json!({
            "spec": {
                "type": "LoadBalancer", "externalIPs": ["198.51.100.1", "198.51.100.1"], "externalTrafficPolicy": "Local",
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
fn a_health_check_node_port_is_for_load_balancers_with_policy_local_alone() {
    for (kind, policy, want) in [
        ("LoadBalancer", "Local", Some(32000)),
        ("LoadBalancer", "Cluster", None),
        ("NodePort", "Local", None),
        ("ClusterIP", "Local", None),
    ] {
        let over = json!({"spec": {"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 32000}});
        assert_eq!(used(service_with(&over), &[], &over).health_check_node_port, want, "{over}");
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
    let Outcome::Use(service) = balanced(converted.outcome) else { panic!("used") };
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
