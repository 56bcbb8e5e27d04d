//! Services: addresses, ports, policies. Headless, `ExternalName` and other proxies' Services are none of ours, except where
//! names are served.

use std::{collections::HashSet, net::IpAddr};

use k8s_openapi::api::core::v1;

use super::{Context, Convert, claim::claim, fields};
use crate::model::{Family, ObjectName, Service, ServicePort, Unbalanced, is_object_label};

/// Label of Services that another proxy serves, whatever its value.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// `timeoutSeconds` of session affinity if there is none.
const AFFINITY_SECONDS: u32 = 10_800;
/// Longest `timeoutSeconds` that Kubernetes allows.
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// A Service, whatever becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AnyService {
    /// It is load-balanced here.
    Balanced(Box<Service>),
    /// It only has names.
    Unbalanced(Unbalanced),
}

impl Convert for v1::Service {
    type Model = AnyService;
    const KIND: &'static str = "Service";
    const NAMESPACED: bool = true;
    const ESSENTIAL: &'static [&'static str] = &[
        "spec",
        "spec.type",
        "spec.clusterIP",
        "spec.clusterIPs",
        "spec.ports",
        "spec.loadBalancerSourceRanges",
        "status",
        "status.loadBalancer",
        "status.loadBalancer.ingress",
    ];

    fn convert(&self, name: &ObjectName, context: &mut Context<'_>) -> Option<AnyService> {
        let labels = self.metadata.labels.as_ref();
        let is_elsewhere = labels.is_some_and(|labels| labels.contains_key(OTHER_PROXY));
        if is_elsewhere && !context.options.names {
            return None;
        }
        let Some(spec) = &self.spec else {
            context.problem("spec", "missing: Service left out; give it clusterIPs and ports");
            return None;
        };
        let is_external = spec.type_.as_deref() == Some("ExternalName");
        if (is_external || headless(spec)) && !context.options.names {
            return None;
        }
        for (field, value) in [("metadata.name", &name.name), ("metadata.namespace", &name.namespace)] {
            if let Err(message) = fields::label(value) {
                context.problem(field, message);
                return None;
            }
        }
        if context.options.names {
            check_names(spec, name, context);
        }
        if is_external {
            return external_name(spec, context).map(AnyService::Unbalanced);
        }
        if headless(spec) {
            return Some(AnyService::Unbalanced(Unbalanced::Headless));
        }
        let cluster_ips = cluster_ips(spec, context);
        if cluster_ips.is_empty() {
            context.problem("spec.clusterIPs", "no usable address: Service left out; give it one for each IP family");
            return None;
        }
        if is_elsewhere {
            return Some(AnyService::Unbalanced(Unbalanced::Elsewhere { cluster_ips, ports: ports(spec, context) }));
        }
        let families: Vec<Family> = cluster_ips.iter().copied().map(Family::of).collect();
        let external_ips = if context.options.external_ips {
            virtual_addresses(listed("spec.externalIPs", spec.external_ips.iter().flatten()), &families, context)
        } else {
            Vec::new()
        };
        let load_balancer_ips = virtual_addresses(ingress_addresses(self, context), &families, context);
        let source_ranges = source_ranges(spec, context);
        let ports = ports(spec, context);
        let external_local = is_local("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref(), context);
        // No load balancer asks for other Services, though the field may be left on the object.
        let is_asked = external_local && spec.type_.as_deref() == Some("LoadBalancer");
        let health_check = optional_port("spec.healthCheckNodePort", spec.health_check_node_port, context);
        Some(AnyService::Balanced(Box::new(Service {
            name: name.clone(),
            external_ips,
            load_balancer_ips,
            source_ranges,
            claim: claim(self, name, &families, &ports, context),
            ports,
            external_local,
            internal_local: is_local("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), context),
            affinity_seconds: affinity(spec, context),
            health_check_node_port: health_check.filter(|_| is_asked),
            cluster_ips,
        })))
    }
}

/// Reports names that are no labels: they have no records.
fn check_names(spec: &v1::ServiceSpec, name: &ObjectName, context: &mut Context<'_>) {
    for (field, value) in [("metadata.name", &name.name), ("metadata.namespace", &name.namespace)] {
        if !is_object_label(value) {
            context.problem(field, format!("{value:?} cannot be in DNS: no records; use a-z, 0-9 and inner hyphens"));
        }
    }
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty() && !crate::model::is_port_label(name) {
            let message =
                format!("{name:?} cannot be in DNS: no SRV record; use at most 62 of a-z, 0-9 and inner hyphens");
            context.problem(format!("spec.ports[{i}].name"), message);
        }
    }
}

/// The name that an `ExternalName` Service stands for.
fn external_name(spec: &v1::ServiceSpec, context: &mut Context<'_>) -> Option<Unbalanced> {
    let name = spec.external_name.as_deref().unwrap_or_default();
    match fields::host_name(name) {
        Ok(name) => Some(Unbalanced::ExternalName(name.into())),
        Err(message) => {
            context.problem("spec.externalName", message);
            None
        }
    }
}

fn headless(spec: &v1::ServiceSpec) -> bool {
    spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()).any(|address| address == "None")
}

/// Texts with the path of the field each stands in.
fn listed<'a>(field: &str, texts: impl Iterator<Item = &'a String>) -> Vec<(String, &'a str)> {
    texts.enumerate().map(|(i, text)| (format!("{field}[{i}]"), text.as_str())).collect()
}

/// One address of each family at most, as Kubernetes has it.
pub(super) fn cluster_ips(spec: &v1::ServiceSpec, context: &mut Context<'_>) -> Vec<IpAddr> {
    let mut texts = listed("spec.clusterIPs", spec.cluster_ips.iter().flatten());
    if texts.is_empty() {
        // Objects written before there were two families have the singular field only.
        let single = spec.cluster_ip.as_deref().filter(|address| !address.is_empty());
        texts.extend(single.map(|address| ("spec.clusterIP".to_owned(), address)));
    }
    let allowed = spec.ip_families.as_deref().unwrap_or_default();
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (field, text) in texts {
        let address = match fields::virtual_address(text) {
            Ok(address) => address,
            Err(message) => {
                context.problem(field, message);
                continue;
            }
        };
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        if !allowed.is_empty() && !allowed.iter().any(|allowed| allowed == family) {
            context.problem(field, format!("{address}: spec.ipFamilies has no {family}: left out; add it there"));
        } else if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            context
                .problem(field, format!("{address} is a second {family} address: left out; use one for each family"));
        } else {
            addresses.push(address);
        }
    }
    addresses
}

/// Addresses of the families the Service has, each once.
fn virtual_addresses(texts: Vec<(String, &str)>, families: &[Family], context: &mut Context<'_>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (field, text) in texts {
        match fields::virtual_address(text) {
            Ok(address) if families.contains(&Family::of(address)) && !addresses.contains(&address) => {
                addresses.push(address);
            }
            Ok(_) => {}
            Err(message) => context.problem(field, message),
        }
    }
    addresses
}

/// Load-balancer addresses that arrive here unchanged: `ipMode` VIP or absent.
fn ingress_addresses<'a>(service: &'a v1::Service, context: &mut Context<'_>) -> Vec<(String, &'a str)> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let mut texts = Vec::new();
    for (i, entry) in ingress.enumerate() {
        let Some(ip) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        match entry.ip_mode.as_deref() {
            None | Some("" | "VIP") => texts.push((format!("status.loadBalancer.ingress[{i}].ip"), ip)),
            Some("Proxy") => {}
            Some(other) => context.problem(
                format!("status.loadBalancer.ingress[{i}].ipMode"),
                format!("{other:?} is unknown: {ip} left out; use VIP or Proxy"),
            ),
        }
    }
    texts
}

/// Source ranges; empty admits everybody.
fn source_ranges(spec: &v1::ServiceSpec, context: &mut Context<'_>) -> Vec<ipnet::IpNet> {
    let mut ranges = Vec::new();
    let mut given = false;
    for (field, text) in listed("spec.loadBalancerSourceRanges", spec.load_balancer_source_ranges.iter().flatten()) {
        given = true;
        match fields::source_range(text) {
            Ok(range) if ranges.contains(&range) => {}
            Ok(range) => ranges.push(range),
            Err(message) => context.problem(field, message),
        }
    }
    if ranges.is_empty() && given {
        // Ranges were meant to restrict: with none left that makes sense, admit nobody rather than everybody.
        context
            .problem("spec.loadBalancerSourceRanges", "no range makes sense: nobody is admitted; correct the ranges");
        ranges = [IpAddr::from([0; 4]), IpAddr::from([0; 16])].map(ipnet::IpNet::from).to_vec();
    }
    ranges
}

/// Ports that make sense, each number and name once for each protocol.
pub(super) fn ports(spec: &v1::ServiceSpec, context: &mut Context<'_>) -> Vec<ServicePort> {
    let mut numbers = HashSet::new();
    let mut names = HashSet::new();
    let mut node_ports = HashSet::new();
    let mut ports = Vec::new();
    for (i, entry) in spec.ports.iter().flatten().enumerate() {
        let name = entry.name.as_deref().unwrap_or_default();
        let checked = fields::port(entry.port).map_err(|message| ("port", message)).and_then(|port| {
            fields::label(name).map_err(|message| ("name", message))?;
            let protocol = fields::protocol(entry.protocol.as_deref()).map_err(|message| ("protocol", message))?;
            if numbers.contains(&(port, protocol)) {
                return Err(("port", format!("{port}/{protocol} exists already: left out; use each port once")));
            }
            if names.contains(&(name, protocol)) {
                return Err(("name", format!("{name:?} with {protocol} exists already: left out; name each port")));
            }
            Ok((port, protocol))
        });
        let (port, protocol) = match checked {
            Ok(checked) => checked,
            Err((field, message)) => {
                context.problem(format!("spec.ports[{i}].{field}"), message);
                continue;
            }
        };
        numbers.insert((port, protocol));
        names.insert((name, protocol));
        let field = format!("spec.ports[{i}].nodePort");
        let mut node_port = optional_port(&field, entry.node_port, context);
        if let Some(number) = node_port
            && !node_ports.insert((number, protocol))
        {
            context.problem(field, format!("{number}/{protocol} exists already: left out; use each node port once"));
            node_port = None;
        }
        ports.push(ServicePort { name: context.names.intern(name), protocol, port, node_port });
    }
    ports
}

/// A port that may be absent or 0, which means none.
fn optional_port(field: &str, number: Option<i32>, context: &mut Context<'_>) -> Option<u16> {
    let number = number.filter(|&number| number != 0)?;
    fields::port(number).map_err(|message| context.problem(field, message)).ok()
}

/// Whether a traffic policy is `Local`.
fn is_local(field: &str, policy: Option<&str>, context: &mut Context<'_>) -> bool {
    match policy {
        None | Some("" | "Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            context.problem(field, format!("{other:?} is unknown: taken as Cluster; use Cluster or Local"));
            false
        }
    }
}

/// Time-out of session affinity by client address, seconds.
fn affinity(spec: &v1::ServiceSpec, context: &mut Context<'_>) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            context.problem("spec.sessionAffinity", format!("{other:?} is unknown: none used; use None or ClientIP"));
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = config.and_then(|config| config.timeout_seconds) else { return Some(AFFINITY_SECONDS) };
    let checked = u32::try_from(seconds).ok().filter(|seconds| (1..=MAX_AFFINITY_SECONDS).contains(seconds));
    if checked.is_none() {
        context.problem(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("{seconds} makes no sense: {AFFINITY_SECONDS} used; use 1 to {MAX_AFFINITY_SECONDS}"),
        );
    }
    Some(checked.unwrap_or(AFFINITY_SECONDS))
}
