//! Services for the writer of load-balancer addresses: all of them, listed and watched anew for each of its terms of office,
//! because what it decides rests on a list that was made after it was elected.

use ::kube::{
    Client,
    runtime::watcher::{self, Event},
};
use k8s_openapi::api::core::v1::Service;
use tokio::sync::mpsc;

use super::{
    Closed, PAGE_SIZE,
    follow::{Take, watch},
    tolerant::Tolerant,
};
use crate::{
    balancer::elected::view::Seen,
    model::{Asking, Claims, ObjectName},
    source::{
        SourceOptions,
        convert::{Balanced, Converted, Outcome, convert},
        names::Names,
        read::Read,
    },
};

/// A Service as the API gives it, whatever is wrong with it.
pub(crate) type Answer = Tolerant<Service>;

/// Reports all Services and their changes for as long as somebody listens.
pub(crate) async fn follow(client: Client, claims: Claims, seen: mpsc::Sender<Seen>) {
    let config = watcher::Config::default().page_size(PAGE_SIZE);
    tokio::select! {
        () = seen.closed() => {}
        Closed = watch::<Service>(&client, config, Reporter { claims, seen: seen.clone() }) => {}
    }
}

struct Reporter {
    claims: Claims,
    seen: mpsc::Sender<Seen>,
}

impl Take<Service> for Reporter {
    async fn take(&mut self, event: Event<Answer>) -> Result<(), Closed> {
        let seen = match event {
            Event::Init => Some(Seen::Begin),
            Event::InitDone => Some(Seen::End),
            Event::InitApply(object) | Event::Apply(object) => match read(object, self.claims) {
                (Some(name), Some(object)) => Some(Seen::Object(name, Box::new(object))),
                (name, _) => name.map(Seen::Unreadable),
            },
            Event::Delete(object) => read(object, self.claims).0.map(Seen::Gone),
        };
        match seen {
            Some(seen) => self.seen.send(seen).await.map_err(|_| Closed),
            None => Ok(()),
        }
    }
}

/// What the writer needs of a Service.
pub(crate) fn read(object: Answer, claims: Claims) -> (Option<ObjectName>, Option<Asking>) {
    // All of these are names and addresses that change often, and few of them are in use at any time: not interned.
    let options = SourceOptions { node_name: "".into(), external_ips: false, claims, names: false };
    let Read { namespace, name, resource_version, object, faults } = object.read;
    let read = Read { namespace, name, resource_version, object: object.map(Balanced), faults };
    let Converted { name, outcome, problems: _ } = convert::<Balanced>(read, &options, &mut Names::default());
    match outcome {
        Outcome::Use(object) => (name, Some(*object)),
        Outcome::Unused | Outcome::Unreadable => (name, None),
    }
}
