//! EndpointSlices, and the own Node.

use serde_json::{Value, json};

use super::{super::Outcome, node_with, slice_with, used};
use crate::model::Family;

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
