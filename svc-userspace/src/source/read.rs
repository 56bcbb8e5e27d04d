//! Reads one object from JSON in spite of fields that have the wrong type.
//!
//! The typed reader of an object fails as a whole at the first field it does not understand. Here such a field is
//! emptied, remembered as a [`Fault`], and the object is read again, so that the rest of it can be used. It knows nothing
//! of what fields mean: that is `convert`'s business.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::names::Names;
use crate::model::ObjectName;

/// A field that could not be read and was emptied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Path of the field, `spec.ports[2].port`.
    pub(crate) path: String,
    /// What the reader said.
    pub(crate) message: String,
}

/// What could be read of an object.
#[derive(Clone, Debug)]
pub(crate) struct Read<K> {
    /// `metadata.namespace`, empty if it has none.
    pub(crate) namespace: String,
    /// `metadata.name`, empty if it cannot be read.
    pub(crate) name: String,
    /// `metadata.resourceVersion`.
    pub(crate) resource_version: Option<String>,
    /// The object without its faults; `None`: nothing of it makes sense.
    pub(crate) object: Option<K>,
    /// Fields that were emptied.
    pub(crate) faults: Vec<Fault>,
}

impl<K> Read<K> {
    /// Name of the object; a namespaced object without a namespace is in `default`.
    pub(crate) fn object_name(&self, namespaced: bool, names: &mut Names) -> Option<ObjectName> {
        if self.name.is_empty() {
            return None;
        }
        let namespace = match self.namespace.as_str() {
            _ if !namespaced => "",
            "" => "default",
            namespace => namespace,
        };
        Some(ObjectName::new(names.intern(namespace), self.name.as_str()))
    }
}

/// An object with more unreadable fields than this is not read at all.
const MAX_FAULTS: usize = 32;

/// Values a bad field is replaced by, one after another, until the reader is content.
const EMPTY: [fn() -> Value; 4] = [
    || Value::Null,
    || Value::String(String::new()),
    || Value::Object(serde_json::Map::new()),
    || Value::Array(Vec::new()),
];

/// Reads an object.
pub(crate) fn read<K: DeserializeOwned>(mut value: Value) -> Read<K> {
    let text = |field: &str| Some(value.get("metadata")?.get(field)?.as_str()?.to_owned());
    let mut result = Read {
        namespace: text("namespace").unwrap_or_default(),
        name: text("name").unwrap_or_default(),
        resource_version: text("resourceVersion"),
        object: None,
        faults: Vec::new(),
    };
    if let Some(object) = value.as_object_mut() {
        // The kind is known here; lists leave both away.
        object.remove("apiVersion");
        object.remove("kind");
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    result.object = K::deserialize(&value).ok().or_else(|| repair(&mut value, &mut result.faults));
    result
}

/// Empties one bad field after another until the object can be read.
fn repair<K: DeserializeOwned>(value: &mut Value, faults: &mut Vec<Fault>) -> Option<K> {
    let mut attempts: HashMap<String, usize> = HashMap::new();
    while faults.len() < MAX_FAULTS {
        let error = match serde_path_to_error::deserialize::<_, K>(&*value) {
            Ok(object) => return Some(object),
            Err(error) => error,
        };
        let path = error.path();
        // A field that no empty value fits takes its parent with it.
        let mut depth = path.iter().count();
        loop {
            let name = render(path, depth);
            let attempt = attempts.entry(name.clone()).or_default();
            if let Some(empty) = EMPTY.get(*attempt)
                && depth > 0
            {
                *attempt += 1;
                if *attempt == 1 {
                    faults.push(Fault { path: name, message: error.inner().to_string() });
                }
                *locate(value, path, depth)? = empty();
                break;
            }
            if depth == 0 {
                faults.push(Fault { path: String::new(), message: error.inner().to_string() });
                return None;
            }
            depth -= 1;
        }
    }
    None
}

/// The first `depth` segments of a path as people write it.
fn render(path: &Path, depth: usize) -> String {
    let mut text = String::new();
    for segment in path.iter().take(depth) {
        match segment {
            Segment::Seq { index } => text.extend(["[", &index.to_string(), "]"]),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
            Segment::Unknown => text.push('?'),
        }
    }
    text
}

/// The value at the first `depth` segments of a path.
fn locate<'v>(value: &'v mut Value, path: &Path, depth: usize) -> Option<&'v mut Value> {
    path.iter().take(depth).try_fold(value, |value, segment| match segment {
        Segment::Seq { index } => value.get_mut(*index),
        Segment::Map { key } | Segment::Enum { variant: key } => value.get_mut(key.as_str()),
        Segment::Unknown => None,
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bad_field_is_emptied_and_the_rest_is_read() {
        let read: Read<Service> = read(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "a", "namespace": "b", "labels": {"x": 5}, "creationTimestamp": "yesterday"},
            "spec": {"ports": [{"port": 80}, {"port": "eighty"}, "junk"], "clusterIPs": [7, "10.0.0.1"]},
        }));
        let spec = read.object.expect("readable").spec.expect("spec");
        assert_eq!(spec.ports.expect("ports").len(), 3, "indices stay what they were");
        assert_eq!(spec.cluster_ips.expect("addresses"), ["", "10.0.0.1"]);
        let paths: Vec<_> = read.faults.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "metadata.creationTimestamp",
                "metadata.labels.x",
                "spec.clusterIPs[0]",
                "spec.ports[1].port",
                "spec.ports[2]"
            ]
        );
    }

    #[test]
    fn junk_is_not_an_object() {
        for junk in [json!(5), json!("x"), json!(null), json!([1])] {
            let read: Read<EndpointSlice> = read(junk.clone());
            assert!(read.object.is_none(), "{junk}");
            assert_eq!(read.faults.len(), 1, "{junk}");
        }
    }

    #[test]
    fn too_many_faults_are_too_many() {
        let endpoints: Vec<Value> = (0..5000).map(|i| json!({"addresses": [i]})).collect();
        let read: Read<EndpointSlice> = read(json!({"addressType": "IPv4", "endpoints": endpoints}));
        assert!(read.object.is_none());
        assert_eq!(read.faults.len(), MAX_FAULTS);
    }
}
