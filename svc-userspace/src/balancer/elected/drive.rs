//! The writer's hands: carries out what it asks for, and tells it what came of it. It decides nothing.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    counters::Counters,
    lease::{LeaseObject, Trouble},
    ledger::Versioned,
    report,
    requests::{Failure, Request, Timing},
    view::Seen,
    writer::Writer,
};
use crate::{
    balancer::pools::Pools,
    model::{Asking, Claims, GIVEN_CONDITION, ObjectName},
    source::{chain, given_message, kube::balanced},
};

/// Name of the Lease.
pub const LEASE: &str = "svc-pools";
/// A request without an answer is given up; it may be carried out nevertheless.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for the Lease to be given up at the end.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often metrics are brought up to date.
const LOOK: Duration = Duration::from_secs(1);
/// Lines of the watch that are taken in at once.
const LINES: usize = 256;

/// What the writer has to be told.
pub struct Options {
    /// Name of this node.
    pub node: Arc<str>,
    /// Namespace of the Lease.
    pub namespace: String,
    /// Who may ask.
    pub claims: Claims,
    /// The pools, as they are now and as they become.
    pub pools: watch::Receiver<Pools>,
}

/// A writer, or one who waits to become it.
pub struct Elected {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Elected {
    /// Ends it; if it is the writer, another one can take over at once.
    pub async fn resign(self) {
        if self.stop.send(()).is_ok()
            && let Err(error) = self.task.await
        {
            tracing::error!("the writer of load-balancer addresses ended: {error}");
        }
    }
}

/// Begins.
pub fn start(client: Client, options: Options, counters: Arc<Counters>) -> Elected {
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(run(client, options, counters, stopped));
    Elected { stop, task }
}

/// What came of a request.
enum Answer {
    Read(Result<Option<(Versioned, Lease)>, Trouble>),
    Written(Result<Lease, Trouble>),
    Patched(u64, ObjectName, Result<Box<balanced::Answer>, Trouble>),
}

struct Driver {
    client: Client,
    claims: Claims,
    counters: Arc<Counters>,
    lease: LeaseObject,
    /// The Lease as it was read or written last.
    last: Option<Lease>,
    writer: Writer,
    start: Instant,
    flights: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// The term of office, and what its watch says.
    watch: Option<(u64, mpsc::Receiver<Seen>)>,
    reports: mpsc::UnboundedSender<report::Report>,
    complaints: HashMap<&'static str, String>,
}

async fn run(client: Client, options: Options, counters: Arc<Counters>, mut stop: oneshot::Receiver<()>) {
    let Options { node, namespace, claims, mut pools } = options;
    let timing = Timing::default();
    // Nobody else has this one, nor had it: an agent that comes back does not take the old one's Lease for its own.
    let identity: Arc<str> = format!("{node}_{:016x}", RandomState::new().build_hasher().finish()).into();
    let seconds = i32::try_from(timing.lease / 1000).unwrap_or(i32::MAX);
    let (reports, news) = mpsc::unbounded_channel();
    tokio::spawn(report::run(client.clone(), node, news, counters.clone()));
    let mut driver = Driver {
        lease: LeaseObject::new(client.clone(), &namespace, LEASE, seconds),
        writer: Writer::new(identity, timing, pools.borrow_and_update().clone()),
        client,
        claims,
        counters,
        last: None,
        start: Instant::now(),
        flights: FuturesUnordered::new(),
        watch: None,
        reports,
        complaints: HashMap::new(),
    };
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut lines = Vec::new();
    loop {
        let now = driver.now();
        for request in driver.writer.poll(now) {
            driver.carry_out(request);
        }
        let wake = driver.start + Duration::from_millis(driver.writer.wake().min(now + 3_600_000));
        tokio::select! {
            _ = &mut stop => {
                driver.resign().await;
                return;
            }
            Some(answer) = driver.flights.next() => driver.answered(answer),
            count = next(&mut driver.watch, &mut lines) => {
                let (now, term) = (driver.now(), driver.watch.as_ref().map_or(0, |(term, _)| *term));
                if count == 0 {
                    // It never ends by itself; what it was to say must not be missed.
                    tracing::error!("the watch of Services ended: beginning anew");
                    driver.watch(term);
                }
                lines.drain(..).for_each(|seen| driver.writer.seen(now, term, seen));
            }
            Ok(()) = pools.changed() => {
                let now = driver.now();
                driver.writer.set_pools(now, pools.borrow_and_update().clone());
            }
            _ = look.tick() => driver.counters.set(&driver.writer.standing()),
            () = tokio::time::sleep_until(wake.into()) => {}
        }
    }
}

/// The next lines of a watch; never any if there is none.
async fn next(watch: &mut Option<(u64, mpsc::Receiver<Seen>)>, lines: &mut Vec<Seen>) -> usize {
    match watch {
        Some((_, receiver)) => receiver.recv_many(lines, LINES).await,
        None => std::future::pending().await,
    }
}

impl Driver {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn carry_out(&mut self, request: Request) {
        match request {
            Request::ReadLease => {
                let lease = self.lease.clone();
                self.flights.push(Box::pin(async move { Answer::Read(patient(lease.read()).await) }));
            }
            Request::WriteLease { over, ledger } => {
                let (lease, last) = (self.lease.clone(), self.last.clone());
                self.flights.push(Box::pin(async move {
                    Answer::Written(patient(lease.write(last.as_ref(), over, &ledger)).await)
                }));
            }
            Request::Patch { term, name, object, version, addresses } => {
                let api: Api<balanced::Answer> = Api::namespaced(self.client.clone(), &name.namespace);
                let patch = Patch::Merge(body(&object, version, &addresses));
                self.flights.push(Box::pin(async move {
                    let parameters = PatchParams::default();
                    let result = patient(api.patch_status(&name.name, &parameters, &patch)).await;
                    Answer::Patched(term, name, result.map(Box::new))
                }));
            }
            Request::Watch(term) => {
                tracing::info!("this agent gives addresses to Services from now on");
                self.watch(term);
            }
            Request::Unwatch => {
                tracing::info!("this agent does not give addresses to Services any more");
                self.watch = None;
            }
            Request::Report { name, uid, news } => {
                // Nobody listens at the very end only.
                let _ = self.reports.send((name, uid, news));
            }
        }
    }

    fn watch(&mut self, term: u64) {
        let (sender, receiver) = mpsc::channel(LINES);
        tokio::spawn(balanced::follow(self.client.clone(), self.claims, sender));
        self.watch = Some((term, receiver));
    }

    fn answered(&mut self, answer: Answer) {
        let now = self.now();
        match answer {
            Answer::Read(result) => {
                let failure = self.judge("read the Lease", result.as_ref().err());
                let found = result.ok().map(|found| match found {
                    Some((versioned, lease)) => {
                        self.last = Some(lease);
                        Some(versioned)
                    }
                    None => None,
                });
                self.writer.lease_read(now, found.ok_or(failure));
            }
            Answer::Written(result) => {
                let failure = self.judge("write the Lease", result.as_ref().err());
                let version = result.ok().map(|lease| {
                    let version = lease.metadata.resource_version.clone().unwrap_or_default();
                    self.last = Some(lease);
                    version
                });
                self.writer.lease_written(now, version.ok_or(failure));
            }
            Answer::Patched(term, name, result) => {
                let failure = self.judge("write the status of Services", result.as_ref().err());
                self.counters.write(result.is_err().then_some(failure));
                let object = result.ok().and_then(|object| balanced::read(*object, self.claims).1);
                self.writer.patched(now, term, &name, object.ok_or(failure));
            }
        }
    }

    /// What a failure means to the writer; people are told of it once.
    fn judge(&mut self, what: &'static str, trouble: Option<&Trouble>) -> Failure {
        let Some(trouble) = trouble else {
            if self.complaints.remove(what).is_some() {
                tracing::info!("can {what} again");
            }
            return Failure::Unknown;
        };
        let failure = match trouble {
            Trouble::Api(kube::Error::Api(status)) if status.code == 409 => Failure::Conflict,
            Trouble::Api(kube::Error::Api(status)) if status.code == 404 => Failure::Missing,
            _ => Failure::Unknown,
        };
        // The others are part of the game.
        if failure == Failure::Unknown {
            let text = chain(trouble);
            if self.complaints.get(what) != Some(&text) {
                tracing::warn!("cannot {what}: {text}: {}; trying again", remedy(trouble));
                self.complaints.insert(what, text);
            }
        }
        failure
    }

    /// Gives the Lease up.
    async fn resign(mut self) {
        // What is being written comes first: its version would be another one.
        let farewell = async {
            loop {
                if let Some(Request::WriteLease { over, ledger }) = self.writer.resign() {
                    return self.lease.write(self.last.as_ref(), over, &ledger).await.map(drop);
                }
                match self.flights.next().await {
                    Some(answer) => self.answered(answer),
                    None => return Ok(()),
                }
            }
        };
        match tokio::time::timeout(FAREWELL, farewell).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!("the Lease was not given up: {}", chain(&error)),
            Err(_) => tracing::info!("the Lease was not given up: no answer in time"),
        }
    }
}

async fn patient<T, E: Into<Trouble>>(request: impl Future<Output = Result<T, E>>) -> Result<T, Trouble> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(Trouble::Silence(PATIENCE.as_secs())),
    }
}

fn remedy(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Api(kube::Error::Api(status)) if status.code == 403 => {
            "allow get, create and update on leases, and patch on services/status, as deploy/overlays/pools does"
                .to_owned()
        }
        Trouble::Api(kube::Error::Api(_)) => "look at the API server's own log".to_owned(),
        Trouble::Intents(_) => "no addresses are given meanwhile".to_owned(),
        _ => "check that the API server is up and that this node can reach it".to_owned(),
    }
}

/// A merge patch that only fits one version of the Service.
fn body(object: &Asking, version: u64, addresses: &[IpAddr]) -> Value {
    let mut conditions: Vec<Value> =
        object.conditions.iter().filter_map(|condition| serde_json::from_str(condition).ok()).collect();
    let ingress: Vec<Value> = addresses.iter().map(|address| json!({"ip": address, "ipMode": "VIP"})).collect();
    if !addresses.is_empty() {
        conditions.push(json!({
            "type": GIVEN_CONDITION, "status": "True", "reason": "FromPools", "message": given_message(addresses),
            "lastTransitionTime": Time(Timestamp::now()),
        }));
    }
    let or_none = |list: Vec<Value>| if list.is_empty() { Value::Null } else { list.into() };
    json!({
        "metadata": {"uid": object.uid, "resourceVersion": version.to_string()},
        "status": {"loadBalancer": {"ingress": or_none(ingress)}, "conditions": or_none(conditions)},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Asks, Has};

    #[test]
    fn a_patch_fits_one_version_and_keeps_the_conditions_of_others() {
        let other = r#"{"type":"example.com/Ready","status":"True"}"#.to_owned();
        let object = Asking {
            uid: "u".to_owned(),
            version: 9,
            leaving: false,
            asks: Asks::Nothing,
            has: Has::Nothing,
            conditions: vec![other],
        };
        let given = body(&object, 7, &[IpAddr::from([203, 0, 113, 1])]);
        assert_eq!(given["metadata"], json!({"uid": "u", "resourceVersion": "7"}));
        assert_eq!(given["status"]["loadBalancer"]["ingress"], json!([{"ip": "203.0.113.1", "ipMode": "VIP"}]));
        assert_eq!(given["status"]["conditions"][0]["type"], "example.com/Ready");
        assert_eq!(given["status"]["conditions"][1]["message"], "203.0.113.1");
        let back = body(&object, 7, &[]);
        assert_eq!(back["status"]["loadBalancer"], json!({"ingress": null}));
        assert_eq!(back["status"]["conditions"].as_array().map(Vec::len), Some(1));
    }
}
