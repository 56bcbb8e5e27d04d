//! Which endpoints answer. It knows neither addresses nor packets.

use std::collections::BTreeSet;

/// An endpoint of a Service port as the slices describe it; `K` is what tells it from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint<K> {
    /// What tells it from others.
    pub identity: K,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<String>,
    /// `hints.forNodes`.
    pub for_nodes: Vec<String>,
    /// `hints.forZones`.
    pub for_zones: Vec<String>,
}

/// The node whose agent decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: Option<String>,
}

/// The traffic policies of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Policies {
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
}

/// Which kind of a Service's addresses was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// The node's own, with the node port.
    NodePort,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
}

/// Where a request comes from, as the node that decides sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A pod of this node, or the node itself.
    Inside,
    /// Anywhere else.
    Outside,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<K> {
    /// One of these answers.
    Answer(BTreeSet<K>),
    /// There is no endpoint of any kind.
    Reject,
    /// There are endpoints, but the policy allows none.
    Drop,
}

impl<K> Endpoint<K> {
    fn drains(&self) -> bool {
        self.serving && self.terminating
    }

    fn is_on(&self, node: &Node) -> bool {
        self.node.as_ref() == Some(&node.name)
    }

    fn is_for_node(&self, node: &Node) -> bool {
        self.for_nodes.contains(&node.name)
    }

    fn is_for_zone_of(&self, node: &Node) -> bool {
        node.zone.as_ref().is_some_and(|zone| self.for_zones.contains(zone))
    }
}

/// The verdict on a request, among endpoints that are listed [`once`].
pub fn verdict<K: Ord + Clone>(
    endpoints: &[Endpoint<K>],
    policies: Policies,
    asked: Address,
    origin: Origin,
    node: &Node,
) -> Verdict<K> {
    // internalTrafficPolicy is about the cluster IP alone, whoever asks;
    // externalTrafficPolicy is about all other addresses, and short-circuited for who is inside already.
    let must_be_local = match (asked, origin) {
        (Address::ClusterIp, _) => policies.internal_local,
        (_, Origin::Inside) => false,
        (_, Origin::Outside) => policies.external_local,
    };
    let allowed = if must_be_local { local_set(endpoints, node) } else { cluster_set(endpoints, node) };
    if !allowed.is_empty() {
        Verdict::Answer(allowed)
    } else if endpoints.iter().any(|it| it.ready || it.drains()) {
        Verdict::Drop
    } else {
        // An endpoint that is neither ready nor draining is none that traffic could ever be sent to.
        Verdict::Reject
    }
}

/// Policy Cluster: the ready ones that hints allow, if hints are complete and allow any; if none is ready, those that
/// drain.
fn cluster_set<K: Ord + Clone>(endpoints: &[Endpoint<K>], node: &Node) -> BTreeSet<K> {
    let ready: Vec<&Endpoint<K>> = endpoints.iter().filter(|it| it.ready).collect();
    if ready.is_empty() {
        return those(endpoints, Endpoint::drains);
    }
    let every = |has: fn(&Endpoint<K>) -> bool| ready.iter().all(|it| has(it));
    if every(|it| !it.for_nodes.is_empty()) && ready.iter().any(|it| it.is_for_node(node)) {
        return those(endpoints, |it| it.ready && it.is_for_node(node));
    }
    if every(|it| !it.for_zones.is_empty()) && ready.iter().any(|it| it.is_for_zone_of(node)) {
        return those(endpoints, |it| it.ready && it.is_for_zone_of(node));
    }
    those(endpoints, |it| it.ready)
}

/// Policy Local: the ready ones here, whatever their hints say; if there is none, those that drain here.
fn local_set<K: Ord + Clone>(endpoints: &[Endpoint<K>], node: &Node) -> BTreeSet<K> {
    let ready = those(endpoints, |it| it.is_on(node) && it.ready);
    if ready.is_empty() { those(endpoints, |it| it.is_on(node) && it.drains()) } else { ready }
}

fn those<K: Ord + Clone>(endpoints: &[Endpoint<K>], wanted: impl Fn(&Endpoint<K>) -> bool) -> BTreeSet<K> {
    endpoints.iter().filter(|it| wanted(it)).map(|it| it.identity.clone()).collect()
}

/// The endpoints with each identity once. Of entries for the same one, those that do not terminate win; where that
/// leaves several which differ, the rules do not choose, and the result has a list for each choice.
pub fn once<K: Ord + Clone>(listed: &[Endpoint<K>]) -> Vec<Vec<Endpoint<K>>> {
    let identities: BTreeSet<&K> = listed.iter().map(|it| &it.identity).collect();
    let mut lists = vec![Vec::new()];
    for identity in identities {
        let entries: Vec<_> = listed.iter().filter(|it| it.identity == *identity).collect();
        let stays = entries.iter().any(|it| !it.terminating);
        let winners: Vec<_> = entries.into_iter().filter(|it| it.terminating != stays).collect();
        lists = lists
            .into_iter()
            .flat_map(|list| winners.iter().map(move |winner| [&list[..], &[(*winner).clone()]].concat()))
            .collect();
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(identity: &'static str, node: &str) -> Endpoint<&'static str> {
        Endpoint {
            identity,
            ready: true,
            serving: true,
            terminating: false,
            node: Some(node.into()),
            for_nodes: Vec::new(),
            for_zones: Vec::new(),
        }
    }

    /// The columns are policy Cluster, externalTrafficPolicy Local and internalTrafficPolicy Local.
    #[test]
    fn it_says_what_the_table_of_policies_says() {
        use {Address::*, Origin::*};
        let node = Node { name: "here".into(), zone: None };
        let endpoints = [endpoint("near", "here"), endpoint("far", "there")];
        let all = Verdict::Answer(["near", "far"].into());
        let loc = Verdict::Answer(["near"].into());
        let default = Policies::default();
        let etp = Policies { external_local: true, ..default };
        let itp = Policies { internal_local: true, ..default };
        for (origin, asked, expected) in [
            (Inside, ClusterIp, [&all, &all, &loc]),
            (Inside, NodePort, [&all, &all, &all]),
            (Inside, LoadBalancer, [&all, &all, &all]),
            (Outside, ClusterIp, [&all, &all, &loc]),
            (Outside, NodePort, [&all, &loc, &all]),
            (Outside, LoadBalancer, [&all, &loc, &all]),
            (Outside, ExternalIp, [&all, &loc, &all]),
        ] {
            for (policies, expected) in [default, etp, itp].into_iter().zip(expected) {
                assert_eq!(
                    &verdict(&endpoints, policies, asked, origin, &node),
                    expected,
                    "{origin:?} {asked:?} {policies:?}"
                );
            }
        }
    }

    #[test]
    fn of_two_entries_the_one_that_does_not_terminate_wins_and_equals_leave_the_choice_open() {
        let stays = endpoint("web", "here");
        let goes = Endpoint { terminating: true, ..stays.clone() };
        let elsewhere = endpoint("web", "there");
        assert_eq!(once(&[goes.clone(), stays.clone()]), [[stays.clone()]]);
        assert_eq!(once(&[goes.clone(), goes.clone()]).len(), 2);
        assert_eq!(once(&[stays.clone(), goes, elsewhere.clone()]), [[stays], [elsewhere]]);
        assert_eq!(once::<u8>(&[]), [[]]);
    }
}
