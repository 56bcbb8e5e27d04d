//! SOURCE_RANGES_V4/V6: `loadBalancerSourceRanges`, which clients outside the cluster may use a load balancer's address.

/// What a key of SOURCE_RANGES matches, behind the length of the prefix in bits (`struct bpf_lpm_trie_key`). The service id
/// is always matched whole, so the length is 32 plus that of the range.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourcePrefix<A> {
    /// Service id.
    pub service: u32,
    /// First address of the range, *network order*.
    pub address: A,
}

/// Bits of [`SourcePrefix::service`].
pub const SERVICE_BITS: u32 = 32;

const _: () = assert!(size_of::<SourcePrefix<[u8; 4]>>() == 8);
const _: () = assert!(size_of::<SourcePrefix<[u8; 16]>>() == 20);
