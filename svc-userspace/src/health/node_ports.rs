//! The servers of `healthCheckNodePort`: an external load balancer asks each node there whether it has an endpoint.
//!
//! One task owns all listeners and follows the Services and the node's addresses; answers come from shared counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use axum::{
    Router,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::{sync::watch, task::JoinHandle};

use super::{Health, server};
use crate::model::ObjectName;

/// What one Service's server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthPort {
    /// `spec.healthCheckNodePort`, *host order*.
    pub port: u16,
    /// Distinct addresses of local ready endpoints, in the one of the Service's families that has more of them.
    pub local_endpoints: usize,
}

#[derive(Debug, Serialize)]
struct Body<'a> {
    service: Name<'a>,
    #[serde(rename = "localEndpoints")]
    local_endpoints: usize,
    #[serde(rename = "serviceProxyHealthy")]
    service_proxy_healthy: bool,
}

#[derive(Debug, Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

type Counts = BTreeMap<u16, (ObjectName, usize)>;

/// The agent's end: tells the task what should be served.
#[derive(Debug)]
pub struct Handle {
    counts: Arc<RwLock<Counts>>,
    wanted: watch::Sender<BTreeSet<SocketAddr>>,
    last: (Vec<IpAddr>, BTreeMap<ObjectName, HealthPort>),
}

/// Starts the task; it ends when the handle is dropped. Must be called within a runtime.
pub fn start(health: Arc<Health>) -> Handle {
    let counts = Arc::new(RwLock::new(Counts::new()));
    let (wanted, receiver) = watch::channel(BTreeSet::new());
    tokio::spawn(follow(receiver, counts.clone(), health));
    Handle { counts, wanted, last: Default::default() }
}

impl Handle {
    /// Serves each of `ports` on each of `addresses`, and nothing else. Two Services with one port: the first by name.
    pub fn set(&mut self, addresses: &[IpAddr], ports: &BTreeMap<ObjectName, HealthPort>) {
        if self.last.0 == addresses && self.last.1 == *ports {
            return;
        }
        let mut counts = Counts::new();
        for (name, port) in ports {
            counts.entry(port.port).or_insert_with(|| (name.clone(), port.local_endpoints));
        }
        let sockets = |&port: &u16| addresses.iter().map(move |&address| SocketAddr::new(address, port));
        let wanted: BTreeSet<_> = counts.keys().flat_map(sockets).collect();
        *self.counts.write().unwrap_or_else(PoisonError::into_inner) = counts;
        self.wanted.send_if_modified(|current| {
            let changed = *current != wanted;
            *current = wanted;
            changed
        });
        self.last = (addresses.to_vec(), ports.clone());
    }
}

/// Listeners by address; dropping one closes it.
struct Listener(JoinHandle<()>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn follow(mut wanted: watch::Receiver<BTreeSet<SocketAddr>>, counts: Arc<RwLock<Counts>>, health: Arc<Health>) {
    let mut listeners: BTreeMap<SocketAddr, Listener> = BTreeMap::new();
    loop {
        let sockets = wanted.borrow_and_update().clone();
        listeners.retain(|socket, _| sockets.contains(socket));
        for socket in sockets {
            listeners.entry(socket).or_insert_with(|| {
                let router = router(socket.port(), counts.clone(), health.clone());
                Listener(tokio::spawn(
                    async move { match server::keep(socket, "healthCheckNodePort", router).await {} },
                ))
            });
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// Every path of one port.
fn router(port: u16, counts: Arc<RwLock<Counts>>, health: Arc<Health>) -> Router {
    Router::new().fallback(async move || {
        let found = counts.read().unwrap_or_else(PoisonError::into_inner).get(&port).cloned();
        match found {
            Some((name, local)) => answer(&name, local, health.report(Instant::now()).alive.is_ok()),
            // The port was given up between the connection and the request.
            None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    })
}

fn answer(name: &ObjectName, local_endpoints: usize, service_proxy_healthy: bool) -> Response {
    let service = Name { namespace: &name.namespace, name: &name.name };
    let body = Body { service, local_endpoints, service_proxy_healthy };
    let well = local_endpoints > 0 && service_proxy_healthy;
    let code = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (HeaderName::from_static("x-load-balancing-endpoint-weight"), local_endpoints.to_string()),
        // Kept-alive connections would outlive the port.
        (header::CONNECTION, "close".to_owned()),
    ];
    match serde_json::to_string(&body) {
        Ok(text) => (code, headers, text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
