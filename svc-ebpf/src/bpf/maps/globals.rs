//! Global functions: parts of the packet path that the verifier walks once, by their signatures, and not at each call.
//!
//! Each looks its scratch memory up itself and calls the pure logic; nothing is decided here.

use svc_common::{Hook, vip::SERVICE_CIDRS};
use svc_ebpf::{
    cache::{Cache, Moment, remember},
    decide::{Decision, decide},
    masquerade::{Outcome, Task, masquerade, try_port},
    open::{Attempt, attempt, claim_entry},
    recover::{recover, recover_one},
    tables::Insert,
};

use super::{
    A4, A6, Maps,
    scratch::HasScratch as _,
    statics::{SERVICE_CIDRS_V4, SERVICE_CIDRS_V6},
};

macro_rules! family {
    ($address:ty, $cidrs:ident, $in_cidr:ident, $attempt:ident, $claim:ident, $recover:ident, $recover_one:ident, $decide:ident, $remember:ident, $masquerade:ident, $try_port:ident) => {
        /// A global function, as below. 1 if the address is in SERVICE_CIDRS.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as below")]
        pub extern "C" fn $in_cidr(address: *const $address) -> u32 {
            // To the verifier a pointer that comes as an argument may be null.
            // SAFETY: the only caller passes a reference.
            let Some(address) = (unsafe { address.as_ref() }) else { return 0 };
            let mut found = false;
            for index in 0..SERVICE_CIDRS {
                found |= $cidrs.get(index).is_some_and(|cidr| cidr.contains(address));
            }
            u32::from(found)
        }

        /// A global function: the verifier walks it once, by its signature (Linux 5.6; memory arguments 5.12). Returns an
        /// [`Attempt`] as a number.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(
            unreachable_pub,
            reason = "it is public to the linker, which would make it a static function otherwise"
        )]
        pub extern "C" fn $attempt(number: u32) -> i32 {
            // Not an argument: before Linux 6.2 memory that came as one is no key and no value of a map ("R2 type=mem
            // expected=fp, pkt, pkt_meta, map_key, map_value", commit d1673304097c).
            let Some(scratch) = <$address>::scratch(Hook::Ingress) else { return Attempt::NoBackend as i32 };
            attempt(&mut Maps::without_packet(), scratch, number) as i32
        }

        /// As above; returns an [`Insert`] as a number.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $claim() -> i32 {
            let Some(scratch) = <$address>::scratch(Hook::Ingress) else { return Insert::Full as i32 };
            claim_entry(&mut Maps::without_packet(), scratch) as i32
        }

        /// As above; 1 if it found the connection.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $recover() -> u32 {
            let Some(scratch) = <$address>::scratch(Hook::Ingress) else { return 0 };
            u32::from(recover(&mut Maps::without_packet(), scratch))
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $recover_one(number: u32) -> u32 {
            let Some(scratch) = <$address>::scratch(Hook::Ingress) else { return 0 };
            u32::from(recover_one(&mut Maps::without_packet(), scratch, number))
        }

        /// As above; returns a [`Decision`] as a number.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $decide(interface: u32) -> u32 {
            let Some(scratch) = <$address>::scratch(Hook::Ingress) else { return Decision::Pass.to_u32() };
            decide(&mut Maps { interface, ..Maps::without_packet() }, scratch).to_u32()
        }

        /// As above: remembers the flow of both scratches, whose packet came in by an interface, as of the moment when its
        /// way was asked for. Returns 0.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $remember(came_by: u32, now: u32, generation: u32) -> u32 {
            let mut maps = Maps::without_packet();
            let (Some(incoming), Some(outgoing)) =
                (<$address>::scratch(Hook::Ingress), <$address>::scratch(Hook::Egress))
            else {
                return 0;
            };
            let moment = Cache::<$address>::moment(&mut maps);
            remember(&mut maps, incoming, outgoing, came_by, Moment { now, generation, ..moment });
            0
        }

        /// As above, with a [`Task`] as a number; returns an [`Outcome`] as a number.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $masquerade(interface: u32, task: u32) -> u32 {
            let Some(scratch) = <$address>::scratch(Hook::Egress) else { return Outcome::Pass as u32 };
            masquerade(&mut Maps { interface, ..Maps::without_packet() }, scratch, Task::from_u32(task)) as u32
        }

        /// As above; returns an [`Outcome`] as a number.
        #[unsafe(no_mangle)]
        #[inline(never)]
        #[expect(unreachable_pub, reason = "as above")]
        pub extern "C" fn $try_port(number: u32) -> u32 {
            let Some(scratch) = <$address>::scratch(Hook::Egress) else { return Outcome::Taken as u32 };
            try_port(&mut Maps::without_packet(), scratch, number) as u32
        }
    };
}

family!(
    A4,
    SERVICE_CIDRS_V4,
    svc_in_cidr_v4,
    svc_attempt_v4,
    svc_claim_v4,
    svc_recover_v4,
    svc_try_v4,
    svc_decide_v4,
    svc_remember_v4,
    svc_masq_v4,
    svc_port_v4
);
family!(
    A6,
    SERVICE_CIDRS_V6,
    svc_in_cidr_v6,
    svc_attempt_v6,
    svc_claim_v6,
    svc_recover_v6,
    svc_try_v6,
    svc_decide_v6,
    svc_remember_v6,
    svc_masq_v6,
    svc_port_v6
);
