//! News of Services as Events on them, the newest of each, so many a second and no more.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::mpsc;

use super::{counters::Counters, requests::News};
use crate::{balancer::owners::Refusal, model::ObjectName};

/// Events that may be sent at once, and the time after which there may be another one.
const BURST: u32 = 50;
const PAUSE: Duration = Duration::from_millis(200);
/// An Event that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// A Service, its uid, and its news.
pub(super) type Report = (ObjectName, String, News);

/// Sends Events until nobody has news any more.
pub(super) async fn run(
    client: Client,
    node: Arc<str>,
    mut reports: mpsc::UnboundedReceiver<Report>,
    counters: Arc<Counters>,
) {
    let reporter = Reporter { controller: "svc/pools".to_owned(), instance: Some(node.to_string()) };
    let recorder = Recorder::new(client, reporter);
    // A Service at a time has one: an older one is no news any more.
    let mut waiting: BTreeMap<ObjectName, (String, News)> = BTreeMap::new();
    let mut bucket = Bucket { left: BURST, since: Instant::now() };
    let mut complained = false;
    loop {
        if waiting.is_empty() {
            let Some((name, uid, news)) = reports.recv().await else { return };
            waiting.insert(name, (uid, news));
        }
        while let Ok((name, uid, news)) = reports.try_recv() {
            waiting.insert(name, (uid, news));
        }
        let pause = bucket.take(Instant::now());
        if !pause.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                report = reports.recv() => match report {
                    Some((name, uid, news)) => drop(waiting.insert(name, (uid, news))),
                    None => return,
                },
            }
            continue;
        }
        let Some((name, (uid, news))) = waiting.pop_first() else { continue };
        let event = event(&news);
        let text = event.note.as_deref().unwrap_or_default();
        match news {
            News::Refused(_) => tracing::warn!("Service {name}: {text}"),
            _ => tracing::info!("Service {name}: {text}"),
        }
        let sent = tokio::time::timeout(PATIENCE, recorder.publish(&event, &reference(&name, uid))).await;
        let error = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer for {} s", PATIENCE.as_secs())),
        };
        counters.event(error.is_none());
        if let Some(error) = &error
            && !complained
        {
            tracing::warn!(
                "cannot send Events: {error}: allow the verbs create and patch on events of events.k8s.io in the agent's ClusterRole"
            );
        }
        complained = error.is_some();
    }
}

fn reference(name: &ObjectName, uid: String) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some(name.namespace.to_string()),
        name: Some(name.name.to_string()),
        uid: Some(uid),
        ..ObjectReference::default()
    }
}

fn event(news: &News) -> Event {
    let list = |addresses: &[std::net::IpAddr]| crate::source::given_message(addresses);
    let (type_, reason, note) = match news {
        News::Given(addresses) => (EventType::Normal, "AddressesGiven", format!("{} given", list(addresses))),
        News::TakenBack(addresses) => {
            (EventType::Normal, "AddressesTakenBack", format!("{} taken back", list(addresses)))
        }
        News::Refused(refusal) => {
            let reason = match refusal {
                Refusal::NoPool => "NoPool",
                Refusal::Exhausted { .. } => "PoolsExhausted",
                Refusal::Foreign(_) => "AddressNotInPools",
                Refusal::Taken { .. } => "AddressTaken",
                Refusal::Nonsense(_) | Refusal::Surplus(_) => "BadRequest",
            };
            (EventType::Warning, reason, format!("no address is given: {refusal}"))
        }
    };
    Event { type_, reason: reason.to_owned(), note: Some(note), action: "GiveAddresses".to_owned(), secondary: None }
}

/// Events that may still be sent.
struct Bucket {
    left: u32,
    since: Instant,
}

impl Bucket {
    /// Takes one out, or says how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        let full = now.saturating_duration_since(self.since).as_millis() / PAUSE.as_millis();
        let new = u32::try_from(full).unwrap_or(u32::MAX);
        if new > 0 {
            self.left = self.left.saturating_add(new).min(BURST);
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Duration::ZERO
            }
            None => PAUSE.saturating_sub(now.saturating_duration_since(self.since)).max(Duration::from_millis(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_then_one_after_another() {
        let start = Instant::now();
        let mut bucket = Bucket { left: BURST, since: start };
        let at_once = (0..200).filter(|_| bucket.take(start).is_zero()).count();
        assert_eq!(at_once, BURST as usize);
        assert_eq!(bucket.take(start), PAUSE);
        assert!(bucket.take(start + PAUSE).is_zero());
        assert!(!bucket.take(start + PAUSE).is_zero());
        let later = start + PAUSE * 1000;
        assert_eq!((0..200).filter(|_| bucket.take(later).is_zero()).count(), BURST as usize);
    }
}
