//! What a Service of type LoadBalancer asks of the pools.

use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use super::{Context, fields};
use crate::model::{
    CLAIM_ADDRESSES, CLAIM_CLASS, CLAIM_POOL, CLAIM_SHARE, Claim, Claims, Family, ObjectName, ServicePort,
};

/// The claim of a Service with these families and ports; none if another one gives it addresses, or nobody shall.
pub(super) fn claim(
    service: &v1::Service,
    name: &ObjectName,
    families: &[Family],
    ports: &[ServicePort],
    context: &mut Context<'_>,
) -> Option<Box<Claim>> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let given = status.and_then(|status| status.ingress.as_ref()).is_some_and(|ingress| !ingress.is_empty());
    if given || !is_ours(service, context.options.claims) {
        return None;
    }
    match wishes(service, name, families, ports) {
        Ok(claim) => Some(Box::new(claim)),
        Err((field, message)) => {
            context.problem(field, message);
            None
        }
    }
}

/// Whether the pools are to give it addresses.
pub(super) fn is_ours(service: &v1::Service, claims: Claims) -> bool {
    let Some(spec) = &service.spec else { return false };
    let ours = match (claims, spec.load_balancer_class.as_deref()) {
        (Claims::Nobody, _) => false,
        (_, Some(class)) => class == CLAIM_CLASS,
        (claims, None) => claims == Claims::Default,
    };
    ours && spec.type_.as_deref() == Some("LoadBalancer")
}

/// What a Service asks for; else the field that makes no sense, and why.
pub(super) fn wishes(
    service: &v1::Service,
    name: &ObjectName,
    families: &[Family],
    ports: &[ServicePort],
) -> Result<Claim, (String, String)> {
    let spec = service.spec.as_ref();
    let annotations = service.metadata.annotations.as_ref();
    let annotation = |key: &str| annotations.and_then(|all| all.get(key)).map(|value| value.trim());
    let (field, wanted) = match annotation(CLAIM_ADDRESSES) {
        Some(wanted) => (format!("metadata.annotations.{CLAIM_ADDRESSES}"), wanted),
        None => {
            let deprecated = spec.and_then(|spec| spec.load_balancer_ip.as_deref());
            ("spec.loadBalancerIP".to_owned(), deprecated.unwrap_or_default())
        }
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in wanted.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        match fields::virtual_address(text) {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            // Another address than the one that was meant would be worse than none.
            Err(message) => return Err((field, message)),
        }
    }
    Ok(Claim {
        name: name.clone(),
        labels: service.metadata.labels.clone().unwrap_or_default(),
        families: families.to_vec(),
        all_families: spec.and_then(|spec| spec.ip_family_policy.as_deref()) == Some("RequireDualStack"),
        wanted: addresses,
        pool: annotation(CLAIM_POOL).map(Into::into),
        share: annotation(CLAIM_SHARE).map(Into::into),
        ports: ports.iter().map(|port| (port.protocol, port.port)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        model::{Claims, Problem},
        source::{
            SourceOptions,
            convert::{AnyService, Outcome, convert_value},
            names::Names,
        },
    };

    fn claimed(claims: Claims, change: impl FnOnce(&mut Value)) -> (Option<Box<Claim>>, Vec<Problem>) {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop", "labels": {"tier": "front"}, "annotations": {}},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
            },
        });
        change(&mut object);
        let options = SourceOptions { node_name: "node-a".into(), external_ips: false, claims, names: false };
        let converted = convert_value::<v1::Service>(object, &options, &mut Names::default());
        let Outcome::Use(service) = converted.outcome else { panic!("{:?}", converted.problems) };
        let AnyService::Balanced(service) = *service else { panic!("load-balanced") };
        (service.claim, converted.problems)
    }

    #[test]
    fn a_class_says_who_gives_addresses() {
        let class = |class: &'static str| move |object: &mut Value| object["spec"]["loadBalancerClass"] = class.into();
        for (claims, own, other, none) in [
            (Claims::Nobody, false, false, false),
            (Claims::Class, true, false, false),
            (Claims::Default, true, false, true),
        ] {
            assert_eq!(claimed(claims, class(CLAIM_CLASS)).0.is_some(), own, "{claims:?}");
            assert_eq!(claimed(claims, class("example.com/other")).0.is_some(), other, "{claims:?}");
            assert_eq!(claimed(claims, |_| {}).0.is_some(), none, "{claims:?}");
        }
    }

    #[test]
    fn who_has_an_address_or_is_no_load_balancer_asks_for_none() {
        let given = |object: &mut Value| object["status"] = json!({"loadBalancer": {"ingress": [{"hostname": "lb"}]}});
        assert_eq!(claimed(Claims::Default, given).0, None);
        assert_eq!(claimed(Claims::Default, |object| object["spec"]["type"] = "NodePort".into()).0, None);
    }

    #[test]
    fn what_is_asked_for_is_read_from_annotations_then_from_the_deprecated_field() {
        let asks = |object: &mut Value| {
            object["spec"]["loadBalancerIP"] = "203.0.113.9".into();
            object["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
            object["metadata"]["annotations"] =
                json!({CLAIM_ADDRESSES: "203.0.113.1, 2001:db8::1", CLAIM_POOL: "public", CLAIM_SHARE: "dns"});
        };
        let (claim, problems) = claimed(Claims::Default, asks);
        let claim = claim.expect("a claim");
        assert_eq!(problems, []);
        assert_eq!(claim.wanted.iter().map(ToString::to_string).collect::<Vec<_>>(), ["203.0.113.1", "2001:db8::1"]);
        assert_eq!((claim.pool.as_deref(), claim.share.as_deref()), (Some("public"), Some("dns")));
        assert!(claim.all_families && claim.families == [Family::V4, Family::V6] && claim.labels["tier"] == "front");
        let deprecated = claimed(Claims::Default, |object| object["spec"]["loadBalancerIP"] = "203.0.113.9".into());
        assert_eq!(deprecated.0.map(|claim| claim.wanted), Some(vec![IpAddr::from([203, 0, 113, 9])]));
    }

    #[test]
    fn a_wish_that_makes_no_sense_gets_nothing_rather_than_something_else() {
        let (claim, problems) = claimed(Claims::Default, |object| {
            object["metadata"]["annotations"] = json!({CLAIM_ADDRESSES: "203.0.113.1, x"});
        });
        assert_eq!(claim, None);
        assert_eq!(problems[0].field, "metadata.annotations.svc/addresses");
    }
}
