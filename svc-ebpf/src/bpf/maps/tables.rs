//! [`Tables`] on the maps: what the packet path reads and writes besides a decision. It calls, as global functions, what the
//! verifier would walk too often.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::lpm_trie::Key,
};
use svc_common::{
    Address as _, Flow, FlowKey, FragmentKey, Interface, Ports, Reason, SourcePrefix,
    config::{CONFIG_BRIDGES, CONFIG_FILTER, CONFIG_MASQUERADE, CONFIG_PORTS_RESERVED},
    filter::{KNOWN_ENDPOINT, filter_place, unusual_place},
    source_range::SERVICE_BITS,
};
use svc_ebpf::{
    Verdict,
    cache::Moment,
    decide::Decision,
    frame::Frame,
    masquerade::{Outcome, Task},
    open::Attempt,
    scratch::Scratch,
    tables::{Drops as _, Insert, Tables},
};

use super::{
    A4, A6, Maps,
    clock::may_refuse,
    count::add,
    globals::{
        svc_attempt_v4, svc_attempt_v6, svc_claim_v4, svc_claim_v6, svc_decide_v4, svc_decide_v6, svc_masq_v4,
        svc_masq_v6, svc_port_v4, svc_port_v6, svc_recover_v4, svc_recover_v6, svc_remember_v4, svc_remember_v6,
        svc_try_v4, svc_try_v6,
    },
    held::{
        svc_hold_at_v4, svc_hold_at_v6, svc_hold_v4, svc_hold_v6, svc_lead_v4, svc_lead_v6, svc_release_v4,
        svc_release_v6,
    },
    scratch::with,
    settings::{bits, config, has},
    statics::{
        FRAGMENTS_V4, FRAGMENTS_V6, INTERFACES, MASQUERADE_V4, MASQUERADE_V6, SOURCE_RANGES_V4, SOURCE_RANGES_V6,
        STATS_BACKEND, STATS_SERVICE, UNUSUAL,
    },
};
#[cfg(feature = "array-flows")]
use crate::bpf::flows_array::FlowTable as _;
#[cfg(not(feature = "array-flows"))]
use crate::bpf::flows_lru::FlowTable as _;

const EEXIST: i32 = 17;

macro_rules! family {
    (
        $address:ty, $fragments:ident, $sources:ident, $masquerades:ident, $attempt:ident, $claim:ident, $recover:ident, $recover_one:ident, $decide:ident, $remember:ident,
        $masquerade:ident, $try_port:ident, $hold:ident, $lead:ident, $hold_at:ident, $release:ident
    ) => {
        impl Tables<$address> for Maps {
            #[inline(always)]
            fn release_flow(&mut self, key: &FlowKey<$address>, last_seen: u32) -> bool {
                <$address>::release(key, last_seen)
            }

            #[inline(always)]
            fn masquerade_source(&mut self) -> Option<$address> {
                // SAFETY: copied at once.
                unsafe { $masquerades.get(&self.interface) }.map(|address| address.copy())
            }

            #[inline(always)]
            fn programs_masquerade(&mut self) -> bool {
                config().flags & CONFIG_MASQUERADE != 0
            }

            #[inline(always)]
            fn owns_ports(&mut self) -> bool {
                config().flags & (CONFIG_MASQUERADE | CONFIG_PORTS_RESERVED) != 0
            }

            #[inline(always)]
            fn masquerade(&mut self, scratch: &mut Scratch<$address>, task: Task) -> Outcome {
                Outcome::from_u32(with(scratch, || $masquerade(self.interface, task as u32)))
            }

            #[inline(always)]
            fn try_port(&mut self, scratch: &mut Scratch<$address>, number: u32) -> Outcome {
                Outcome::from_u32(with(scratch, || $try_port(number)))
            }

            #[inline(always)]
            fn hold_early<F: Frame>(&mut self, _frame: &mut F, scratch: &mut Scratch<$address>) -> Verdict {
                if with(scratch, || $hold(self.skb)) == 1 { Verdict::Held } else { Verdict::Pass }
            }

            #[inline(always)]
            fn lead<F: Frame>(&mut self, _frame: &mut F, scratch: &mut Scratch<$address>) -> bool {
                with(scratch, || $lead(self.skb)) == 1
            }

            #[inline(always)]
            fn hold<F: Frame>(&mut self, _frame: &mut F, tag: u32, position: u32) -> bool {
                $hold_at(self.skb, tag, position) == 1
            }

            #[inline(always)]
            fn release<F: Frame>(&mut self, _frame: &mut F, tag: u32, position: u32) {
                $release(self.skb, tag, position);
            }

            #[inline(always)]
            fn insert_fragment(&mut self, key: &FragmentKey<$address>, ports: Ports) -> Insert {
                match $fragments.insert(key, &ports, u64::from(BPF_NOEXIST)) {
                    Ok(()) => Insert::Done,
                    Err(error) if error == -EEXIST => Insert::Taken,
                    Err(_) => Insert::Full,
                }
            }

            #[inline(always)]
            fn count_loss(&mut self, reason: Reason, bytes: u32) {
                self.count_drop(reason, bytes);
            }

            #[inline(always)]
            fn decide(&mut self, scratch: &mut Scratch<$address>) -> Decision {
                Decision::from_u32(with(scratch, || $decide(self.interface)))
            }

            #[inline(always)]
            fn source_allowed(&mut self, service: u32, client: &$address) -> bool {
                let prefix = SourcePrefix { service, address: *client };
                let bits = SERVICE_BITS + 8 * core::mem::size_of::<$address>() as u32;
                $sources.get(&Key::new(bits, prefix)).is_some()
            }

            #[inline(always)]
            fn is_target(&mut self, address: &$address, port: u16, protocol: u8) -> bool {
                bits(filter_place(address, port, protocol)) & KNOWN_ENDPOINT != 0
            }

            #[inline(always)]
            fn is_unusual(&mut self, source: &$address, destination: &$address) -> bool {
                !has(CONFIG_FILTER) || UNUSUAL.get(unusual_place(source, destination)).is_none_or(|seen| *seen != 0)
            }

            #[inline(always)]
            fn set_unusual(&mut self, source: &$address, destination: &$address) {
                if let Some(seen) = UNUSUAL.get_ptr_mut(unusual_place(source, destination)) {
                    // SAFETY: a value of an array; nobody ever writes anything else.
                    unsafe { seen.write_volatile(1) };
                }
            }

            #[inline(always)]
            fn has_bridges(&mut self) -> bool {
                has(CONFIG_BRIDGES)
            }

            #[inline(always)]
            fn may_refuse(&mut self) -> bool {
                may_refuse()
            }

            #[inline(always)]
            fn attempt(&mut self, scratch: &mut Scratch<$address>, number: u32) -> Attempt {
                match with(scratch, || $attempt(number)) {
                    0 => Attempt::Opened,
                    2 => Attempt::Taken,
                    3 => Attempt::Full,
                    _ => Attempt::NoBackend,
                }
            }

            #[inline(always)]
            fn claim_entry(&mut self, scratch: &mut Scratch<$address>) -> Insert {
                match with(scratch, || $claim()) {
                    0 => Insert::Done,
                    1 => Insert::Taken,
                    _ => Insert::Full,
                }
            }

            #[inline(always)]
            fn recover(&mut self, scratch: &mut Scratch<$address>) -> bool {
                with(scratch, || $recover()) != 0
            }

            #[inline(always)]
            fn recover_one(&mut self, scratch: &mut Scratch<$address>, number: u32) -> bool {
                with(scratch, || $recover_one(number)) != 0
            }

            #[inline(always)]
            fn flow(&mut self, key: &FlowKey<$address>, closes: bool, into: &mut Flow<$address>) -> Option<bool> {
                <$address>::flow(key, closes, into)
            }

            #[inline(always)]
            fn peek_flow(&mut self, key: &FlowKey<$address>, into: &mut Flow<$address>) -> bool {
                <$address>::peek(key, into)
            }

            #[inline(always)]
            fn insert_flow(&mut self, key: &FlowKey<$address>, flow: &Flow<$address>) -> Insert {
                <$address>::write(key, flow, true)
            }

            #[inline(always)]
            fn replace_flow(&mut self, key: &FlowKey<$address>, flow: &Flow<$address>) -> bool {
                <$address>::write(key, flow, false) == Insert::Done
            }

            #[inline(always)]
            fn remove_flow(&mut self, key: &FlowKey<$address>) {
                <$address>::remove(key);
            }

            #[inline(always)]
            fn fragment(&mut self, key: &FragmentKey<$address>) -> Option<Ports> {
                // SAFETY: copied at once.
                unsafe { $fragments.get(key) }.copied()
            }

            #[inline(always)]
            fn remember_fragment(&mut self, key: &FragmentKey<$address>, ports: Ports) {
                // Without the entry later fragments are held for a first one that has been here.
                let _ = $fragments.insert(key, &ports, u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn interface(&mut self) -> Interface {
                // SAFETY: copied at once.
                unsafe { INTERFACES.get(&self.interface) }.copied().unwrap_or_default()
            }

            #[inline(always)]
            fn masquerade_mark(&mut self) -> u32 {
                config().masquerade_mark
            }

            #[inline(always)]
            fn leave_by(&mut self, interface: u32) {
                self.interface = interface;
            }

            #[inline(always)]
            fn remember(
                &mut self,
                incoming: &mut Scratch<$address>,
                outgoing: &mut Scratch<$address>,
                came_by: u32,
                moment: Moment,
            ) {
                with(incoming, || with(outgoing, || $remember(came_by, moment.now, moment.generation)));
            }

            #[inline(always)]
            fn count_new(&mut self, flow: &Flow<$address>) {
                add(STATS_SERVICE.get_ptr_mut(flow.service), 0, 0, 1);
                add(STATS_BACKEND.get_ptr_mut(flow.backend), 0, 0, 1);
            }

            #[inline(always)]
            fn count(&mut self, flow: &Flow<$address>, bytes: u32, is_new: bool) {
                let (bytes, new) = (u64::from(bytes), u64::from(is_new));
                add(STATS_SERVICE.get_ptr_mut(flow.service), 1, bytes, new);
                add(STATS_BACKEND.get_ptr_mut(flow.backend), 1, bytes, new);
            }
        }
    };
}

family!(
    A4,
    FRAGMENTS_V4,
    SOURCE_RANGES_V4,
    MASQUERADE_V4,
    svc_attempt_v4,
    svc_claim_v4,
    svc_recover_v4,
    svc_try_v4,
    svc_decide_v4,
    svc_remember_v4,
    svc_masq_v4,
    svc_port_v4,
    svc_hold_v4,
    svc_lead_v4,
    svc_hold_at_v4,
    svc_release_v4
);
family!(
    A6,
    FRAGMENTS_V6,
    SOURCE_RANGES_V6,
    MASQUERADE_V6,
    svc_attempt_v6,
    svc_claim_v6,
    svc_recover_v6,
    svc_try_v6,
    svc_decide_v6,
    svc_remember_v6,
    svc_masq_v6,
    svc_port_v6,
    svc_hold_v6,
    svc_lead_v6,
    svc_hold_at_v6,
    svc_release_v6
);
