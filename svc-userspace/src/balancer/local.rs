//! Addresses for the Services of a source that nobody else gives any: a stage between the source and the rest of the agent.
//!
//! Services that ask for nothing pass through. What is given out depends on all claims together, so it is only planned when
//! the source has listed everything, and a change of one may move another (rarely: see [`super::plan`]).

use std::{collections::BTreeMap, net::IpAddr};

use super::{owners::Refusal, plan::plan, pools::Pools};
use crate::model::{Change, Claim, ObjectName, Problem, Service};

/// The Services that claim an address, and what they have got.
#[derive(Debug, Default)]
pub struct Local {
    pools: Pools,
    services: BTreeMap<ObjectName, Service>,
    claims: BTreeMap<ObjectName, Claim>,
    given: BTreeMap<ObjectName, Result<Vec<IpAddr>, Refusal>>,
    synced: bool,
}

impl Local {
    /// Nobody has claimed anything yet.
    pub fn new(pools: Pools) -> Self {
        Self { pools, ..Self::default() }
    }

    /// Other pools from now on: what becomes different.
    pub fn set_pools(&mut self, pools: Pools) -> Vec<Change> {
        self.pools = pools;
        if self.synced { self.settle() } else { Vec::new() }
    }

    /// What is to be made of a change: itself, with addresses, and those of others that it moves.
    pub fn pass(&mut self, change: Change) -> Vec<Change> {
        match change {
            Change::Service(name, Some(service)) if service.claim.is_some() => {
                self.claims.extend(service.claim.as_deref().map(|claim| (name.clone(), claim.clone())));
                self.services.insert(name.clone(), *service);
                self.given.remove(&name);
                if self.synced { self.settle() } else { Vec::new() }
            }
            // What is not load-balanced any more gives its addresses back.
            Change::Service(ref name, _) | Change::Unbalanced(ref name, _) => {
                let claimed = self.claims.remove(name).is_some();
                self.services.remove(name);
                self.given.remove(name);
                let mut changes = vec![change];
                if claimed && self.synced {
                    changes.extend(self.settle());
                }
                changes
            }
            Change::Synced => {
                self.synced = true;
                let mut changes = self.settle();
                changes.push(Change::Synced);
                changes
            }
            other => vec![other],
        }
    }

    /// Plans anew, and tells of every Service whose addresses are others than it was last told.
    fn settle(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, grant) in plan(&self.pools, &self.claims) {
            if self.given.get(&name) == Some(&grant) {
                continue;
            }
            let Some(service) = self.services.get(&name) else { continue };
            let mut service = service.clone();
            service.load_balancer_ips = grant.as_ref().cloned().unwrap_or_default();
            changes.push(Change::Service(name.clone(), Some(Box::new(service))));
            if let Err(refusal) = &grant {
                changes.push(Change::Problem(Problem {
                    kind: "Service",
                    name: name.to_string(),
                    field: "status.loadBalancer".to_owned(),
                    message: format!("no address is given: {refusal}"),
                }));
            }
            self.given.insert(name, grant);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(addresses: &str) -> Pools {
        Pools::parse(&format!("pools:\n- name: a\n  addresses: [{addresses}]\n")).expect("good pools")
    }

    fn service(name: &str, claims: bool) -> Change {
        let name = ObjectName::new("shop", name);
        let claim = Claim::plain(name.clone());
        let service = Service {
            name: name.clone(),
            cluster_ips: vec![IpAddr::from([10, 96, 0, 1])],
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            claim: claims.then(|| Box::new(claim)),
            source_ranges: Vec::new(),
            ports: Vec::new(),
            external_local: false,
            internal_local: false,
            affinity_seconds: None,
            health_check_node_port: None,
        };
        Change::Service(name, Some(Box::new(service)))
    }

    /// Names and addresses of the Services in these changes, and how many problems they tell of.
    fn told(changes: &[Change]) -> (Vec<(String, Vec<IpAddr>)>, usize) {
        let services = changes.iter().filter_map(|change| match change {
            Change::Service(name, service) => Some((
                name.name.to_string(),
                service.as_ref().map(|service| service.load_balancer_ips.clone()).unwrap_or_default(),
            )),
            _ => None,
        });
        (services.collect(), changes.iter().filter(|change| matches!(change, Change::Problem(_))).count())
    }

    #[test]
    fn nothing_is_given_before_everything_is_known() {
        let mut local = Local::new(pools("203.0.113.1"));
        assert_eq!(local.pass(service("b", true)), []);
        assert_eq!(told(&local.pass(service("plain", false))).0, [("plain".to_owned(), Vec::new())]);
        assert_eq!(local.pass(service("a", true)), []);
        let changes = local.pass(Change::Synced);
        assert_eq!(changes.last(), Some(&Change::Synced));
        let (services, problems) = told(&changes);
        assert_eq!(services, [("a".to_owned(), vec![IpAddr::from([203, 0, 113, 1])]), ("b".to_owned(), Vec::new())]);
        assert_eq!(problems, 1);
    }

    #[test]
    fn an_address_that_is_free_again_goes_to_who_waits_for_it() {
        let mut local = Local::new(pools("203.0.113.1"));
        for change in [service("a", true), service("b", true), Change::Synced] {
            local.pass(change);
        }
        let (services, problems) = told(&local.pass(Change::Service(ObjectName::new("shop", "a"), None)));
        let given = vec![IpAddr::from([203, 0, 113, 1])];
        assert_eq!(services, [("a".to_owned(), Vec::new()), ("b".to_owned(), given)]);
        assert_eq!(problems, 0);
        let (services, problems) = told(&local.pass(service("b", false)));
        assert_eq!((services, problems), (vec![("b".to_owned(), Vec::new())], 0), "it asks no more");
    }

    #[test]
    fn other_pools_move_only_whom_they_concern() {
        let mut local = Local::new(pools("203.0.113.1"));
        for change in [service("a", true), service("b", true), Change::Synced] {
            local.pass(change);
        }
        let wider = told(&local.set_pools(pools("203.0.113.1, 203.0.113.2")));
        assert!(wider.0.iter().any(|(name, addresses)| name == "b" && addresses.len() == 1), "{wider:?}");
        assert_eq!(wider.1, 0);
        let none = told(&local.set_pools(pools("203.0.113.9")));
        assert_eq!(none.1, 1, "{none:?}");
        assert_eq!(local.set_pools(pools("203.0.113.9")), []);
    }
}
