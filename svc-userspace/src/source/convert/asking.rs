//! Services as the writer of load-balancer addresses needs them, whoever serves them otherwise.

use std::net::IpAddr;

use k8s_openapi::api::core::v1;
use serde::Deserialize;

use super::{
    Context, Convert,
    claim::{is_ours, wishes},
    service::{cluster_ips, ports},
};
use crate::model::{Asking, Asks, Family, GIVEN_CONDITION, Has, ObjectName};

/// A Service that is read for the writer.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct Balanced(pub(crate) v1::Service);

impl Convert for Balanced {
    type Model = Asking;
    const KIND: &'static str = "Service";
    const NAMESPACED: bool = true;
    const ESSENTIAL: &'static [&'static str] = v1::Service::ESSENTIAL;

    fn convert(&self, name: &ObjectName, context: &mut Context<'_>) -> Option<Asking> {
        let Self(service) = self;
        let metadata = &service.metadata;
        let version = metadata.resource_version.as_deref().and_then(|version| version.parse().ok());
        let (Some(uid), Some(version)) = (metadata.uid.clone(), version) else {
            context.problem("metadata", "uid or resourceVersion is missing or no number: no address is given");
            return None;
        };
        Some(Asking {
            uid,
            version,
            leaving: metadata.deletion_timestamp.is_some(),
            asks: asks(service, name, context),
            has: has(service),
            conditions: conditions(service),
        })
    }
}

fn asks(service: &v1::Service, name: &ObjectName, context: &mut Context<'_>) -> Asks {
    let Some(spec) = service.spec.as_ref().filter(|_| is_ours(service, context.options.claims)) else {
        return Asks::Nothing;
    };
    let families: Vec<Family> = cluster_ips(spec, context).into_iter().map(Family::of).collect();
    if families.is_empty() {
        return Asks::Nonsense("spec.clusterIPs: no usable address: give it one for each IP family".to_owned());
    }
    match wishes(service, name, &families, &ports(spec, context)) {
        Ok(claim) => Asks::Claim(Box::new(claim)),
        Err((field, message)) => Asks::Nonsense(format!("{field}: {message}")),
    }
}

fn has(service: &v1::Service) -> Has {
    let Some(status) = &service.status else { return Has::Nothing };
    let ingress = status.load_balancer.as_ref().and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    if ingress.is_empty() {
        return Has::Nothing;
    }
    let addresses: Vec<IpAddr> =
        ingress.iter().filter_map(|entry| entry.ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
    let is_plain = addresses.len() == ingress.len()
        && ingress.iter().all(|entry| {
            entry.hostname.as_deref().unwrap_or_default().is_empty()
                && matches!(entry.ip_mode.as_deref(), None | Some("" | "VIP"))
        });
    let ours = status.conditions.iter().flatten().find(|condition| condition.type_ == GIVEN_CONDITION);
    match ours.filter(|ours| is_plain && ours.status == "True" && ours.message == given_message(&addresses)) {
        Some(ours) => Has::Given { addresses, since: ours.last_transition_time.0.as_second() },
        None => Has::Others(addresses),
    }
}

/// Message of the condition that says that these were given.
pub(crate) fn given_message(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn conditions(service: &v1::Service) -> Vec<String> {
    let conditions = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let others = conditions.filter(|condition| condition.type_ != GIVEN_CONDITION);
    others.filter_map(|condition| serde_json::to_string(condition).ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        model::{CLAIM_ADDRESSES, CLAIM_CLASS, Claims},
        source::{
            SourceOptions,
            convert::{Outcome, convert_value},
            names::Names,
        },
    };

    fn asking(change: impl FnOnce(&mut Value)) -> Asking {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "annotations": {}},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": CLAIM_CLASS, "clusterIPs": ["10.0.0.1"],
                "ports": [{"port": 80}],
            },
            "status": {"conditions": [{"type": GIVEN_CONDITION, "status": "True", "reason": "FromPool",
                "message": "203.0.113.1", "lastTransitionTime": "1970-01-01T00:01:00Z"}]},
        });
        change(&mut object);
        let options = SourceOptions { node_name: "a".into(), external_ips: false, claims: Claims::Class, names: false };
        match convert_value::<Balanced>(object, &options, &mut Names::default()).outcome {
            Outcome::Use(asking) => *asking,
            other => panic!("{other:?}"),
        }
    }

    fn with_ingress(ingress: &Value) -> Has {
        asking(|object| object["status"]["loadBalancer"] = json!({"ingress": ingress})).has
    }

    #[test]
    fn only_what_the_condition_says_was_given() {
        let ip = |last| IpAddr::from([203, 0, 113, last]);
        assert_eq!(with_ingress(&json!([])), Has::Nothing);
        let given = Has::Given { addresses: vec![ip(1)], since: 60 };
        assert_eq!(with_ingress(&json!([{"ip": "203.0.113.1", "ipMode": "VIP"}])), given);
        assert_eq!(with_ingress(&json!([{"ip": "203.0.113.1"}])), given, "of a server that knows no ipMode");
        for (theirs, addresses) in [
            (json!([{"ip": "203.0.113.2"}]), vec![ip(2)]),
            (json!([{"ip": "203.0.113.1"}, {"ip": "203.0.113.2"}]), vec![ip(1), ip(2)]),
            (json!([{"ip": "203.0.113.1", "ipMode": "Proxy"}]), vec![ip(1)]),
            (json!([{"ip": "203.0.113.1", "hostname": "lb"}]), vec![ip(1)]),
            (json!([{"hostname": "lb.example.com"}]), Vec::new()),
        ] {
            assert_eq!(with_ingress(&theirs), Has::Others(addresses), "{theirs}");
        }
    }

    #[test]
    fn a_service_of_another_kind_or_class_asks_for_nothing() {
        assert!(matches!(asking(|_| ()).asks, Asks::Claim(_)));
        assert_eq!(asking(|object| object["spec"]["type"] = "NodePort".into()).asks, Asks::Nothing);
        assert_eq!(asking(|object| object["spec"]["loadBalancerClass"] = "x/y".into()).asks, Asks::Nothing);
        assert_eq!(asking(|object| object["spec"]["loadBalancerClass"] = Value::Null).asks, Asks::Nothing);
        let nonsense = asking(|object| object["metadata"]["annotations"] = json!({CLAIM_ADDRESSES: "x"}));
        assert!(matches!(nonsense.asks, Asks::Nonsense(message) if message.contains("svc/addresses")));
    }

    #[test]
    fn conditions_of_others_are_kept() {
        let other = json!({"type": "example.com/Ready", "status": "True", "reason": "R", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let asking = asking(|object| {
            if let Some(all) = object["status"]["conditions"].as_array_mut() {
                all.push(other);
            }
        });
        assert_eq!(asking.conditions.len(), 1);
        assert!(asking.conditions[0].contains("example.com/Ready") && asking.version == 7 && !asking.leaving);
    }
}
