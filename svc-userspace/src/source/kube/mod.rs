//! Objects from the Kubernetes API: Services, EndpointSlices and the own Node, listed and watched.
//!
//! An API server that cannot be reached, answers nonsense or forgets its history costs time, never an object: the last
//! known state stays in force until a complete list says otherwise.

pub(crate) mod balanced;
mod client;
mod errors;
mod follow;
mod pause;
mod tolerant;
mod tracker;

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use ::kube::runtime::watcher;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use tokio::sync::mpsc;

pub(crate) use self::client::chain;
pub use self::client::{client, connection};
use super::{SourceError, SourceOptions, names::Names};
use crate::model::Change;

/// Objects asked for at once: a page is the only time when whole objects are in memory.
const PAGE_SIZE: u32 = 250;

/// What the watches of one source share.
struct Shared {
    options: SourceOptions,
    names: Mutex<Names>,
    changes: mpsc::Sender<Change>,
    /// Lists still missing before the first sync is complete.
    unlisted: AtomicUsize,
}

/// Nobody receives changes any more.
pub(crate) struct Closed;

impl Shared {
    async fn send(&self, change: Change) -> Result<(), Closed> {
        self.changes.send(change).await.map_err(|_| Closed)
    }

    /// One of the lists that `Synced` waits for is complete.
    async fn listed(&self) -> Result<(), Closed> {
        if self.unlisted.fetch_sub(1, Ordering::AcqRel) == 1 {
            tracing::info!("Services and EndpointSlices have been listed");
            self.send(Change::Synced).await?;
        }
        Ok(())
    }

    fn names(&self) -> std::sync::MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the API server and reports changes; returns when the receiver is gone.
pub async fn run(
    client: ::kube::Client,
    options: SourceOptions,
    changes: mpsc::Sender<Change>,
) -> Result<(), SourceError> {
    let base = watcher::Config::default().page_size(PAGE_SIZE);
    let (services, slices) = if options.names {
        (base.clone(), base.clone())
    } else {
        (
            base.clone().labels("!service.kubernetes.io/service-proxy-name").fields("spec.clusterIP!=None"),
            base.clone().labels("!service.kubernetes.io/headless"),
        )
    };
    let node = base.fields(&format!("metadata.name={}", options.node_name));
    let closed = changes.clone();
    let shared = Shared { options, names: Mutex::default(), changes, unlisted: AtomicUsize::new(2) };
    tokio::select! {
        () = closed.closed() => {}
        // Each of these ends only when the receiver is gone.
        _ = futures::future::join3(
            follow::follow::<Service>(&client, services, &shared),
            follow::follow::<EndpointSlice>(&client, slices, &shared),
            follow::follow::<Node>(&client, node, &shared),
        ) => {}
    }
    Ok(())
}
