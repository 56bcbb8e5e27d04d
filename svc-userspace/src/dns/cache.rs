//! What resolvers answered, for as long as they said: bounded in bytes, the least recently used goes first. Pure: time is
//! handed in. It never decides how long an answer may be kept, only for how long at most.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, RecordType},
};

/// Longest time an answer is kept, seconds.
const LONGEST: u32 = 300;
/// Longest time a negative one is kept, seconds.
const LONGEST_NEGATIVE: u32 = 30;
/// Bytes that an entry takes beside its message's.
const OVERHEAD: usize = 512;
/// Bytes in memory for one on the wire: names and records are expanded.
const EXPANSION: usize = 8;

/// What an answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name in small letters.
    pub name: Name,
    /// The type.
    pub kind: RecordType,
    /// DNSSEC records are wanted.
    pub dnssec_ok: bool,
    /// Signatures are not checked.
    pub checking_disabled: bool,
}

#[derive(Debug)]
struct Kept {
    message: Rc<Message>,
    size: usize,
    stored: u64,
    until: u64,
    used: u64,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    kept: HashMap<Key, Kept>,
    /// Keys by their last use.
    uses: BTreeMap<u64, Key>,
    next_use: u64,
    bytes: usize,
    most: usize,
}

impl Cache {
    /// An empty cache of at most this many bytes.
    pub fn new(most: usize) -> Self {
        Self { kept: HashMap::new(), uses: BTreeMap::new(), next_use: 0, bytes: 0, most }
    }

    /// An answer that is still good, and how old it is, seconds.
    pub fn get(&mut self, key: &Key, now: u64) -> Option<(Rc<Message>, u32)> {
        let kept = self.kept.get_mut(key)?;
        if kept.until <= now {
            self.remove(key);
            return None;
        }
        if let Some(key) = self.uses.remove(&kept.used) {
            kept.used = self.next_use;
            self.uses.insert(self.next_use, key);
            self.next_use += 1;
        }
        Some((kept.message.clone(), u32::try_from(now.saturating_sub(kept.stored)).unwrap_or(u32::MAX)))
    }

    /// Keeps an answer of this many bytes on the wire, if it may be kept at all.
    pub fn put(&mut self, key: Key, message: Rc<Message>, wire: usize, now: u64) {
        self.remove(&key);
        let Some(seconds) = seconds(&message) else { return };
        let size = wire * EXPANSION + OVERHEAD;
        if seconds == 0 || size > self.most {
            return;
        }
        while self.bytes + size > self.most {
            let Some((_, oldest)) = self.uses.pop_first() else { break };
            self.remove(&oldest);
        }
        self.bytes += size;
        self.uses.insert(self.next_use, key.clone());
        let kept = Kept { message, size, stored: now, until: now + u64::from(seconds), used: self.next_use };
        self.kept.insert(key, kept);
        self.next_use += 1;
    }

    fn remove(&mut self, key: &Key) {
        if let Some(kept) = self.kept.remove(key) {
            self.bytes -= kept.size;
            self.uses.remove(&kept.used);
        }
    }

    /// Number of answers.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Bytes they take, by estimate.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// How long an answer may be kept; `None`: not at all.
fn seconds(message: &Message) -> Option<u32> {
    let code = message.metadata.response_code;
    if message.metadata.truncation || !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return None;
    }
    let asked = message.queries.first()?.query_type();
    let least = message.answers.iter().map(|record| record.ttl).min();
    if code == ResponseCode::NoError && message.answers.iter().any(|record| record.record_type() == asked) {
        return least.map(|ttl| ttl.min(LONGEST));
    }
    // RFC 2308: the SOA says how long nothing is nothing; without one, nobody said so.
    let soa = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    })?;
    Some(soa.min(least.unwrap_or(soa)).min(LONGEST_NEGATIVE))
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{OpCode, Query},
        rr::{Record, rdata::A},
    };

    use super::*;

    fn key(name: &str) -> Key {
        let name = Name::from_ascii(name).expect("a name");
        Key { name, kind: RecordType::A, dnssec_ok: false, checking_disabled: false }
    }

    fn message(name: &str, ttl: u32) -> Rc<Message> {
        let name = Name::from_ascii(name).expect("a name");
        let mut message = Message::response(1, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        message.add_answer(Record::from_rdata(name, ttl, RData::A(A([192, 0, 2, 1].into()))));
        Rc::new(message)
    }

    #[test]
    fn answers_are_kept_for_their_time_and_no_longer() {
        let mut cache = Cache::new(1 << 20);
        cache.put(key("a."), message("a.", 10), 40, 100);
        cache.put(key("zero."), message("zero.", 0), 40, 100);
        cache.put(key("long."), message("long.", 1_000_000), 40, 100);
        assert_eq!(cache.get(&key("a."), 109).map(|(_, age)| age), Some(9));
        assert_eq!(cache.get(&key("a."), 110), None);
        assert_eq!(cache.get(&key("zero."), 100), None);
        assert_eq!(cache.get(&key("long."), 399).map(|(_, age)| age), Some(299));
        assert_eq!(cache.get(&key("long."), 400), None);
        assert_eq!((cache.len(), cache.bytes()), (0, 0));
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut cache = Cache::new(10 * (OVERHEAD + 40 * EXPANSION));
        for i in 0..10 {
            cache.put(key(&format!("n{i}.")), message("n.", 10), 40, 0);
        }
        assert!(cache.get(&key("n0."), 0).is_some());
        cache.put(key("new."), message("new.", 10), 40, 0);
        assert_eq!(cache.len(), 10);
        assert!(cache.get(&key("n0."), 0).is_some());
        assert!(cache.get(&key("n1."), 0).is_none());
        cache.put(key("huge."), message("huge.", 10), 1 << 20, 0);
        assert_eq!(cache.len(), 10, "what never fits drives nothing out");
    }

    #[test]
    fn failures_and_unfounded_denials_are_not_kept() {
        let mut refused = (*message("a.", 10)).clone();
        refused.metadata.response_code = ResponseCode::Refused;
        assert_eq!(seconds(&refused), None);
        let mut nothing = (*message("a.", 10)).clone();
        nothing.answers.clear();
        assert_eq!(seconds(&nothing), None);
    }
}
