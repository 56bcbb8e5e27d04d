//! What a writer knows of the Services: of each the newest version it has heard of, by list, watch or the answer to a patch.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::Intent;
use crate::model::{Asking, Asks, Has, ObjectName};

/// What the watch of all Services says. The list that it begins with must have been made after it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A list begins.
    Begin,
    /// A Service is there.
    Object(ObjectName, Box<Asking>),
    /// A Service is there, and makes no sense.
    Unreadable(ObjectName),
    /// A Service is gone.
    Gone(ObjectName),
    /// The list is complete.
    End,
}

/// Services that ask for something, have something, or are named by an intent.
#[derive(Debug, Default)]
pub struct View {
    objects: BTreeMap<ObjectName, Asking>,
    /// Names that the running list has had so far.
    listing: Option<BTreeSet<ObjectName>>,
    /// A list was complete.
    complete: bool,
}

impl View {
    /// Takes in what the watch says, where intents name some Services; whether there is something to decide.
    pub fn see(&mut self, seen: Seen, is_named: &dyn Fn(&ObjectName) -> bool) -> bool {
        match seen {
            Seen::Begin => {
                self.listing = Some(BTreeSet::new());
                false
            }
            Seen::Object(name, object) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(name.clone());
                }
                self.update(name, *object, is_named)
            }
            // What was known of it stays in force.
            Seen::Unreadable(name) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(name);
                }
                false
            }
            Seen::Gone(name) => self.objects.remove(&name).is_some(),
            Seen::End => {
                let listed = self.listing.take().unwrap_or_default();
                let before = self.objects.len();
                self.objects.retain(|name, _| listed.contains(name));
                let first = !std::mem::replace(&mut self.complete, true);
                first || self.objects.len() < before
            }
        }
    }

    /// Takes in a Service as a patch has left it; whether there is something to decide.
    pub fn patched(&mut self, name: &ObjectName, object: Asking, is_named: &dyn Fn(&ObjectName) -> bool) -> bool {
        // One that is gone must not come back by an answer that was late.
        let known = self.objects.get(name).is_some_and(|known| known.uid == object.uid);
        known && self.update(name.clone(), object, is_named)
    }

    fn update(&mut self, name: ObjectName, object: Asking, is_named: &dyn Fn(&ObjectName) -> bool) -> bool {
        let known = self.objects.get(&name);
        // A list or watch may lag behind the answer to a patch.
        if known.is_some_and(|known| known.uid == object.uid && known.version >= object.version) {
            return false;
        }
        let named = is_named(&name);
        let matters = named || object.asks != Asks::Nothing || object.has != Has::Nothing;
        let changed = known.map(|known| (&known.uid, &known.asks, &known.has, known.leaving))
            != matters.then_some((&object.uid, &object.asks, &object.has, object.leaving));
        if matters {
            self.objects.insert(name, object);
        } else {
            self.objects.remove(&name);
        }
        // An intent may have come to its end.
        changed || named
    }

    /// Whether everything that was there when the watch began is known.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// A Service.
    pub fn get(&self, name: &ObjectName) -> Option<&Asking> {
        self.objects.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Asking)> {
        self.objects.iter()
    }

    /// Whether an intent may still be, or become, something that this view does not show.
    pub fn is_open(&self, name: &ObjectName, intent: &Intent) -> bool {
        !self.complete
            || self.objects.get(name).is_some_and(|known| known.uid == intent.uid && known.version <= intent.version)
    }
}
