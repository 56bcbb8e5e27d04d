//! One kind of object, listed and watched for ever.

use std::{fmt::Debug, hash::Hash, pin::pin, time::Duration};

use ::kube::{
    Api, Client, Resource,
    runtime::watcher::{self, Event},
};
use futures::StreamExt;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use serde::de::DeserializeOwned;

use super::{Closed, Shared, errors, pause::Pause, tolerant::Tolerant, tracker::Tracker};
use crate::model::{self, Change, ObjectName};
use crate::source::convert::{AnyService, Convert, convert};

/// A list whose next page takes longer than this is asked for again.
const LIST_TIMEOUT: Duration = Duration::from_mins(1);

/// A kind that is followed.
pub(super) trait Followed:
    Convert<Model: Hash + Send> + Resource<DynamicType = ()> + Clone + Debug + Send + 'static
{
    /// Whether the first sync waits for its list.
    const SYNC: bool;

    /// The change that reports an object of this kind.
    fn change(name: ObjectName, object: Option<Box<Self::Model>>) -> Change;
}

impl Followed for Service {
    const SYNC: bool = true;

    fn change(name: ObjectName, object: Option<Box<AnyService>>) -> Change {
        match object.map(|object| *object) {
            Some(AnyService::Balanced(service)) => Change::Service(name, Some(service)),
            Some(AnyService::Unbalanced(service)) => Change::Unbalanced(name, Box::new(service)),
            None => Change::Service(name, None),
        }
    }
}

impl Followed for EndpointSlice {
    const SYNC: bool = true;

    fn change(name: ObjectName, object: Option<Box<model::Slice>>) -> Change {
        Change::Slice(name, object)
    }
}

impl Followed for Node {
    const SYNC: bool = false;

    fn change(_: ObjectName, object: Option<Box<model::Node>>) -> Change {
        Change::Node(object)
    }
}

/// Follows one kind until nobody listens.
pub(super) async fn follow<K: Followed>(client: &Client, config: watcher::Config, shared: &Shared) -> Closed {
    let follower =
        Follower::<K> { shared, tracker: Tracker::default(), synced: !K::SYNC, kind: std::marker::PhantomData };
    watch(client, config, follower).await
}

/// Somebody who takes the events of a watch.
pub(super) trait Take<K>: Send {
    /// Takes one.
    fn take(&mut self, event: Event<Tolerant<K>>) -> impl Future<Output = Result<(), Closed>> + Send;
}

/// Lists and watches one kind until nobody takes the events.
pub(super) async fn watch<K>(client: &Client, config: watcher::Config, mut taker: impl Take<K>) -> Closed
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
{
    let mut pause = Pause::default();
    loop {
        let mut events = pin!(watcher::watcher(Api::<Tolerant<K>>::all(client.clone()), config.clone()));
        let mut listing = true;
        loop {
            let next =
                if listing { tokio::time::timeout(LIST_TIMEOUT, events.next()).await } else { Ok(events.next().await) };
            let Ok(next) = next else {
                tracing::warn!("{}", errors::stalled(&K::plural(&()), LIST_TIMEOUT.as_secs()));
                break;
            };
            match next {
                None => break,
                Some(Ok(event)) => {
                    listing = match event {
                        Event::Init => true,
                        Event::InitDone => false,
                        _ => listing,
                    };
                    if !listing {
                        pause.reset();
                    }
                    if let Err(closed) = taker.take(event).await {
                        return closed;
                    }
                }
                Some(Err(error)) => {
                    let message = errors::explain(&error, &K::plural(&()), &K::group(&()));
                    if errors::is_routine(&error) {
                        tracing::info!("{message}");
                    } else {
                        tracing::warn!("{message}");
                    }
                    let relist = errors::must_relist(&error);
                    let listing = matches!(error, watcher::Error::InitialListFailed(_));
                    drop(error);
                    tokio::time::sleep(pause.after_failure(listing)).await;
                    if relist {
                        break;
                    }
                }
            }
        }
    }
}

struct Follower<'a, K> {
    shared: &'a Shared,
    tracker: Tracker,
    /// The first list was complete.
    synced: bool,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K: Followed> Take<K> for Follower<'_, K> {
    async fn take(&mut self, event: Event<Tolerant<K>>) -> Result<(), Closed> {
        match event {
            Event::Init => self.tracker.begin(),
            Event::InitApply(object) | Event::Apply(object) => {
                let converted = convert(object.read, &self.shared.options, &mut self.shared.names());
                let Some(report) = self.tracker.applied(converted) else { return Ok(()) };
                if let Some((name, object)) = report.object {
                    self.shared.send(K::change(name, object)).await?;
                }
                for problem in report.problems {
                    tracing::warn!("{problem}");
                    self.shared.send(Change::Problem(problem)).await?;
                }
            }
            Event::Delete(object) => {
                let Some(name) = object.read.object_name(K::NAMESPACED, &mut self.shared.names()) else {
                    return Ok(());
                };
                if self.tracker.deleted(&name) {
                    self.shared.send(K::change(name, None)).await?;
                }
            }
            Event::InitDone => self.list_complete().await?,
        }
        Ok(())
    }
}

impl<K: Followed> Follower<'_, K> {
    async fn list_complete(&mut self) -> Result<(), Closed> {
        for name in self.tracker.finish() {
            self.shared.send(K::change(name, None)).await?;
        }
        if !K::SYNC && self.tracker.is_empty() {
            tracing::warn!("Node {}: not found: check --node-name", self.shared.options.node_name);
        }
        if !self.synced {
            self.synced = true;
            self.shared.listed().await?;
        }
        Ok(())
    }
}
