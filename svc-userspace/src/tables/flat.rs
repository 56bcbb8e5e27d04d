//! A sorted vector as a map: a Service has few ports, frontends and backends, and a tree's nodes have room for eleven each.
//!
//! Elements that come in order cost nothing but themselves; one in between moves those behind it.

/// A map in the order of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flat<K, V>(Vec<(K, V)>);

impl<K, V> Default for Flat<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord, V> Flat<K, V> {
    fn find(&self, key: &K) -> Result<usize, usize> {
        match self.0.last() {
            // What is built in order.
            Some((last, _)) if last < key => Err(self.0.len()),
            None => Err(0),
            _ => self.0.binary_search_by(|(other, _)| other.cmp(key)),
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    pub(super) fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// Replaces the value of a key.
    pub(super) fn insert(&mut self, key: K, value: V) {
        match self.find(&key) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (key, value)),
        }
    }

    pub(super) fn remove_entry(&mut self, key: &K) -> Option<(K, V)> {
        self.find(key).ok().map(|at| self.0.remove(at))
    }

    /// Removes what `which` picks.
    pub(super) fn extract(&mut self, mut which: impl FnMut(&K, &V) -> bool) -> Vec<(K, V)> {
        self.0.extract_if(.., |(key, value)| which(key, value)).collect()
    }
}

impl<K, V> Flat<K, V> {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }
}

impl<K: Ord, V> std::ops::Index<&K> for Flat<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        &self.0[self.find(key).unwrap_or(usize::MAX)].1
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Flat<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let entries = entries.into_iter();
        let mut flat = Self::with_capacity(entries.size_hint().1.unwrap_or_default());
        entries.for_each(|(key, value)| flat.insert(key, value));
        flat
    }
}

impl<K, V> IntoIterator for Flat<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_does_what_a_tree_does(actions in proptest::collection::vec((0..20_u8, any::<Option<u16>>()), 0..60)) {
            let (mut flat, mut tree) = (Flat::default(), BTreeMap::new());
            for (key, value) in actions {
                match value {
                    Some(value) => {
                        flat.insert(key, value);
                        tree.insert(key, value);
                    }
                    None => prop_assert_eq!(flat.remove_entry(&key), tree.remove_entry(&key)),
                }
                prop_assert_eq!(flat.get(&key), tree.get(&key));
                prop_assert!(flat.iter().eq(tree.iter()));
            }
            let odd = flat.extract(|key, _| key % 2 == 1);
            prop_assert!(odd.iter().map(|(key, value)| (key, value)).eq(tree.iter().filter(|(key, _)| *key % 2 == 1)));
            prop_assert!(flat.keys().all(|key| key % 2 == 0));
        }
    }
}
