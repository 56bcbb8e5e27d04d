//! Requests that change objects: create, replace and JSON merge patches, of an object or of its status, with the
//! preconditions of the real server (`metadata.resourceVersion`, `metadata.uid`). It validates nothing else.

use axum::{
    Json,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    Api, Resource, State,
    http::{failure, trouble},
};

/// What is to be changed.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) resource: Resource,
    /// "" for what has none.
    pub(super) namespace: String,
    pub(super) name: String,
}

enum Refusal {
    Missing,
    Exists,
    Conflict(&'static str),
}

impl Target {
    fn refuse(&self, refusal: &Refusal) -> Response {
        let Self { resource, name, .. } = self;
        let kind = resource.kind();
        match refusal {
            Refusal::Missing => failure(404, "NotFound", &format!("{kind} {name:?} not found")),
            Refusal::Exists => failure(409, "AlreadyExists", &format!("{kind} {name:?} already exists")),
            Refusal::Conflict(what) => {
                failure(409, "Conflict", &format!("Operation cannot be fulfilled on {kind} {name:?}: {what}"))
            }
        }
    }

    /// The object as it is, if it has the version and uid that the change asks for.
    fn found(&self, state: &State, change: &Value) -> Result<Value, Refusal> {
        let found = state.store.get(self.resource, &self.namespace, &self.name).ok_or(Refusal::Missing)?;
        for (field, what) in [("resourceVersion", "the object has been modified"), ("uid", "it has another uid")] {
            let wanted = &change["metadata"][field];
            if !wanted.is_null() && *wanted != found["metadata"][field] {
                return Err(Refusal::Conflict(what));
            }
        }
        Ok(found)
    }

    fn put(&self, state: &mut State, object: Value) -> Value {
        state.store.put(self.resource, &self.namespace, &self.name, object);
        state.writes.push((self.resource, self.namespace.clone(), self.name.clone()));
        state.store.get(self.resource, &self.namespace, &self.name).unwrap_or_default()
    }

    /// Does it, and answers, or loses the answer.
    async fn write(
        &self,
        api: &Api,
        code: StatusCode,
        action: impl FnOnce(&mut State) -> Result<Value, Refusal>,
    ) -> Response {
        if let Some(trouble) = trouble(api).await {
            return trouble;
        }
        let (result, lost) = api.change(|state| (action(state), state.faults.take_loss(self.resource)));
        match result {
            _ if lost => failure(504, "Timeout", "the answer was lost on demand"),
            Ok(object) => (code, Json(object)).into_response(),
            Err(refusal) => self.refuse(&refusal),
        }
    }
}

/// Creates an object; its name is in its metadata.
pub(super) async fn create(api: Api, resource: Resource, namespace: String, mut object: Value) -> Response {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let target = Target { resource, namespace, name };
    let action = |state: &mut State| {
        if state.store.get(target.resource, &target.namespace, &target.name).is_some() {
            return Err(Refusal::Exists);
        }
        object["metadata"]["uid"] = json!(format!("uid-{}", state.store.version()));
        Ok(target.put(state, object))
    };
    target.write(&api, StatusCode::CREATED, action).await
}

/// Replaces an object.
pub(super) async fn replace(api: Api, target: Target, mut object: Value) -> Response {
    let action = |state: &mut State| {
        let found = target.found(state, &object)?;
        object["metadata"]["uid"] = found["metadata"]["uid"].clone();
        Ok(target.put(state, object))
    };
    target.write(&api, StatusCode::OK, action).await
}

/// Patches an object, or only its status.
pub(super) async fn patch(api: Api, target: Target, status: bool, headers: &HeaderMap, patch: Value) -> Response {
    if headers.get(CONTENT_TYPE).is_none_or(|kind| kind != "application/merge-patch+json") {
        return failure(415, "UnsupportedMediaType", "this server knows application/merge-patch+json only");
    }
    let action = |state: &mut State| {
        let mut object = target.found(state, &patch)?;
        let patch = if status { json!({"status": patch["status"]}) } else { patch };
        merge(&mut object, &patch);
        Ok(target.put(state, object))
    };
    target.write(&api, StatusCode::OK, action).await
}

/// A JSON merge patch, RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(object) = target.as_object_mut() else { return };
    for (name, value) in fields {
        if value.is_null() {
            object.remove(name);
        } else {
            merge(object.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_patch_sets_removes_and_replaces_lists() {
        let mut object = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        merge(&mut object, &json!({"a": {"b": null, "c": [3], "e": {"f": null, "g": 1}}}));
        assert_eq!(object, json!({"a": {"c": [3], "e": {"g": 1}}, "d": 1}));
    }
}
