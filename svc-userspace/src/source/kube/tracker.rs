//! What has been reported of one kind: names and fingerprints, not objects.
//!
//! It turns "this object is there" into "this object changed", and the end of a complete list into deletions. It never
//! declares an object deleted unless a list was complete.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::hash::HashMap;
use crate::model::{ObjectName, Problem};
use crate::source::convert::{Converted, Outcome};

/// What has to be reported.
#[derive(Debug)]
pub(super) struct Report<T> {
    /// The object, and its value if it is used. `None`: nothing to say about the object itself.
    pub(super) object: Option<(ObjectName, Option<Box<T>>)>,
    /// Its problems.
    pub(super) problems: Vec<Problem>,
}

/// What is known of an object.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Hash of what was reported, problems included.
    fingerprint: u64,
    /// The receiver has the object.
    used: bool,
    /// Number of the last list that had it.
    list: u32,
}

/// Names reported so far.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    known: HashMap<ObjectName, Known>,
    list: u32,
    /// The running list has an object without a readable name: it might be any of those that seem to be missing.
    nameless: bool,
}

impl Tracker {
    /// A list begins.
    pub(super) fn begin(&mut self) {
        self.list = self.list.wrapping_add(1);
        self.nameless = false;
    }

    /// An object is there.
    pub(super) fn applied<T: Hash>(&mut self, converted: Converted<T>) -> Option<Report<T>> {
        let Converted { name, outcome, problems } = converted;
        let Some(name) = name else {
            self.nameless = true;
            return Some(Report { object: None, problems });
        };
        let before = self.known.get(&name).copied();
        let mut hasher = DefaultHasher::new();
        problems.hash(&mut hasher);
        let (used, object) = match outcome {
            Outcome::Use(object) => {
                object.hash(&mut hasher);
                (true, Some(Some(object)))
            }
            Outcome::Unused => (false, before.is_some_and(|before| before.used).then_some(None)),
            // What was reported stays in force.
            Outcome::Unreadable => {
                hasher.write_u8(1);
                (before.is_some_and(|before| before.used), None)
            }
        };
        hasher.write_u8(u8::from(used));
        let fingerprint = hasher.finish();
        if !used && problems.is_empty() {
            self.known.remove(&name);
        } else {
            self.known.insert(name.clone(), Known { fingerprint, used, list: self.list });
        }
        if before.is_some_and(|before| before.fingerprint == fingerprint) {
            return None;
        }
        let object = object.or_else(|| {
            // Problems that are gone are reported by reporting the object.
            (before.is_some() && problems.is_empty() && !used).then_some(None)
        });
        if object.is_none() && problems.is_empty() {
            return None;
        }
        Some(Report { object: object.map(|object| (name, object)), problems })
    }

    /// An object is gone; whether the receiver has to know.
    pub(super) fn deleted(&mut self, name: &ObjectName) -> bool {
        self.known.remove(name).is_some()
    }

    /// The list is complete: what it did not have is gone.
    pub(super) fn finish(&mut self) -> Vec<ObjectName> {
        if self.nameless {
            return Vec::new();
        }
        let list = self.list;
        let gone: Vec<_> =
            self.known.iter().filter(|(_, known)| known.list != list).map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.known.remove(name);
        }
        gone
    }

    /// Whether nothing is known.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("ns", name)
    }

    fn used(of: &str, value: u32) -> Converted<u32> {
        Converted { name: Some(name(of)), outcome: Outcome::Use(Box::new(value)), problems: Vec::new() }
    }

    fn problem() -> Vec<Problem> {
        vec![Problem { kind: "Service", name: "ns/a".into(), field: "spec".into(), message: "wrong".into() }]
    }

    #[test]
    fn the_same_object_is_reported_once() {
        let mut tracker = Tracker::default();
        assert!(tracker.applied(used("a", 1)).is_some());
        assert!(tracker.applied(used("a", 1)).is_none());
        assert!(tracker.applied(used("a", 2)).is_some());
    }

    #[test]
    fn only_a_complete_list_deletes() {
        let mut tracker = Tracker::default();
        tracker.begin();
        tracker.applied(used("a", 1));
        tracker.applied(used("b", 1));
        assert!(tracker.finish().is_empty());
        tracker.begin();
        tracker.applied(used("a", 1));
        tracker.begin(); // the list broke off and begins again
        assert!(tracker.applied(used("b", 1)).is_none());
        assert_eq!(tracker.finish(), [name("a")]);
    }

    #[test]
    fn a_nameless_object_might_be_any_of_the_missing() {
        let mut tracker = Tracker::default();
        tracker.applied(used("a", 1));
        tracker.begin();
        tracker.applied(Converted::<u32> { name: None, outcome: Outcome::Unreadable, problems: problem() });
        assert!(tracker.finish().is_empty());
        tracker.begin();
        assert_eq!(tracker.finish(), [name("a")]);
    }

    #[test]
    fn an_unreadable_object_keeps_what_was_reported() {
        let mut tracker = Tracker::default();
        tracker.applied(used("a", 1));
        tracker.begin();
        let broken = Converted::<u32> { name: Some(name("a")), outcome: Outcome::Unreadable, problems: problem() };
        let report = tracker.applied(broken.clone()).expect("problem");
        assert!(report.object.is_none());
        assert_eq!(report.problems.len(), 1);
        assert!(tracker.applied(broken).is_none(), "reported once");
        assert!(tracker.finish().is_empty());
        assert!(tracker.applied(used("a", 1)).is_some(), "the good object again, and with it the end of the problem");
    }

    #[test]
    fn an_object_that_was_never_ours_is_not_reported() {
        let mut tracker = Tracker::default();
        let unused = || Converted::<u32> { name: Some(name("a")), outcome: Outcome::Unused, problems: Vec::new() };
        assert!(tracker.applied(unused()).is_none());
        assert!(!tracker.deleted(&name("a")));
        tracker.applied(used("a", 1));
        assert!(matches!(tracker.applied(unused()), Some(Report { object: Some((_, None)), .. })));
    }
}
