//! The Lease in the API: read, created and replaced. It never decides who holds it.

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};

use super::ledger::{Ledger, Versioned, from_text, to_text};

/// Annotation with what the holder is about to write.
const INTENTS: &str = "svc/intents";

/// The Lease, and what was seen of it last.
#[derive(Clone)]
pub(super) struct LeaseObject {
    api: Api<Lease>,
    name: &'static str,
    /// `leaseDurationSeconds`, for those who look at it; this project's writers do not.
    seconds: i32,
}

/// Why something could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The API server did not do it.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// It does not answer.
    #[error("no answer for {0} s")]
    Silence(u64),
    /// It says something that no release up to this one writes.
    #[error("annotation {INTENTS} of the Lease: {0}: delete the Lease once no agent of a newer release runs")]
    Intents(String),
}

impl LeaseObject {
    pub(super) fn new(client: Client, namespace: &str, name: &'static str, seconds: i32) -> Self {
        Self { api: Api::namespaced(client, namespace), name, seconds }
    }

    /// The Lease as it is.
    pub(super) async fn read(&self) -> Result<Option<(Versioned, Lease)>, Trouble> {
        match self.api.get_opt(self.name).await? {
            Some(lease) => Ok(Some((versioned(&lease)?, lease))),
            None => Ok(None),
        }
    }

    /// Writes it over a version of it, or creates it. `last` is how it was, whatever else is in there.
    pub(super) async fn write(
        &self,
        last: Option<&Lease>,
        over: Option<String>,
        ledger: &Ledger,
    ) -> Result<Lease, Trouble> {
        let parameters = PostParams::default();
        let lease = self.next(last, over, ledger)?;
        Ok(match lease.metadata.resource_version {
            Some(_) => self.api.replace(self.name, &parameters, &lease).await?,
            None => self.api.create(&parameters, &lease).await?,
        })
    }

    fn next(&self, last: Option<&Lease>, over: Option<String>, ledger: &Ledger) -> Result<Lease, Trouble> {
        let now = MicroTime(Timestamp::now());
        let mut metadata = last.filter(|_| over.is_some()).map(|last| last.metadata.clone()).unwrap_or_default();
        metadata.managed_fields = None;
        metadata.name = Some(self.name.to_owned());
        metadata.resource_version = over;
        let text = to_text(&ledger.intents).map_err(|error| Trouble::Intents(error.to_string()))?;
        metadata.annotations.get_or_insert_default().insert(INTENTS.to_owned(), text);
        let before = last.and_then(|last| last.spec.as_ref());
        let same = before.filter(|before| before.holder_identity.as_deref() == Some(&*ledger.holder));
        let spec = LeaseSpec {
            acquire_time: same.and_then(|same| same.acquire_time.clone()).or(Some(now.clone())),
            holder_identity: Some(ledger.holder.to_string()),
            lease_duration_seconds: Some(if ledger.holder.is_empty() { 1 } else { self.seconds }),
            lease_transitions: Some(ledger.transitions),
            renew_time: Some(now),
            ..LeaseSpec::default()
        };
        Ok(Lease { metadata: ObjectMeta { ..metadata }, spec: Some(spec) })
    }
}

fn versioned(lease: &Lease) -> Result<Versioned, Trouble> {
    let spec = lease.spec.as_ref();
    let text = lease.metadata.annotations.as_ref().and_then(|all| all.get(INTENTS));
    let intents = text.map(|text| from_text(text)).transpose().map_err(Trouble::Intents)?;
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    Ok(Versioned {
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        ledger: Ledger {
            holder: holder.into(),
            transitions: spec.and_then(|spec| spec.lease_transitions).unwrap_or(0),
            intents: intents.unwrap_or_default(),
        },
    })
}
