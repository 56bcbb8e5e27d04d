//! Marks the generic map types as plain old data, and lets aya use all of them as map keys and values.

#![expect(unsafe_code, reason = "Pod is an unsafe trait; the derive macro cannot see through type parameters")]

use bytemuck::{Pod, Zeroable};

use crate::{
    AffinityKey, Backend, Cidr, Flow, FlowBucket, FlowKey, FragmentKey, FrontendKey, SocketKey, SocketPeer,
    SourcePrefix,
};

macro_rules! pod_in_both_families {
    ($($name:ident),*) => {$(
        // SAFETY: all-zero bytes are a valid value of every field (byte arrays and integers).
        unsafe impl Zeroable for $name<[u8; 4]> {}
        // SAFETY: as above.
        unsafe impl Zeroable for $name<[u8; 16]> {}
        // SAFETY: repr(C), fields are integers and byte arrays, and the size asserted beside the type is the sum of its
        // fields' sizes, so there is no padding.
        unsafe impl Pod for $name<[u8; 4]> {}
        // SAFETY: as above.
        unsafe impl Pod for $name<[u8; 16]> {}
        #[cfg(feature = "user")]
        // SAFETY: the type is Pod as just argued.
        unsafe impl aya::Pod for $name<[u8; 4]> {}
        #[cfg(feature = "user")]
        // SAFETY: the type is Pod as just argued.
        unsafe impl aya::Pod for $name<[u8; 16]> {}
    )*};
}

pod_in_both_families!(
    AffinityKey,
    Backend,
    Cidr,
    Flow,
    FlowKey,
    FragmentKey,
    FrontendKey,
    SocketKey,
    SocketPeer,
    SourcePrefix
);

// SAFETY: all-zero bytes are valid slots.
unsafe impl<S: Zeroable> Zeroable for FlowBucket<S> {}
// SAFETY: repr(C), and nothing but an array of a type without padding.
unsafe impl<S: Pod> Pod for FlowBucket<S> {}

#[cfg(feature = "user")]
// SAFETY: the type is Pod as just argued.
unsafe impl aya::Pod for FlowBucket<crate::FlowSlotV4> {}
#[cfg(feature = "user")]
// SAFETY: as above.
unsafe impl aya::Pod for FlowBucket<crate::FlowSlotV6> {}

#[cfg(feature = "user")]
mod aya_pod {
    use crate::{
        Affinity, Announced, AnnouncedKey, CacheState, Config, Counters, Frontend, Held, Interface, Ports, ServiceName,
        SlotLine, SocketBackend,
    };

    macro_rules! pod {
        ($($name:ident),*) => {$(
            // SAFETY: the type derives bytemuck::Pod, which checks what aya::Pod asks for.
            unsafe impl aya::Pod for $name {}
        )*};
    }

    pod!(
        Affinity,
        Announced,
        AnnouncedKey,
        CacheState,
        Config,
        Counters,
        Frontend,
        Held,
        Interface,
        Ports,
        ServiceName,
        SlotLine,
        SocketBackend
    );
}
