//! From what a writer knows of the Services to what there is to decide about.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{ledger::Intents, view::View};
use crate::{
    balancer::{owners::Refusal, renew::History},
    model::{Asks, Claim, Has, ObjectName},
};

/// What there is to decide about.
pub(super) struct Case {
    pub(super) claims: BTreeMap<ObjectName, Claim>,
    pub(super) history: History,
    pub(super) refusals: BTreeMap<ObjectName, Refusal>,
    /// Who has to give back what was given, whatever others get.
    pub(super) unwanted: BTreeSet<ObjectName>,
}

/// Sorts the Services by what can be done about them.
pub(super) fn case(view: &View, intents: &Intents, lenient: bool) -> Case {
    let mut claims = BTreeMap::new();
    let mut history = History { lenient, ..History::default() };
    let mut refusals = BTreeMap::new();
    let mut unwanted = BTreeSet::new();
    let mut held: Vec<(i64, &ObjectName, &[IpAddr])> = Vec::new();
    for (name, intent) in intents {
        history.fixed.push((name.clone(), intent.addresses.clone()));
    }
    for (name, object) in view.iter() {
        let decided = intents.contains_key(name);
        let block = || (name.clone(), object.has.addresses().to_vec());
        if let Asks::Claim(claim) = &object.asks
            && !object.leaving
        {
            claims.insert(name.clone(), Claim::clone(claim));
        }
        match (&object.asks, &object.has) {
            _ if decided || object.leaving => history.blocked.push(block()),
            // Whoever wrote that looks after it.
            (_, Has::Others(_)) => history.blocked.push(block()),
            (Asks::Claim(_) | Asks::Nothing, Has::Nothing) => {}
            (Asks::Claim(_), Has::Given { addresses, since }) => held.push((*since, name, addresses)),
            (Asks::Nothing, Has::Given { .. }) => {
                history.blocked.push(block());
                unwanted.insert(name.clone());
            }
            // A slip of the pen costs nobody the address they have.
            (Asks::Nonsense(message), _) => {
                history.blocked.push(block());
                refusals.insert(name.clone(), Refusal::Nonsense(message.clone()));
            }
        }
    }
    held.sort_by_key(|(since, name, _)| (*since, *name));
    history.held = held.into_iter().map(|(_, name, addresses)| (name.clone(), addresses.to_vec())).collect();
    Case { claims, history, refusals, unwanted }
}
