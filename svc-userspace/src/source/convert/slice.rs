//! EndpointSlices: one family, the Service they belong to, ports and endpoints.

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::api::discovery::v1;

use super::{Context, Convert, fields};
use crate::model::{Endpoint, Family, ObjectName, Slice, SlicePort, is_label};

/// Label that names the Service.
const SERVICE: &str = "kubernetes.io/service-name";
/// Label of slices that belong to a headless Service.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Annotation with the time of the change that caused this version.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

impl Convert for v1::EndpointSlice {
    type Model = Slice;
    const KIND: &'static str = "EndpointSlice";
    const NAMESPACED: bool = true;
    const ESSENTIAL: &'static [&'static str] = &["addressType", "endpoints", "ports"];

    fn convert(&self, name: &ObjectName, context: &mut Context<'_>) -> Option<Slice> {
        let label = |key: &str| self.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        let headless = label(HEADLESS).is_some();
        if headless && !context.options.names {
            return None;
        }
        let service = label(SERVICE).filter(|service| !service.is_empty())?;
        let family = match self.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            "FQDN" => return None,
            other => {
                context.problem("addressType", format!("{other:?} is unknown: slice left out; use IPv4 or IPv6"));
                return None;
            }
        };
        for (field, value) in [("metadata.namespace", &*name.namespace), ("metadata.labels", service.as_str())] {
            if let Err(message) = fields::label(value) {
                context.problem(field, message);
                return None;
            }
        }
        let service = ObjectName { namespace: name.namespace.clone(), name: context.names.intern(service) };
        let ports = ports(self, context);
        let endpoints = self.endpoints.iter().flatten().enumerate();
        let endpoints = endpoints
            .filter_map(|(i, entry)| Some((endpoint(i, entry, family, context)?, hostname(i, entry, context))));
        let (endpoints, mut hostnames): (Vec<_>, Vec<_>) = endpoints.unzip();
        if hostnames.iter().all(Option::is_none) {
            hostnames = Vec::new();
        }
        let triggered_ms = triggered(self, context);
        Some(Slice { name: name.clone(), service, family, ports, endpoints, headless, hostnames, triggered_ms })
    }
}

/// Ports that have a number.
fn ports(slice: &v1::EndpointSlice, context: &mut Context<'_>) -> Vec<SlicePort> {
    let mut seen = HashSet::new();
    let mut ports = Vec::new();
    for (i, entry) in slice.ports.iter().flatten().enumerate() {
        // Without a number a port means "all ports", which no Service port can point to.
        let Some(number) = entry.port.filter(|&number| number != 0) else { continue };
        let name = entry.name.as_deref().unwrap_or_default();
        let checked = fields::port(number).map_err(|message| ("port", message)).and_then(|port| {
            fields::label(name).map_err(|message| ("name", message))?;
            let protocol = fields::protocol(entry.protocol.as_deref()).map_err(|message| ("protocol", message))?;
            Ok((port, protocol))
        });
        match checked {
            Ok((_, protocol)) if !seen.insert((name, protocol)) => context.problem(
                format!("ports[{i}].name"),
                format!("{name:?} with protocol {protocol} exists already in this slice: left out; use each name once"),
            ),
            Ok((port, protocol)) => ports.push(SlicePort { name: context.names.intern(name), protocol, port }),
            Err((field, message)) => context.problem(format!("ports[{i}].{field}"), message),
        }
    }
    ports
}

/// An endpoint, if its first address makes sense.
fn endpoint(i: usize, entry: &v1::Endpoint, family: Family, context: &mut Context<'_>) -> Option<Endpoint> {
    let field = || format!("endpoints[{i}].addresses[0]");
    let Some(text) = entry.addresses.first() else {
        context.problem(field(), "missing: endpoint left out; give it one address");
        return None;
    };
    let address = fields::endpoint_address(text).and_then(|address| match (Family::of(address), family) {
        (found, wanted) if found == wanted => Ok(address),
        (_, Family::V4) => {
            Err(format!("{address} is not IPv4 as addressType says: left out; use a slice of type IPv6"))
        }
        (_, Family::V6) => {
            Err(format!("{address} is not IPv6 as addressType says: left out; use a slice of type IPv4"))
        }
    });
    let address = address.map_err(|message| context.problem(field(), message)).ok()?;
    let conditions = entry.conditions.as_ref();
    let hints = entry.hints.as_ref();
    let mut intern = |name: &String| context.names.intern(name);
    let node: Option<Arc<str>> = entry.node_name.as_ref().filter(|node| !node.is_empty()).map(&mut intern);
    let zones = hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten();
    let hint_zones = zones.map(|zone| intern(&zone.name)).collect();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).into_iter().flatten();
    let hint_nodes = nodes.map(|node| intern(&node.name)).collect();
    Some(Endpoint {
        address,
        ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        node,
        hint_nodes,
        hint_zones,
    })
}

/// The name of an endpoint below that of its Service.
fn hostname(i: usize, entry: &v1::Endpoint, context: &mut Context<'_>) -> Option<Arc<str>> {
    let name = entry.hostname.as_deref().filter(|name| context.options.names && !name.is_empty())?;
    if !is_label(name) {
        let message = format!("{name:?} cannot be in DNS: called by its address; use a-z, 0-9 and inner hyphens");
        context.problem(format!("endpoints[{i}].hostname"), message);
        return None;
    }
    Some(name.into())
}

/// Time of the change behind this version, milliseconds since 1970.
fn triggered(slice: &v1::EndpointSlice, context: &mut Context<'_>) -> Option<i64> {
    let text = slice.metadata.annotations.as_ref()?.get(TRIGGERED)?;
    if let Ok(time) = text.parse::<k8s_openapi::jiff::Timestamp>() {
        return Some(time.as_millisecond());
    }
    context.problem(
        format!("metadata.annotations.{TRIGGERED}"),
        format!("{text:?} is not a time: latency not measured; write it like 2006-01-02T15:04:05Z"),
    );
    None
}
