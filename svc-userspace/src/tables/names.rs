//! Between a port's key and its entry in SERVICES, in both directions.

use svc_common::{ServiceName, service::NAME_LEN};

use crate::{
    compile::PortKey,
    model::{Family, ObjectName, Protocol},
};

/// The entry for a key; `None` if a name does not fit (longer than Kubernetes allows, or with a zero byte).
pub fn to_service_name(key: &PortKey) -> Option<Box<ServiceName>> {
    Some(Box::new(ServiceName {
        namespace: padded(&key.service.namespace)?,
        name: padded(&key.service.name)?,
        port_name: padded(&key.name)?,
        port: key.port,
        protocol: key.protocol.number(),
        version: match key.family {
            Family::V4 => 4,
            Family::V6 => 6,
        },
    }))
}

/// The key of an entry; `None` if it is not one that [`to_service_name`] makes.
pub fn to_port_key(name: &ServiceName) -> Option<PortKey> {
    let ServiceName { namespace, name, port_name, port, protocol, version } = name;
    let (namespace, name) = (text(namespace)?, text(name)?);
    if namespace.is_empty() || name.is_empty() {
        return None;
    }
    Some(PortKey {
        service: ObjectName::new(namespace, name),
        name: text(port_name)?.into(),
        protocol: Protocol::from_number(*protocol)?,
        port: *port,
        family: match version {
            4 => Family::V4,
            6 => Family::V6,
            _ => return None,
        },
    })
}

fn padded(text: &str) -> Option<[u8; NAME_LEN]> {
    let mut bytes = [0; NAME_LEN];
    if text.bytes().any(|byte| byte == 0) {
        return None;
    }
    bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(bytes)
}

fn text(bytes: &[u8; NAME_LEN]) -> Option<&str> {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
    if bytes[len..].iter().any(|byte| *byte != 0) {
        return None;
    }
    std::str::from_utf8(&bytes[..len]).ok()
}
