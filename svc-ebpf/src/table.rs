//! The flow table: a set-associative table in a plain array, shared by all CPUs without a lock.
//!
//! docs/flow-table.md says why it is right. In short: a slot's control word is claimed by compare-and-swap and carries a
//! version, so a reader that saw the same word before and after saw one entry whole; a writer of a new key shows it as
//! pending, then looks for another one, and of all that show one key exactly one goes live.
//!
//! It is pure: [`Memory`] is the array in the kernel, atomics on the host, or loom's model of them. It never waits: every
//! loop is bounded, and what happens at the bound is said at each constant.

use svc_common::flow_table::{
    CONTROL_KEY, FlowPlace, FlowWords, MARK_CLAIMED, MARK_CLOSING, MARK_USED, PORTS, SLOT_BUSY, SLOT_CHANGING,
    SLOT_FREE, SLOT_HAS_KEY, SLOT_LIVE, SLOT_LOST, SLOT_PENDING,
};

use crate::tables::Insert;

/// The memory of a table. Words are 64 bits; each access is atomic.
pub trait Memory {
    /// A bucket, once found.
    type Bucket: Copy;
    /// Slots of a bucket: a power of two, at most 8.
    const WAYS: usize;
    /// A bucket by its number; `None` if there is none.
    fn bucket(&self, number: u32) -> Option<Self::Bucket>;
    /// Reads a control word: what was written before it was put there is seen by later reads.
    fn control(&self, bucket: Self::Bucket, way: usize) -> u64;
    /// Reads a word of the entry, without any order.
    fn word(&self, bucket: Self::Bucket, way: usize, index: usize) -> u64;
    /// Writes a word of the entry, without any order.
    fn set_word(&self, bucket: Self::Bucket, way: usize, index: usize, value: u64);
    /// Compares and swaps a control word, returns what it was; nothing is moved across, in any direction.
    fn swap_if(&self, bucket: Self::Bucket, way: usize, expected: u64, new: u64) -> u64;
    /// Writes a control word; nothing is moved across, in any direction.
    fn put_control(&self, bucket: Self::Bucket, way: usize, new: u64);
    /// Reads before are done before reads after.
    fn fence(&self);
    /// The value, about which a compiler or verifier shall know nothing any more.
    fn opaque(&self, value: usize) -> usize;
}

/// Passes of an operation that others are in the way of. At the bound a reader finds nothing, a writer has not made its
/// entry, and a remover has not removed it.
const PASSES: usize = 3;
/// Slots of the same key that a writer deals with, or with one of them repeatedly. At the bound it gives way.
const RIVALS: usize = 3;

/// Points, in units of the clock, from which on the first bucket's oldest entry goes though the second bucket's be older:
/// entries in the first one are found sooner.
const OLD: u32 = 1024;
/// An entry that is closing gives way as if it were idle for 512 units more, as a power of two.
const CLOSING_SHIFT: u32 = 9;
/// An entry that no packet has used since it was made (the first packet of a flood, a direct connection's claim) as if for
/// 128 more.
const UNUSED_SHIFT: u32 = 7;
/// Another CPU's clock may be ahead by so much.
const SKEW: u32 = 16;
const FREE: u32 = u32::MAX >> 4;

/// What a packet may add to a live entry's control word.
const ALL_MARKS: u64 = ((MARK_CLOSING | MARK_USED) as u64) << 8;

/// A key or an entry, and where it may be.
#[derive(Clone, Copy, Debug)]
pub struct Item<A: FlowWords> {
    /// Words of key and value.
    pub words: A::Words,
    /// The control word's part.
    pub control: u64,
    /// Where it may be.
    pub place: FlowPlace,
    /// A writer's notes.
    pub notes: [u64; 2],
}

/// A key or an entry, wherever it lies.
pub trait Wanted<A: FlowWords> {
    /// A word of key or value.
    fn word(&self, index: usize) -> u64;
    /// The control word's part.
    fn control(&self) -> u64;
    /// Where it may be.
    fn place(&self) -> FlowPlace;
    /// Notes a number for a writer, 0 or 1: it has no room for them on the stack.
    fn note(&mut self, index: usize, value: u64);
    /// What was noted.
    fn noted(&self, index: usize) -> u64;
}

impl<A: FlowWords> Wanted<A> for Item<A> {
    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        self.words.as_ref()[index]
    }

    #[inline(always)]
    fn control(&self) -> u64 {
        self.control
    }

    #[inline(always)]
    fn place(&self) -> FlowPlace {
        self.place
    }

    #[inline(always)]
    fn note(&mut self, index: usize, value: u64) {
        self.notes[index] = value;
    }

    #[inline(always)]
    fn noted(&self, index: usize) -> u64 {
        self.notes[index]
    }
}

/// The slots of both buckets of a key, in the order in which it is looked for.
struct Set<'a, M: Memory> {
    memory: &'a M,
    first: M::Bucket,
    second: M::Bucket,
    way: usize,
}

/// The state in a control word.
#[inline(always)]
fn state(control: u64) -> u8 {
    control as u8
}

/// The same control word in another state.
#[inline(always)]
fn in_state(control: u64, state: u8) -> u64 {
    control & !0xff | u64::from(state)
}

/// True for the control word of a slot that was never claimed.
#[inline(always)]
fn is_unclaimed(control: u64) -> bool {
    control & u64::from(MARK_CLAIMED) << 8 == 0
}

/// The control word of a slot's next claim, without anything of a key or value.
#[inline(always)]
fn next_version(control: u64) -> u64 {
    ((control >> 32) + 1) << 32 | u64::from(MARK_CLAIMED) << 8
}

impl<M: Memory> Set<'_, M> {
    #[inline(always)]
    fn at(&self, slot: usize) -> (M::Bucket, usize) {
        (if slot < M::WAYS { self.first } else { self.second }, (self.way + slot) & (M::WAYS - 1))
    }

    /// True if the slot, whose control word was just read, has the item's key.
    #[inline(always)]
    fn is_key<A: FlowWords>(&self, bucket: M::Bucket, way: usize, control: u64, item: &impl Wanted<A>) -> bool {
        let has_key = u64::from(SLOT_HAS_KEY);
        if (control ^ (item.control() | has_key)) & (CONTROL_KEY | has_key) != 0 {
            return false;
        }
        let mut difference = (self.memory.word(bucket, way, A::KEY - 1) ^ item.word(A::KEY - 1)) & PORTS;
        for index in 0..A::KEY - 1 {
            difference |= self.memory.word(bucket, way, index) ^ item.word(index);
        }
        difference == 0
    }

    /// True if the slot had a key when its control word was read, and has it still: no writer came in between. Without
    /// that, the control word of the entry that was, and the key of the one that comes, would look like a live entry.
    #[inline(always)]
    fn is_still(&self, bucket: M::Bucket, way: usize, control: u64) -> bool {
        self.memory.fence();
        (self.memory.control(bucket, way) ^ control) >> 32 == 0
    }

    /// The slot that may have the key, and its control word.
    ///
    /// A slot that was never claimed is where the search ends: a writer of this key takes the first free slot in the same
    /// order, and what was claimed once stays so.
    #[inline(always)]
    fn search<A: FlowWords>(&self, item: &impl Wanted<A>) -> Option<(usize, u64)> {
        for slot in 0..2 * M::WAYS {
            let (bucket, way) = self.at(slot);
            let control = self.memory.control(bucket, way);
            if self.is_key(bucket, way, control, item) {
                return Some((slot, control));
            }
            if is_unclaimed(control) {
                return None;
            }
        }
        None
    }
}

/// What a pass of [`read_once`], [`write_once`] or [`remove_once`] led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass<T> {
    /// It is decided.
    Done(T),
    /// Another CPU was at work on the same entry: again.
    Again,
}

/// Finds the entry of a key and copies its words; gives its place and its control word.
#[inline(always)]
pub fn read_once<A: FlowWords, M: Memory>(memory: &M, item: &mut Item<A>) -> Pass<Option<(M::Bucket, usize, u64)>> {
    let Some(set) = set(memory, item) else { return Pass::Done(None) };
    let Some((slot, control)) = set.search(item) else { return Pass::Done(None) };
    if state(control) != SLOT_LIVE {
        return Pass::Again;
    }
    let (bucket, way) = set.at(memory.opaque(slot));
    // The key stays what was asked for, whatever is read: another pass looks for it again.
    let words = item.words.as_mut();
    words[A::KEY - 1] = words[A::KEY - 1] & PORTS | memory.word(bucket, way, A::KEY - 1) & !PORTS;
    for (index, word) in words.iter_mut().enumerate().skip(A::KEY) {
        *word = memory.word(bucket, way, index);
    }
    memory.fence();
    // Marks may come meanwhile: they change nothing that was copied.
    if (memory.control(bucket, way) ^ control) & !ALL_MARKS == 0 {
        Pass::Done(Some((bucket, way, control)))
    } else {
        Pass::Again
    }
}

#[inline(always)]
fn set<'a, A: FlowWords, M: Memory>(memory: &'a M, item: &impl Wanted<A>) -> Option<Set<'a, M>> {
    let FlowPlace { first, second, way } = item.place();
    Some(Set { memory, first: memory.bucket(first)?, second: memory.bucket(second)?, way: way as usize })
}

/// Notes on an entry that was just read that a packet has used it; `closes` says that it ends its direction. Returns true
/// if it is the first packet in this unit of time.
#[inline(always)]
pub fn touch<A: FlowWords, M: Memory>(
    memory: &M,
    item: &mut Item<A>,
    found: (M::Bucket, usize, u64),
    now: u32,
    closes: bool,
) -> bool {
    let (bucket, way, control) = found;
    let marks = u64::from(if closes { MARK_CLOSING | MARK_USED } else { MARK_USED }) << 8;
    if control & marks != marks {
        let other = memory.swap_if(bucket, way, control, control | marks);
        // Another packet has marked it, or the slot is another flow's. There are two marks, so it happens once.
        if other != control && (other ^ control) & !ALL_MARKS == 0 {
            memory.swap_if(bucket, way, other, other | marks);
        }
    }
    let words = item.words.as_mut();
    let last = words.len() - 1;
    if words[last] == u64::from(now) {
        return false;
    }
    // The slot may be another flow's by now: that one is as young.
    memory.set_word(bucket, way, last, u64::from(now));
    words[last] = u64::from(now);
    true
}

/// What a writer found; the slot and its control word are noted.
enum Survey {
    /// The key is there.
    Present,
    /// A slot to claim.
    Room,
    /// Others are at work everywhere.
    None,
}

/// The note of a slot. While slots are compared it has their points above it.
const SLOT: usize = 0;
/// The note of its control word.
const CONTROL: usize = 1;

/// Makes an entry, or replaces the value of the one that is there unless `only_if_absent`.
#[inline(always)]
pub fn write_once<A: FlowWords, M: Memory>(
    memory: &M,
    item: &mut impl Wanted<A>,
    only_if_absent: bool,
) -> Pass<Insert> {
    let Some(set) = set(memory, item) else { return Pass::Done(Insert::Full) };
    let found = survey(&set, item);
    let control = item.noted(CONTROL);
    let (bucket, way) = set.at(mine::<A, M>(item));
    match found {
        Survey::Present if only_if_absent && state(control) != SLOT_PENDING => Pass::Done(Insert::Taken),
        Survey::Present if state(control) == SLOT_LIVE => {
            let new = next_version(control) | item.control();
            if memory.swap_if(bucket, way, control, in_state(new, SLOT_CHANGING)) != control {
                return Pass::Again;
            }
            write_words(&set, bucket, way, A::KEY - 1, item);
            memory.put_control(bucket, way, in_state(new, SLOT_LIVE));
            Pass::Done(Insert::Done)
        }
        Survey::Room => {
            if memory.swap_if(bucket, way, control, in_state(next_version(control), SLOT_BUSY)) != control {
                return Pass::Again;
            }
            item.note(CONTROL, next_version(control));
            write_words(&set, bucket, way, 0, item);
            memory.put_control(bucket, way, in_state(item.noted(CONTROL) | item.control(), SLOT_PENDING));
            if prevails(&set, item) {
                let new = item.noted(CONTROL) | item.control();
                let pending = in_state(new, SLOT_PENDING);
                if memory.swap_if(bucket, way, pending, in_state(new, SLOT_LIVE)) == pending {
                    return Pass::Done(Insert::Done);
                }
            }
            memory.put_control(bucket, way, in_state(item.noted(CONTROL), SLOT_FREE));
            if only_if_absent { Pass::Done(Insert::Taken) } else { Pass::Again }
        }
        Survey::Present | Survey::None => Pass::Again,
    }
}

/// Writes the words of an entry from `from` on.
#[inline(always)]
fn write_words<A: FlowWords, M: Memory>(
    set: &Set<'_, M>,
    bucket: M::Bucket,
    way: usize,
    from: usize,
    item: &impl Wanted<A>,
) {
    for index in from..A::COUNT {
        set.memory.set_word(bucket, way, index, item.word(index));
    }
}

/// Looks for the key, and for the slot that a new entry would be at: the first that is free, else the one with the least
/// to lose.
#[inline(always)]
fn survey<A: FlowWords, M: Memory>(set: &Set<'_, M>, item: &mut impl Wanted<A>) -> Survey {
    let memory = set.memory;
    let last = A::COUNT - 1;
    item.note(SLOT, 0);
    for slot in 0..2 * M::WAYS {
        let (bucket, way) = set.at(slot);
        let control = memory.control(bucket, way);
        // If it was claimed meanwhile by a writer of the same key, the two will meet in `prevails`.
        if set.is_key(bucket, way, control, item) && set.is_still(bucket, way, control) {
            item.note(SLOT, slot as u64);
            item.note(CONTROL, control);
            return Survey::Present;
        }
        if slot == M::WAYS && item.noted(SLOT) >> 4 >= u64::from(OLD) {
            item.note(SLOT, item.noted(SLOT) | u64::from(FREE) << 4);
        }
        let points = match state(control) {
            SLOT_FREE => FREE,
            SLOT_LIVE => points(control, memory.word(bucket, way, last) as u32, item.word(last) as u32),
            _ => 0,
        };
        if u64::from(points) > item.noted(SLOT) >> 4 {
            item.note(SLOT, u64::from(points) << 4 | slot as u64);
            // The one it has now: read again later, it could be the key's own, live meanwhile.
            item.note(CONTROL, control);
        }
        if is_unclaimed(control) {
            break;
        }
    }
    if item.noted(SLOT) == 0 { Survey::None } else { Survey::Room }
}

/// How dispensable a live entry is, at least 1: its age, and more for those that lose least.
#[inline(always)]
fn points(control: u64, last_seen: u32, now: u32) -> u32 {
    let marks = control >> 8;
    let closing = (marks & u64::from(MARK_CLOSING)) / u64::from(MARK_CLOSING);
    let used = (marks & u64::from(MARK_USED)) / u64::from(MARK_USED);
    let age = now.wrapping_add(SKEW).wrapping_sub(last_seen) & (FREE >> 1);
    age + ((closing as u32) << CLOSING_SHIFT) + ((used as u32 ^ 1) << UNUSED_SHIFT)
}

/// Whether the writer whose pending slot is noted may go live: no other slot has the key. The writers of pending ones
/// behind it are told that they lost.
#[inline(always)]
fn prevails<A: FlowWords, M: Memory>(set: &Set<'_, M>, item: &impl Wanted<A>) -> bool {
    for _ in 0..RIVALS {
        let rival = rival(set, item);
        if rival == NOBODY {
            return true;
        }
        let (bucket, way) = set.at(rival);
        let control = set.memory.control(bucket, way);
        if state(control) == SLOT_PENDING && rival > mine::<A, M>(item) {
            if set.is_key(bucket, way, control, item) {
                set.memory.swap_if(bucket, way, control, in_state(control, SLOT_LOST));
            }
        } else if set.is_key(bucket, way, control, item) && set.is_still(bucket, way, control) {
            return false;
        }
    }
    false
}

const NOBODY: usize = usize::MAX;

/// The noted slot.
#[inline(always)]
fn mine<A: FlowWords, M: Memory>(item: &impl Wanted<A>) -> usize {
    item.noted(SLOT) as usize & (2 * M::WAYS - 1)
}

/// Another slot that seems to have the key. As in a search, a slot that was never claimed is where it ends.
#[inline(always)]
fn rival<A: FlowWords, M: Memory>(set: &Set<'_, M>, item: &impl Wanted<A>) -> usize {
    let memory = set.memory;
    for slot in 0..2 * M::WAYS {
        let (bucket, way) = set.at(slot);
        let control = memory.control(bucket, way);
        if set.is_key(bucket, way, control, item) && slot != mine::<A, M>(item) {
            return memory.opaque(slot);
        }
        if is_unclaimed(control) {
            break;
        }
    }
    NOBODY
}

/// Removes the entry of a key.
#[inline(always)]
pub fn remove_once<A: FlowWords, M: Memory>(memory: &M, item: &impl Wanted<A>) -> Pass<()> {
    let Some(set) = set(memory, item) else { return Pass::Done(()) };
    let Some((slot, control)) = set.search(item) else { return Pass::Done(()) };
    let (bucket, way) = set.at(memory.opaque(slot));
    let free = next_version(control) | u64::from(SLOT_FREE);
    if state(control) == SLOT_LIVE && memory.swap_if(bucket, way, control, free) == control {
        Pass::Done(())
    } else {
        Pass::Again
    }
}

/// Removes the entry of a key if its time is still `last_seen` and nobody is at work on it; true for one alone of those who
/// try.
#[inline(always)]
pub fn release<A: FlowWords, M: Memory>(memory: &M, item: &impl Wanted<A>, last_seen: u32) -> bool {
    let Some(set) = set(memory, item) else { return false };
    let Some((slot, control)) = set.search(item) else { return false };
    let (bucket, way) = set.at(memory.opaque(slot));
    let free = next_version(control) | u64::from(SLOT_FREE);
    state(control) == SLOT_LIVE
        && memory.word(bucket, way, A::COUNT - 1) as u32 == last_seen
        && memory.swap_if(bucket, way, control, free) == control
}

/// Repeats passes until one decides, [`PASSES`] times at most; at the bound it is decided as `at_bound`.
#[inline(always)]
pub fn repeat<T>(at_bound: T, mut pass: impl FnMut() -> Pass<T>) -> T {
    for _ in 0..PASSES {
        if let Pass::Done(result) = pass() {
            return result;
        }
    }
    at_bound
}

/// What a write comes to if others were ahead of it in every pass. A new entry's rival is another writer of its key: that
/// one has it.
#[inline(always)]
pub fn write_at_bound(only_if_absent: bool) -> Insert {
    if only_if_absent { Insert::Taken } else { Insert::Full }
}
