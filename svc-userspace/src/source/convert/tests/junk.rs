//! Objects that nobody should send: unreadable ones, thousands of problems, any JSON anywhere.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{super::Outcome, node_with, service_with, slice_with};

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
