//! How many packets the loaded programs refuse before they only drop them.

mod kernel_support;

use std::net::SocketAddr;

use aya::{
    EbpfLoader,
    maps::{HashMap, PerCpuArray},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use kernel_support::{in_place, object};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use svc_common::{Counters, Frontend, FrontendKey, Reason, protocol};
use svc_fuzz::craft::{Frame, Transport};

const TCX_DROP: u32 = 2;
const TCX_REDIRECT: u32 = 7;
/// Packets that a CPU refuses in a span of 2^27 ns (134 ms).
const A_SPAN: i64 = 128;
const PACKETS: i64 = 3000;

/// The number of the span.
fn span() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    (now.tv_sec() * 1_000_000_000 + now.tv_nsec()) >> 27
}

#[test]
fn a_flood_is_refused_within_limits_and_the_rest_is_dropped_and_counted() {
    in_place(|_| {
        let mut cpus = CpuSet::new();
        cpus.set(sched_getcpu().unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
        let mut ebpf = EbpfLoader::new().load(&object()).unwrap();
        // A Service that nobody serves.
        let (client, vip) = ([10, 1, 0, 1], [10, 96, 0, 1]);
        let mut frontends = HashMap::try_from(ebpf.map_mut("FRONTENDS_V4").unwrap()).unwrap();
        let frontend = Frontend { service: 1, ..Frontend::default() };
        frontends.insert(FrontendKey::new(vip, 80, protocol::UDP), frontend, 0).unwrap();
        let (from, to) = (SocketAddr::from((client, 40_000)), SocketAddr::from((vip, 80)));
        let packet = Frame::new(from, to, Transport::Udp).bytes();

        let (mut refused, mut dropped) = (0, 0);
        let first = span();
        let program: &mut SchedClassifier = ebpf.program_mut("svc_ingress").unwrap().try_into().unwrap();
        program.load().unwrap();
        for _ in 0..PACKETS {
            let mut options = TestRunOptions::new();
            options.data_in = Some(&packet);
            match program.test_run(options).unwrap().return_value {
                TCX_REDIRECT => refused += 1,
                TCX_DROP => dropped += 1,
                verdict => panic!("verdict {verdict}"),
            }
        }
        let spans = span() - first + 1;
        assert!(refused >= A_SPAN && refused <= A_SPAN * spans, "{refused} were refused in {spans} spans");
        assert!(dropped > 0, "{PACKETS} packets took {spans} spans: as many as may be refused");
        let drops = PerCpuArray::<_, Counters>::try_from(ebpf.map_mut("DROPS").unwrap()).unwrap();
        let counted = |reason: Reason| {
            drops.get(&(reason as u32), 0).unwrap().iter().map(|cpu| cpu.packets.cast_signed()).sum::<i64>()
        };
        assert_eq!((counted(Reason::NoEndpoint), counted(Reason::RefusalLimit)), (refused, dropped));
    });
}
