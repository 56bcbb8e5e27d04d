//! The maps whose layouts userspace shares: keys, values and sizes, and nothing that reads or writes them.
//!
//! Sizes here are defaults; the agent sets them at load.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use svc_common::{
    Affinity, AffinityKey, Announced, AnnouncedKey, Backend, Cidr, Config, Counters, FragmentKey, Frontend,
    FrontendKey, Held, Interface, Ports, Reason, ServiceName, SlotLine, SocketBackend, SocketKey, SocketPeer,
    SourcePrefix,
    filter::{FILTER_WORDS, UNUSUAL as UNUSUAL_LEN},
    fragment::HELD_PLACES,
    masquerade::PORTS,
    vip::SERVICE_CIDRS,
};

use super::{A4, A6};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
pub(super) static FRONTENDS_V4: HashMap<FrontendKey<A4>, Frontend, 65536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(super) static FRONTENDS_V6: HashMap<FrontendKey<A6>, Frontend, 65536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(super) static SLOTS: Array<SlotLine, 262144, MMAPABLE> = Array::new();
#[btf_map]
pub(super) static BACKENDS_V4: Array<Backend<A4>, 131072, MMAPABLE> = Array::new();
#[btf_map]
pub(super) static BACKENDS_V6: Array<Backend<A6>, 131072, MMAPABLE> = Array::new();
#[btf_map]
pub(super) static AFFINITY_V4: LruHashMap<AffinityKey<A4>, Affinity, 65536> = LruHashMap::new();
#[btf_map]
pub(super) static AFFINITY_V6: LruHashMap<AffinityKey<A6>, Affinity, 65536> = LruHashMap::new();
#[btf_map]
pub(super) static VIPS_V4: HashMap<A4, u32, 65536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(super) static VIPS_V6: HashMap<A6, u32, 65536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(super) static SERVICE_CIDRS_V4: Array<Cidr<A4>, { SERVICE_CIDRS as usize }> = Array::new();
#[btf_map]
pub(super) static SERVICE_CIDRS_V6: Array<Cidr<A6>, { SERVICE_CIDRS as usize }> = Array::new();
#[btf_map]
pub(super) static SOURCE_RANGES_V4: LpmTrie<SourcePrefix<A4>, u32, 65536> = LpmTrie::new();
#[btf_map]
pub(super) static SOURCE_RANGES_V6: LpmTrie<SourcePrefix<A6>, u32, 65536> = LpmTrie::new();
#[btf_map]
pub(super) static MASQUERADE_V4: HashMap<u32, A4, 4096, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(super) static MASQUERADE_V6: HashMap<u32, A6, 4096, NO_PREALLOC> = HashMap::new();
/// Of the ports of `svc_common::masquerade`, those that were reserved before: a bit each. The agent's alone.
#[btf_map]
pub(super) static RESERVED: Array<u64, { (PORTS / 64) as usize }> = Array::new();
#[btf_map]
pub(super) static FILTER: Array<u64, { FILTER_WORDS as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub(super) static UNUSUAL: Array<u64, { UNUSUAL_LEN as usize }> = Array::new();
#[btf_map]
pub(super) static FRAGMENTS_V4: LruHashMap<FragmentKey<A4>, Ports, 8192> = LruHashMap::new();
#[btf_map]
pub(super) static FRAGMENTS_V6: LruHashMap<FragmentKey<A6>, Ports, 8192> = LruHashMap::new();
#[btf_map]
pub(super) static HELD_V4: Array<Held, { HELD_PLACES as usize }> = Array::new();
#[btf_map]
pub(super) static HELD_V6: Array<Held, { HELD_PLACES as usize }> = Array::new();
#[btf_map]
pub(super) static SOCKETS_V4: LruHashMap<SocketKey<A4>, SocketBackend, 16384> = LruHashMap::new();
#[btf_map]
pub(super) static SOCKETS_V6: LruHashMap<SocketKey<A6>, SocketBackend, 16384> = LruHashMap::new();
#[btf_map]
pub(super) static PEERS_V4: LruHashMap<SocketKey<A4>, SocketPeer<A4>, 65536> = LruHashMap::new();
#[btf_map]
pub(super) static PEERS_V6: LruHashMap<SocketKey<A6>, SocketPeer<A6>, 65536> = LruHashMap::new();
#[btf_map]
pub(super) static STATS_SERVICE: PerCpuArray<Counters, 32768> = PerCpuArray::new();
#[btf_map]
pub(super) static STATS_BACKEND: PerCpuArray<Counters, 131072> = PerCpuArray::new();
#[btf_map]
pub(super) static DROPS: PerCpuArray<Counters, { Reason::COUNT as usize }> = PerCpuArray::new();
#[btf_map]
pub(super) static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub(super) static ANNOUNCED: HashMap<AnnouncedKey, Announced, 16384, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(super) static INTERFACES: HashMap<u32, Interface, 16384, NO_PREALLOC> = HashMap::new();
/// Written and read by userspace only; it is here so that its layout stands in the object's BTF like all others.
#[btf_map]
pub(super) static SERVICES: HashMap<u32, ServiceName, 32768, NO_PREALLOC> = HashMap::new();
