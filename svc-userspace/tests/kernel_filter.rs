//! The filter in front of the programs: set before what it stands for, whole before it is used, and kept for flows that
//! outlive their Service.

mod kernel_support;

use aya::maps::{Array, HashMap, Map, MapData};
use kernel_support::{Place, in_place, object};
use svc_common::{
    Config, Flow, FlowKey, FlowState, Hook, SocketKey, SocketPeer,
    config::CONFIG_FILTER,
    filter::{KNOWN_ENDPOINT, KNOWN_FRONTEND, filter_place, unusual_place},
    flow::{FLOW_HAIRPIN, FLOW_INSIDE},
    protocol::{TCP, UDP},
};
use svc_userspace::{
    kernel::Dataplane,
    tables::{FilterWords, Op},
};

fn map<T: TryFrom<Map>>(place: &Place, name: &str) -> T
where
    T::Error: std::fmt::Debug,
{
    let pin = place.bpffs.join(format!("layout-{}/maps/{name}", svc_common::LAYOUT_VERSION));
    T::try_from(Map::from_map_data(MapData::from_pin(pin).expect("a pinned map")).expect("a map")).expect("its type")
}

fn is_known(place: &Place, address: [u8; 4], port: u16, protocol: u8, bit: u32) -> bool {
    let filter: Array<MapData, u64> = map(place, "FILTER");
    let number = filter_place(&address, port, protocol);
    filter.get(&(number / 64), 0).expect("a word") >> (number % 64) & u64::from(bit) != 0
}

fn is_in_use(place: &Place) -> bool {
    map::<Array<MapData, Config>>(place, "CONFIG").get(&0, 0).expect("CONFIG").flags & CONFIG_FILTER != 0
}

const CLIENT: [u8; 4] = [10, 0, 0, 1];
const BACKEND: [u8; 4] = [10, 0, 0, 2];
const VIP: [u8; 4] = [10, 96, 0, 1];

fn key(source: ([u8; 4], u16), destination: ([u8; 4], u16), hook: Hook) -> FlowKey<[u8; 4]> {
    FlowKey {
        source: source.0,
        destination: destination.0,
        source_port: source.1,
        destination_port: destination.1,
        protocol: TCP,
        hook: hook as u8,
        pad: [0; 2],
    }
}

fn flow(address: [u8; 4], port: u16, flags: u8) -> Flow<[u8; 4]> {
    Flow { address, port, state: FlowState::Open as u8, flags, ..Flow::empty() }
}

#[test]
fn bits_of_flows_and_sockets_outlive_their_service_and_others_are_swept() {
    in_place(|place| {
        let (mut dataplane, _) = Dataplane::start_with_object(&place.options(), &object()).expect("it starts");
        assert!(!is_in_use(place), "nothing is known yet");
        let mut flows: HashMap<MapData, FlowKey<[u8; 4]>, Flow<[u8; 4]>> = map(place, "FLOWS_V4");
        let forward = key((CLIENT, 1000), (VIP, 80), Hook::Ingress);
        flows.insert(forward, flow(BACKEND, 8080, FLOW_INSIDE), 0).expect("an entry");
        let reply = key(([10, 0, 0, 3], 9090), (CLIENT, 1001), Hook::Egress);
        flows.insert(reply, flow([10, 96, 0, 2], 81, FLOW_INSIDE), 0).expect("an entry");
        let inbound = key(([10, 0, 0, 4], 7070), (VIP, 1002), Hook::Ingress);
        flows.insert(inbound, flow([10, 0, 0, 4], 1002, FLOW_INSIDE | FLOW_HAIRPIN), 0).expect("an entry");
        let mut peers: HashMap<MapData, SocketKey<[u8; 4]>, SocketPeer<[u8; 4]>> = map(place, "PEERS_V4");
        let socket = SocketKey { cookie: [1, 0], address: BACKEND, port: 53, protocol: UDP, pad: 0 };
        peers.insert(socket, SocketPeer { address: VIP, port: 53, pad: [0; 2] }, 0).expect("an entry");

        let stale = filter_place(&[192, 0, 2, 1], 1, TCP);
        let used = filter_place(&[192, 0, 2, 2], 2, TCP);
        let set = |place: u32| Op::SetFilter(place / 64, u64::from(KNOWN_FRONTEND) << (place % 64));
        dataplane.apply(&[set(stale), set(used)]).expect("bits are set");
        assert!(is_known(place, [192, 0, 2, 1], 1, TCP, KNOWN_FRONTEND));

        let words = FilterWords::from([(used / 64, 1 << (used % 64))]);
        let left = dataplane.sweep_filter(words).expect("a sweep");
        for (address, port, protocol, bit) in [
            ([192, 0, 2, 2], 2, TCP, KNOWN_FRONTEND),
            (VIP, 80, TCP, KNOWN_FRONTEND),
            (BACKEND, 8080, TCP, KNOWN_ENDPOINT),
            ([10, 0, 0, 3], 9090, TCP, KNOWN_ENDPOINT),
            ([10, 96, 0, 2], 81, TCP, KNOWN_FRONTEND),
            (BACKEND, 53, UDP, KNOWN_ENDPOINT),
        ] {
            assert!(is_known(place, address, port, protocol, bit), "{address:?}:{port} {bit}");
        }
        assert!(!is_known(place, [192, 0, 2, 1], 1, TCP, KNOWN_FRONTEND), "nobody needs it");
        assert_eq!(left.values().map(|word| word.count_ones()).sum::<u32>(), 6);
        let unusual: Array<MapData, u64> = map(place, "UNUSUAL");
        assert_eq!(unusual.get(&unusual_place(&[10, 0, 0, 4], &VIP), 0).expect("an element"), 1);

        dataplane.set_synced().expect("a note");
        assert!(!is_in_use(place), "whether the filter is whole is another question");
        dataplane.trust_filter(true).expect("the filter is whole");
        assert!(is_in_use(place));
        drop(dataplane);
        let (_, observed) = Dataplane::start_with_object(&place.options(), &object()).expect("it starts again");
        assert!(!is_in_use(place), "until the new agent knows everything");
        assert_eq!(observed.filter.into_iter().collect::<FilterWords>(), left);
    });
}
