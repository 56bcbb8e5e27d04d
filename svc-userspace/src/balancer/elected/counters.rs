//! What the writer of addresses counts. It never decides anything.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::requests::{Failure, Standing};

type Label = (&'static str, &'static str);

/// Every counter.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    leads: Gauge,
    given: Gauge,
    refused: Gauge,
    writes: Family<[Label; 1], Counter>,
    events: Family<[Label; 1], Counter>,
}

impl Counters {
    /// Makes them known.
    pub fn register(&self, r: &mut Registry) {
        r.register("svc_pools_leads", "1 on the one agent that gives addresses", self.leads.clone());
        r.register("svc_pools_given", "Services with addresses of the pools, there", self.given.clone());
        r.register("svc_pools_refused", "Services that do not get what they ask for, there", self.refused.clone());
        r.register("svc_pools_writes", "Writes of a Service's status, by outcome", self.writes.clone());
        r.register("svc_pools_events", "Events on Services, by outcome", self.events.clone());
    }

    pub(super) fn set(&self, standing: &Standing) {
        let whole = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.leads.set(standing.leads.into());
        self.given.set(whole(standing.given));
        self.refused.set(whole(standing.refused));
    }

    pub(super) fn write(&self, failure: Option<Failure>) {
        let outcome = match failure {
            None => "done",
            Some(Failure::Conflict) => "conflict",
            Some(Failure::Missing) => "missing",
            Some(Failure::Unknown) => "failed",
        };
        self.writes.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(super) fn event(&self, sent: bool) {
        self.events.get_or_create(&[("outcome", if sent { "sent" } else { "failed" })]).inc();
    }
}
