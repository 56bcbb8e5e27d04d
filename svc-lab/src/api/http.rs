//! Requests and answers.

use std::{collections::HashMap, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State as Extract},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use serde_json::{Value, json};

use super::{
    Api, Gone, Resource, State, Verb,
    selector::Selector,
    store::Page,
    stream::{self, Request},
    write::{self, Target},
};

type Parameters = HashMap<String, String>;

/// `timeoutSeconds` of a watch that names none.
const WATCH_SECONDS: u64 = 1800;

pub(super) fn router(api: Api) -> Router {
    let mut router = Router::new();
    for resource in Resource::STORED {
        let (group, plural) = match resource {
            Resource::Services => ("/api/v1", "services"),
            Resource::EndpointSlices => ("/apis/discovery.k8s.io/v1", "endpointslices"),
            Resource::Nodes => ("/api/v1", "nodes"),
            Resource::Leases => ("/apis/coordination.k8s.io/v1", "leases"),
        };
        let collection = move |Extract(api): Extract<Api>, Query(parameters): Query<Parameters>| {
            respond(api, resource, String::new(), parameters)
        };
        router = router.route(&format!("{group}/{plural}"), get(collection));
        if resource.is_namespaced() {
            let collection = move |Extract(api): Extract<Api>,
                                   Path(namespace): Path<String>,
                                   Query(parameters): Query<Parameters>| {
                respond(api, resource, namespace, parameters)
            };
            let new = move |Extract(api): Extract<Api>, Path(namespace): Path<String>, Json(new): Json<Value>| {
                write::create(api, resource, namespace, new)
            };
            let path = format!("{group}/namespaces/{{namespace}}/{plural}");
            router = router
                .route(&path, get(collection).post(new))
                .route(&format!("{path}/{{name}}"), one(resource, false))
                .route(&format!("{path}/{{name}}/status"), one(resource, true));
        } else {
            let object =
                move |Extract(api): Extract<Api>, Path(name): Path<String>| object(api, resource, String::new(), name);
            router = router.route(&format!("{group}/{plural}/{{name}}"), get(object));
        }
    }
    for group in ["/api/v1", "/apis/events.k8s.io/v1"] {
        router = router
            .route(&format!("{group}/namespaces/{{namespace}}/events"), post(event))
            .route(&format!("{group}/namespaces/{{namespace}}/events/{{name}}"), post(event).patch(event).put(event));
    }
    router
        .route("/version", get(|| async { Json(json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0-lab"})) }))
        .route("/readyz", get(|| async { "ok" }))
        .fallback(|| async { failure(404, "NotFound", "the server could not find the requested resource") })
        .with_state(api)
}

/// What can be done to an object of a namespace, or to its status.
fn one(resource: Resource, status: bool) -> MethodRouter<Api> {
    let target = move |(namespace, name)| Target { resource, namespace, name };
    let get = get(move |Extract(api): Extract<Api>, Path((namespace, name)): Path<(String, String)>| {
        object(api, resource, namespace, name)
    });
    let get = get.put(move |Extract(api): Extract<Api>, Path(path): Path<(String, String)>, Json(new): Json<Value>| {
        write::replace(api, target(path), new)
    });
    get.patch(
        async move |Extract(api): Extract<Api>, Path(path): Path<(String, String)>, headers: HeaderMap, body: Bytes| {
            match serde_json::from_slice(&body) {
                Ok(patch) => write::patch(api, target(path), status, &headers, patch).await,
                Err(error) => failure(400, "BadRequest", &error.to_string()),
            }
        },
    )
}

/// An object of kind `Status`.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

pub(super) fn failure(code: u16, reason: &str, message: &str) -> Response {
    let http = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (http, Json(status(code, reason, message))).into_response()
}

/// The failure that has been asked for, after the delay that has been asked for.
pub(super) async fn trouble(api: &Api) -> Option<Response> {
    let delay = api.state().faults.delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let code = api.change(|state| state.faults.take_failure())?;
    Some(failure(code, "InternalError", "failed on demand"))
}

/// A list or a watch.
async fn respond(api: Api, resource: Resource, namespace: String, parameters: Parameters) -> Response {
    let watch = parameters.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
    let verb = if watch { Verb::Watch } else { Verb::List };
    api.change(|state| {
        *state.counters.requests.entry((resource, verb)).or_default() += 1;
        state.counters.queries.insert((resource, verb), parameters.clone());
    });
    api.wait(|api| !api.state().faults.held.contains(&resource)).await;
    if let Some(trouble) = trouble(&api).await {
        return trouble;
    }
    let text = |name: &str| parameters.get(name).map(String::as_str);
    let selector = match Selector::parse(text("labelSelector"), text("fieldSelector")) {
        Ok(selector) => selector,
        Err(message) => return failure(400, "BadRequest", &message),
    };
    if watch {
        start(&api, resource, namespace, selector, &parameters)
    } else {
        list(&api, resource, &namespace, &selector, &parameters)
    }
}

fn list(api: &Api, resource: Resource, namespace: &str, selector: &Selector, parameters: &Parameters) -> Response {
    let limit = parameters.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(0);
    let page = {
        let store = &mut api.state().store;
        if let Some(token) = parameters.get("continue").filter(|token| !token.is_empty()) {
            store.page(token, limit)
        } else {
            let items = store.select(resource, namespace, selector);
            Some(store.list(items, limit))
        }
    };
    let Some(Page { version, items, next }) = page else {
        return failure(410, "Expired", "The provided continue parameter is too old");
    };
    let items: Vec<Value> = items.iter().map(|item| as_item(item)).collect();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some(token) = next {
        metadata["continue"] = json!(token);
    }
    let kind = format!("{}List", resource.kind());
    Json(json!({"kind": kind, "apiVersion": resource.api_version(), "metadata": metadata, "items": items}))
        .into_response()
}

/// Items of a list have no kind of their own.
fn as_item(object: &Value) -> Value {
    let mut item = object.clone();
    if let Some(fields) = item.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    item
}

fn start(api: &Api, resource: Resource, namespace: String, selector: Selector, parameters: &Parameters) -> Response {
    let flag = |name: &str| parameters.get(name).is_some_and(|flag| flag == "true" || flag == "1");
    let seconds = parameters.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(WATCH_SECONDS);
    let request = Request {
        resource,
        namespace,
        selector,
        bookmarks: flag("allowWatchBookmarks"),
        timeout: Duration::from_secs(seconds),
    };
    let version = parameters.get("resourceVersion").map_or("", String::as_str);
    let body = {
        let mut state = api.state();
        let (first, cursor) = match begin(&mut state, &request, version, flag("sendInitialEvents")) {
            Ok(begin) => begin,
            Err(refusal) => return *refusal,
        };
        Body::from_stream(stream::stream(api, &mut state, request, first, cursor))
    };
    api.change(|_| ());
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Lines a watch begins with, and the record it goes on with.
fn begin(
    state: &mut State,
    request: &Request,
    version: &str,
    initial: bool,
) -> Result<(Vec<String>, u64), Box<Response>> {
    let refuse = |code, reason, message: &str| Box::new(failure(code, reason, message));
    let State { store, faults, .. } = state;
    match faults.take_gone(request.resource) {
        Some(Gone::Status) => return Err(refuse(410, "Expired", "too old resource version, on demand")),
        Some(Gone::Event) => return Ok((vec![stream::gone_line(store.version())], stream::END)),
        None => {}
    }
    if initial || version.is_empty() || version == "0" {
        let objects = store.select(request.resource, &request.namespace, &request.selector);
        let mut lines: Vec<String> = objects.iter().map(|object| stream::line("ADDED", object)).collect();
        if initial && request.bookmarks {
            lines.push(stream::bookmark_line(request.resource, store.version(), true));
        }
        return Ok((lines, store.end()));
    }
    let Ok(version) = version.parse() else {
        return Err(refuse(400, "BadRequest", "resourceVersion is not a number"));
    };
    match store.cursor(version) {
        Some(cursor) => Ok((Vec::new(), cursor)),
        None => Ok((vec![stream::gone_line(store.version())], stream::END)),
    }
}

async fn object(api: Api, resource: Resource, namespace: String, name: String) -> Response {
    if let Some(trouble) = trouble(&api).await {
        return trouble;
    }
    match api.get(resource, &namespace, &name) {
        Some(object) => Json(object).into_response(),
        None => failure(404, "NotFound", &format!("{} {name:?} not found", resource.kind())),
    }
}

/// Records an event.
async fn event(Extract(api): Extract<Api>, method: Method, body: Bytes) -> Response {
    if let Some(trouble) = trouble(&api).await {
        return trouble;
    }
    let event: Value = match serde_json::from_slice(&body) {
        Ok(event) => event,
        Err(error) => return failure(400, "BadRequest", &error.to_string()),
    };
    api.change(|state| state.events.push(event.clone()));
    let code = if method == Method::POST { StatusCode::CREATED } else { StatusCode::OK };
    (code, Json(event)).into_response()
}
