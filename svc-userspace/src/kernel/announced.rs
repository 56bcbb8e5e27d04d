//! ANNOUNCED: what this node answers for.

use std::collections::BTreeMap;

use svc_common::{Announced, AnnouncedKey};

use super::{Dataplane, error::KernelError, is_absent};

impl Dataplane {
    /// Makes these the entries of ANNOUNCED; what is to go goes first.
    pub fn set_announced(&mut self, wanted: &BTreeMap<AnnouncedKey, Announced>) -> Result<(), KernelError> {
        let failed = |error| KernelError::map("ANNOUNCED", error);
        let map = &mut self.maps.announced;
        let there: BTreeMap<AnnouncedKey, Announced> = map.iter().filter_map(Result::ok).collect();
        for key in there.keys().filter(|key| !wanted.contains_key(key)) {
            match map.remove(key) {
                Err(error) if !is_absent(&error) => return Err(failed(error)),
                _ => {}
            }
        }
        for (key, announced) in wanted.iter().filter(|(key, announced)| there.get(key) != Some(announced)) {
            map.insert(key, announced, 0).map_err(failed)?;
        }
        Ok(())
    }
}
