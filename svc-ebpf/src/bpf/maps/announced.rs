//! ANNOUNCED, and the global function that answers for what is in it.

use aya_ebpf::{bindings::__sk_buff, btf_maps::PerCpuArray, macros::btf_map};
use svc_common::AnnouncedKey;
use svc_ebpf::announce::{ARP, Announcements, Room, arp, neighbour};

use super::statics::ANNOUNCED;
use crate::bpf::frames::SkbFrame;

/// Working memory, as in `scratch`.
#[btf_map]
static ROOM: PerCpuArray<Room, 1> = PerCpuArray::new();

/// What is announced on an interface.
struct On(u32);

impl On {
    #[inline(always)]
    fn find(key: &AnnouncedKey, mac: &mut [u8; 6]) -> bool {
        // SAFETY: copied at once.
        match unsafe { ANNOUNCED.get(key) } {
            Some(announced) => {
                *mac = announced.mac;
                true
            }
            None => false,
        }
    }
}

impl Announcements for On {
    #[inline(always)]
    fn v4(&self, address: &[u8; 4], mac: &mut [u8; 6]) -> bool {
        Self::find(&AnnouncedKey::v4(*address, self.0), mac)
    }

    #[inline(always)]
    fn v6(&self, address: &[u8; 16], mac: &mut [u8; 6]) -> bool {
        Self::find(&AnnouncedKey::v6(*address, self.0), mac)
    }
}

/// A global function: the verifier walks it once, by its signature, and it adds nothing to the stack of the packet path. 1 if
/// the packet is an answer now.
#[unsafe(no_mangle)]
#[inline(never)]
#[expect(unreachable_pub, reason = "it is public to the linker, which would make it a static function otherwise")]
pub extern "C" fn svc_announce(skb: *mut __sk_buff) -> u32 {
    let mut frame = SkbFrame::new(skb);
    // A tag that the kernel keeps beside the packet: it belongs to another device.
    if frame.is_tagged() {
        return 0;
    }
    // SAFETY: of this CPU alone, like all scratch memory.
    let Some(room) = ROOM.get_ptr_mut(0).map(|room| unsafe { &mut *room }) else { return 0 };
    let on = On(frame.interface());
    let answered = if frame.ethertype() == ARP { arp(&mut frame, &on, room) } else { neighbour(&mut frame, &on, room) };
    u32::from(answered)
}
