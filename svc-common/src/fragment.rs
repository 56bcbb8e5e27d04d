//! FRAGMENTS_V4/V6: later fragments carry no ports; the first one leaves them here. HELD_V4/V6: later fragments that came
//! before the first one, until it comes.

use bytemuck::{Pod, Zeroable};

use crate::{Address, flow_hash};

/// Key of FRAGMENTS: what all fragments of a datagram share (RFC 791 section 3.2, RFC 8200 section 4.5), as the hook sees
/// them *before* its rewrite. Aligned for the stack of a program: LLVM joins neighbouring fields into stores of 8 bytes,
/// which the verifier refuses where they are not aligned ("misaligned stack access").
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// Source address, *network order*.
    pub source: A,
    /// Destination address, *network order*.
    pub destination: A,
    /// Identification, *host order*; 16 bits wide in IPv4.
    pub id: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// [`crate::Hook`] as a number.
    pub hook: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Value of FRAGMENTS, both in *host order*.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Ports {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

impl Ports {
    /// What stands in FRAGMENTS while fragments are held and the first one has not come. No datagram has these ports.
    pub const AWAITED: Self = Self { source: 0, destination: 0 };
}

/// Bytes of a fragment that can be held, link header included: an MTU of 1,500, and a VLAN tag.
pub const HELD_BYTES: usize = 1520;
/// Places in a line of HELD. A fragment's offset says at which of them it lies, one for each KiB of the datagram.
pub const HELD_LINE: u32 = 64;
/// Lines of HELD.
pub const HELD_LINES: u32 = 4;
/// Places of HELD in each family: 400 KB.
pub const HELD_PLACES: u32 = HELD_LINE * HELD_LINES;
/// Units of 2^30 ns (1.07 s) after which a fragment waits no longer.
pub const HELD_TICKS: u32 = 3;

/// `struct bpf_spin_lock` (include/uapi/linux/bpf.h), which the kernel finds in a map's value by this name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct bpf_spin_lock {
    val: u32,
}

/// Value of HELD: a place for a fragment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Held {
    /// Guards `tag` and `busy`.
    pub lock: bpf_spin_lock,
    /// The datagram, see [`held_tag`]; 0: the place is free.
    pub tag: u32,
    /// Not 0 while a program reads or writes what follows.
    pub busy: u32,
    /// When the fragment came, in units of 2^30 ns of the monotonic clock.
    pub since: u32,
    /// Index of the interface that it came in by.
    pub interface: u32,
    /// Bytes of it.
    pub len: u32,
    /// The fragment as the hook saw it.
    pub bytes: [u8; HELD_BYTES],
}

impl Held {
    /// True if another fragment may take the place at `now`.
    #[inline(always)]
    pub fn is_free(&self, now: u32) -> bool {
        self.busy == 0 && (self.tag == 0 || self.is_over(now))
    }

    /// True if the fragment waits no longer.
    #[inline(always)]
    pub fn is_over(&self, now: u32) -> bool {
        now.wrapping_sub(self.since) >= HELD_TICKS
    }
}

/// What marks the fragments of a datagram in HELD; never 0. Two datagrams may have one mark: their fragments come in again
/// with each other's first one, and those that are still early are held again.
#[inline(always)]
pub fn held_tag<A: Address>(key: &FragmentKey<A>) -> u32 {
    flow_hash(&key.source, key.id as u16, &key.destination, (key.id >> 16) as u16, key.protocol) | 1 << 31
}

/// The places that a fragment may take, in two lines; `position` is its offset in the datagram, in KiB.
#[inline(always)]
pub fn held_places(tag: u32, position: u32) -> [u32; 2] {
    let lines = [tag, tag.wrapping_add(1 + (tag >> 8 & 1))];
    lines.map(|line| line % HELD_LINES * HELD_LINE + position % HELD_LINE)
}

const _: () = assert!(size_of::<Held>() == 24 + HELD_BYTES);
const _: () = assert!(size_of::<FragmentKey<[u8; 4]>>() == 16);
const _: () = assert!(size_of::<FragmentKey<[u8; 16]>>() == 40);
const _: () = assert!(size_of::<Ports>() == 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_choices_are_places_of_different_lines() {
        for tag in (0..2048_u32).map(|n| n | 1 << 31) {
            for position in 0..HELD_LINE {
                let [first, second] = held_places(tag, position);
                assert!(first < HELD_PLACES && second < HELD_PLACES);
                assert_ne!(first / HELD_LINE, second / HELD_LINE);
                assert_eq!(first % HELD_LINE, second % HELD_LINE);
            }
        }
    }
}
