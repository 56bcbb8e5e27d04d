//! What an error of a watch means: what people should do, and whether the objects have to be listed anew.

use ::kube::{Error, runtime::watcher};

use super::client::chain;

/// HTTP status 410: the server no longer knows the history that was asked for.
const GONE: u16 = 410;

/// The error of the client inside an error of a watch.
fn inner(error: &watcher::Error) -> Option<&Error> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => Some(error),
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => None,
    }
}

/// HTTP status the API server answered with.
fn status(error: &watcher::Error) -> Option<u16> {
    match (error, inner(error)) {
        (watcher::Error::WatchError(status), _) | (_, Some(Error::Api(status))) => Some(status.code),
        _ => None,
    }
}

/// Whether the watch cannot continue where it was.
///
/// kube's watcher lists anew by itself for 410 within a watch. It would ask for the same version for ever if the server
/// answers 410 when the watch starts, and lose an event that is not JSON.
pub(super) fn must_relist(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(_) => status(error) == Some(GONE),
        watcher::Error::WatchFailed(error) => matches!(error, Error::SerdeError(_) | Error::Api(_)),
        _ => false,
    }
}

/// Whether the error belongs to normal operation.
pub(super) fn is_routine(error: &watcher::Error) -> bool {
    status(error) == Some(GONE)
}

/// One line: what happened, and what to do.
pub(super) fn explain(error: &watcher::Error, plural: &str, group: &str) -> String {
    let what = match error {
        watcher::Error::InitialListFailed(_) => "cannot list",
        watcher::Error::WatchStartFailed(_) => "cannot watch",
        _ => "watch failed",
    };
    let group = if group.is_empty() { "the core API group" } else { group };
    let remedy = match status(error) {
        Some(401) => "renew the credentials in the kubeconfig or the service account".to_owned(),
        Some(403) => format!("allow the verbs list and watch on {plural} of {group} in the agent's ClusterRole"),
        Some(404) => format!("the API server does not serve {plural} of {group}: check its address and version"),
        Some(GONE) => "the history is gone: listing anew".to_owned(),
        Some(429) => "the API server is busy".to_owned(),
        Some(500..) => "look at the API server's own log".to_owned(),
        _ => match inner(error) {
            Some(Error::Service(_) | Error::HyperError(_)) => {
                "check that the API server is up and that this node can reach it".to_owned()
            }
            _ => "an event was not understood: listing anew".to_owned(),
        },
    };
    format!("{what} {plural}: {}: {remedy}; retrying, the last known state stays in force", cause(error))
}

fn cause(error: &watcher::Error) -> String {
    match (error, inner(error)) {
        (watcher::Error::WatchError(status), _) | (_, Some(Error::Api(status))) => {
            format!("{} {}: {}", status.code, status.reason, status.message)
        }
        (_, Some(Error::Service(error))) => chain(error.as_ref()),
        (_, Some(error)) => chain(error),
        (error, None) => error.to_string(),
    }
}

/// Why a list was given up.
pub(super) fn stalled(plural: &str, seconds: u64) -> String {
    format!(
        "cannot list {plural}: no answer for {seconds} s: check the API server and the network to it; \
         retrying, the last known state stays in force"
    )
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use k8s_openapi::api::core::v1::Service;
    use svc_lab::api::{Api, Server};

    use super::*;

    /// What the first list says when the API server fails as `prepare` makes it.
    async fn message(prepare: impl FnOnce(&Api)) -> (String, String) {
        let api = Api::new();
        prepare(&api);
        let server = Server::start(&api, "127.0.0.1:0".parse().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        server.write_kubeconfig(&path).unwrap();
        let client = super::super::client(Some(&path)).await.unwrap();
        let services = ::kube::Api::<Service>::all(client);
        let events = watcher::watcher(services, watcher::Config::default());
        let error = events.filter_map(async |event| event.err()).boxed().next().await.unwrap();
        (explain(&error, "services", ""), format!("http://{}", server.address()))
    }

    #[tokio::test]
    async fn an_error_names_the_server_and_the_remedy() {
        let (text, url) = message(|api| api.refuse(true)).await;
        assert!(text.starts_with(&format!("cannot list services: {url}")), "{text}");
        assert!(text.contains("check that the API server is up") && !text.contains('\n'), "{text}");
        let (text, _) = message(|api| api.fail(1, 403)).await;
        assert!(text.contains("allow the verbs list and watch on services"), "{text}");
        let (text, _) = message(|api| api.fail(1, 500)).await;
        assert!(text.contains("500") && text.contains("the API server's own log"), "{text}");
    }
}
