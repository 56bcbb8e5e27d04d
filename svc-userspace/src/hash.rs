//! Maps and sets for what there is by the hundred thousand: names, ids and addresses.
//!
//! Keyed at random as the standard ones are, so no object can be named so that it collides with others; faster, because the
//! hash need not withstand somebody who sees its results, and nobody does.

use foldhash::fast::RandomState;

/// A hash map.
pub type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;
/// A hash set.
pub type HashSet<T> = std::collections::HashSet<T, RandomState>;
