//! An object that can always be read.
//!
//! kube's watcher fails a whole list or loses a watch event if one object has a field of the wrong type. This wrapper
//! reads any JSON and keeps what is wrong for the report.

use std::borrow::Cow;

use ::kube::Resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use crate::source::read::{Read, read};

/// An object of type `K`, as far as it could be read.
#[derive(Clone, Debug)]
pub(crate) struct Tolerant<K> {
    metadata: ObjectMeta,
    pub(super) read: Read<K>,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Tolerant<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read: Read<K> = read(Value::deserialize(deserializer)?);
        // The watcher only looks at the version.
        let metadata = ObjectMeta { resource_version: read.resource_version.clone(), ..ObjectMeta::default() };
        Ok(Self { metadata, read })
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Tolerant<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
