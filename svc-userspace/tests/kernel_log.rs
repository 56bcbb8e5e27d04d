//! Log lines of programs that were built to log, on the running kernel.

mod kernel_support;

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use etherparse::PacketBuilder;
use kernel_support::{in_place, object};
use svc_common::{Frontend, LAYOUT_VERSION, ServiceName, SlotRange, frontend::FLAG_CLUSTER_IP};
use svc_userspace::{
    kernel::Dataplane,
    model::Protocol,
    tables::{FrontendAddress, Op},
};

/// `TCX_DROP`.
const DROP: u32 = 2;

/// What was logged so far.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("nobody panicked")).into_owned()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panicked").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The BPF object with log lines.
fn object_with_log() -> Vec<u8> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../.build/ebpf/svc-log.o");
    let path = std::env::var_os("SVC_EBPF_LOG_OBJECT").map_or(default.into(), PathBuf::from);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: `cargo xtask ebpf --log` makes it", path.display()))
}

/// A Service whose slots name a backend that does not exist.
fn contradiction() -> Vec<Op> {
    let slots = SlotRange { offset: 10, len: 7 };
    let frontend = Frontend { service: 1, flags: FLAG_CLUSTER_IP, affinity_seconds: 0, inside: slots, outside: slots };
    let name =
        ServiceName { namespace: [0; 64], name: [0; 64], port_name: [0; 64], port: 80, protocol: 17, version: 4 };
    let address = FrontendAddress { address: "10.96.0.1:80".parse().expect("an address"), protocol: Protocol::Udp };
    vec![Op::SetService(1, Box::new(name)), Op::WriteSlots(10, vec![77; 7]), Op::SetFrontend(address, frontend)]
}

#[test]
fn a_drop_that_should_not_be_is_logged_by_programs_that_were_built_to() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    in_place(move |place| {
        let (mut dataplane, _) = Dataplane::start_with_object(&place.options(), &object_with_log()).expect("it starts");
        let log = dataplane.take_log().expect("the object logs");
        dataplane.apply(&contradiction()).expect("apply");

        let mut packet = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 1, 0, 2], [10, 96, 0, 1], 64)
            .udp(4000, 80)
            .write(&mut packet, b"hello")
            .expect("a packet");
        let pin = place.bpffs.join(format!("layout-{LAYOUT_VERSION}/programs/svc_ingress"));
        let program = SchedClassifier::from_pin(pin).expect("the program is pinned");
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet);
        assert_eq!(program.test_run(options).expect("it runs").return_value, DROP);

        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        runtime.spawn(log.pass_on());
        svc_lab::until("the line", Duration::from_secs(60), || {
            let text = lines.text();
            if text.contains("dropped 47 bytes: inconsistent maps") { Ok(()) } else { Err(text) }
        })
        .expect("it is logged");
    });
}

#[test]
fn programs_as_they_are_installed_do_not_log() {
    in_place(|place| {
        let (mut dataplane, _) = Dataplane::start_with_object(&place.options(), &object()).expect("it starts");
        assert!(dataplane.take_log().is_none());
    });
}
