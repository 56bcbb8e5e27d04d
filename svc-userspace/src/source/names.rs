//! Interned strings: node, zone, namespace and port names repeat in every slice and are kept once.
//!
//! It never keeps a string for long that nobody uses any more.

use std::sync::Arc;

use crate::hash::HashSet;

/// A pool of shared strings.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pool: HashSet<Arc<str>>,
    /// Size of the pool at which unused strings are dropped.
    sweep_at: usize,
}

/// Below this many strings the pool is never swept.
const SWEEP_MIN: usize = 1024;

impl Names {
    /// The shared copy of a string.
    pub(crate) fn intern(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.pool.get(name) {
            return Arc::clone(known);
        }
        if self.pool.len() >= self.sweep_at.max(SWEEP_MIN) {
            self.pool.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = self.pool.len() * 2;
        }
        let name: Arc<str> = name.into();
        self.pool.insert(Arc::clone(&name));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_string_is_kept_once_and_unused_ones_go() {
        let mut names = Names::default();
        let kept = names.intern("zone-a");
        assert!(Arc::ptr_eq(&kept, &names.intern("zone-a")));
        for i in 0..10 * SWEEP_MIN {
            names.intern(&format!("node-{i}"));
        }
        assert!(names.pool.len() <= SWEEP_MIN, "unused strings are dropped: {}", names.pool.len());
        assert!(Arc::ptr_eq(&kept, &names.intern("zone-a")), "a string in use stays");
    }
}
