//! What the DNS server counts. It never decides anything.

use std::fmt;

use hickory_proto::op::ResponseCode;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::answer::{Dropped, Transport};

type Label = (&'static str, &'static str);

/// Every counter.
#[derive(Clone, Default)]
pub struct Counters {
    queries: Family<[Label; 1], Counter>,
    answers: Family<[Label; 1], Counter>,
    dropped: Family<[Label; 1], Counter>,
    truncated: Family<[Label; 1], Counter>,
    forwards: Family<[Label; 1], Counter>,
    in_flight: Gauge,
    cache_entries: Gauge,
    cache_bytes: Gauge,
    services: Gauge,
    connections: Gauge,
    changes: Counter,
    up: Gauge,
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    /// Makes them known.
    pub fn register(&self, r: &mut Registry) {
        r.register("svc_dns_up", "1 while every address is served over both transports", self.up.clone());
        r.register("svc_dns_queries", "Queries, by transport", self.queries.clone());
        r.register("svc_dns_answers", "Answers, by code", self.answers.clone());
        r.register("svc_dns_dropped", "Queries and connections without an answer, by reason", self.dropped.clone());
        r.register("svc_dns_truncated", "Answers that were not sent whole, by reason", self.truncated.clone());
        r.register("svc_dns_forwards", "Questions for the node's resolvers, by outcome", self.forwards.clone());
        r.register("svc_dns_forwards_in_flight", "Questions that wait for a resolver", self.in_flight.clone());
        r.register("svc_dns_cache_entries", "Answers of resolvers that are remembered", self.cache_entries.clone());
        r.register("svc_dns_cache_bytes", "Memory they take, by estimate", self.cache_bytes.clone());
        r.register("svc_dns_services", "Services with records", self.services.clone());
        r.register("svc_dns_connections", "Open connections of clients", self.connections.clone());
        r.register("svc_dns_zone_changes", "Changes of a Service's records", self.changes.clone());
    }

    /// Whether every address is served.
    pub fn set_up(&self, up: bool) {
        self.up.set(up.into());
    }

    /// Whether it was the last thing said of it.
    #[cfg(test)]
    pub(super) fn is_up(&self) -> bool {
        self.up.get() == 1
    }

    /// A query came.
    pub fn query(&self, transport: Transport) {
        let label = match transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        self.queries.get_or_create(&[("transport", label)]).inc();
    }

    /// An answer was made.
    pub fn answer(&self, code: ResponseCode) {
        let label = match code {
            ResponseCode::NoError => "NOERROR",
            ResponseCode::FormErr => "FORMERR",
            ResponseCode::ServFail => "SERVFAIL",
            ResponseCode::NXDomain => "NXDOMAIN",
            ResponseCode::NotImp => "NOTIMP",
            ResponseCode::Refused => "REFUSED",
            ResponseCode::BADVERS => "BADVERS",
            _ => "other",
        };
        self.answers.get_or_create(&[("code", label)]).inc();
    }

    /// A message makes no sense here.
    pub fn dropped(&self, reason: Dropped) {
        let label = match reason {
            Dropped::Malformed => "malformed",
            Dropped::Response => "response",
        };
        self.drop_for(label);
    }

    /// Something was dropped for another reason.
    pub fn drop_for(&self, reason: &'static str) {
        self.dropped.get_or_create(&[("reason", reason)]).inc();
    }

    /// An answer was replaced by one that says: come by TCP.
    pub fn truncated_for(&self, reason: &'static str) {
        self.truncated.get_or_create(&[("reason", reason)]).inc();
    }

    /// An answer was remembered.
    pub fn cache_hit(&self) {
        self.forwarded_with("cached");
    }

    /// A question was too much.
    pub fn forward_refused(&self) {
        self.forwarded_with("refused");
    }

    /// A question found no answer.
    pub fn forward_failed(&self) {
        self.forwarded_with("failed");
    }

    /// A question was answered.
    pub fn forward_answered(&self) {
        self.forwarded_with("answered");
    }

    fn forwarded_with(&self, outcome: &'static str) {
        self.forwards.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// So many questions wait.
    pub fn set_in_flight(&self, count: usize) {
        self.in_flight.set(whole(count));
    }

    /// So much is remembered.
    pub fn set_cache(&self, entries: usize, bytes: usize) {
        self.cache_entries.set(whole(entries));
        self.cache_bytes.set(whole(bytes));
    }

    /// The zone changed, and has so many Services now.
    pub fn zone_changed(&self, changes: usize, services: usize) {
        self.changes.inc_by(changes as u64);
        self.services.set(whole(services));
    }

    /// So many connections are open.
    pub fn set_connections(&self, count: usize) {
        self.connections.set(whole(count));
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
