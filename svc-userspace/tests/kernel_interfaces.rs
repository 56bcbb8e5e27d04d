//! Interfaces are found and followed, in a network namespace with real ones.

mod kernel_support;

use std::{collections::BTreeMap, time::Duration};

use kernel_support::{in_place, run};
use svc_common::{Scope, config::INTERFACE_BRIDGE_PORT};
use svc_userspace::{
    interfaces::{InterfaceEvent, InterfaceOptions, NodeAddress, run as follow},
    kernel::InterfaceSpec,
};
use tokio::sync::mpsc;

/// What a receiver of events knows.
#[derive(Debug, Default)]
struct Seen {
    interfaces: BTreeMap<u32, InterfaceSpec>,
    addresses: Vec<NodeAddress>,
    synced: usize,
    set: usize,
}

impl Seen {
    fn named(&self, name: &str) -> Option<&InterfaceSpec> {
        self.interfaces.values().find(|spec| spec.name == name)
    }

    fn scope(&self, name: &str) -> Option<Scope> {
        self.named(name).map(|spec| Scope::from_u8(spec.entry.scope))
    }

    /// Takes events until a condition holds.
    async fn until(
        &mut self,
        events: &mut mpsc::Receiver<InterfaceEvent>,
        what: &str,
        condition: impl Fn(&Self) -> bool,
    ) {
        while !condition(self) {
            let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await;
            match event.unwrap_or_else(|_| panic!("no event brought: {what}; {self:?}")).expect("run() goes on") {
                InterfaceEvent::Set(spec) => {
                    self.set += 1;
                    self.interfaces.insert(spec.index, spec);
                }
                InterfaceEvent::Gone(index) => drop(self.interfaces.remove(&index).expect("it was reported")),
                InterfaceEvent::Addresses(addresses) => self.addresses = addresses,
                InterfaceEvent::Synced => self.synced += 1,
            }
        }
    }
}

fn ip(arguments: &str) {
    run("ip", &arguments.split(' ').collect::<Vec<_>>());
}

/// A network namespace without a name, for the far ends of veths: it lives as long as the value.
struct Elsewhere {
    child: std::process::Child,
}

impl Elsewhere {
    fn new() -> Self {
        let child = std::process::Command::new("unshare").args(["-n", "sleep", "600"]).spawn().expect("unshare");
        let (own, of) = ("/proc/thread-self/ns/net".to_owned(), format!("/proc/{}/ns/net", child.id()));
        let inode = |path: &str| std::fs::read_link(path).expect("a namespace");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while inode(&own) == inode(&of) {
            assert!(std::time::Instant::now() < deadline, "unshare does nothing");
            std::thread::yield_now();
        }
        Self { child }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test);
}

#[test]
fn interfaces_are_found_and_followed() {
    in_place(|_| {
        let pods = Elsewhere::new();
        let pid = pods.pid();
        ip(&format!("link add up0 type veth peer name far0 netns {pid}"));
        ip("addr add 192.0.2.1/24 dev up0");
        ip("addr add 2001:db8::1/64 dev up0 nodad");
        ip("link set up0 up");
        ip("link add cni0 address 02:00:00:00:00:01 type bridge");
        ip("addr add 10.244.1.1/24 dev cni0");
        ip("link add vxlan0 type vxlan id 7 dstport 4789 dev up0");
        block_on(async move {
            let (sender, mut events) = mpsc::channel(64);
            let options = InterfaceOptions { uplinks: vec!["up0".to_owned()], pod_patterns: Vec::new() };
            let task = tokio::spawn(follow(options, sender));
            let mut seen = Seen::default();
            seen.until(&mut events, "synced", |seen| seen.synced == 1).await;
            assert_eq!(seen.scope("up0"), Some(Scope::Outside));
            assert_eq!(seen.scope("vxlan0"), Some(Scope::Overlay));
            assert_eq!(seen.scope("cni0"), None, "a bridge without pods");
            assert_eq!(seen.scope("lo"), None);
            let primary = |seen: &Seen| -> Vec<String> {
                let primary = seen.addresses.iter().filter(|address| address.primary);
                primary.map(|address| address.address.to_string()).collect()
            };
            assert_eq!(primary(&seen), ["192.0.2.1", "2001:db8::1"]);
            assert!(seen.addresses.iter().any(|a| a.address.to_string() == "10.244.1.1" && !a.primary));

            ip("link add pod0 type veth peer name pod0p");
            ip("link set pod0 master cni0");
            ip(&format!("link set pod0p netns {pid}"));
            seen.until(&mut events, "a new pod", |seen| seen.scope("pod0").is_some() && seen.scope("cni0").is_some())
                .await;
            seen.until(&mut events, "its bridge", |seen| {
                let entry = seen.named("pod0").map(|spec| spec.entry).unwrap_or_default();
                entry.flags == INTERFACE_BRIDGE_PORT && entry.bridge_mac == [2, 0, 0, 0, 0, 1]
            })
            .await;
            assert_eq!(seen.scope("pod0"), Some(Scope::Inside));
            assert_eq!(seen.scope("cni0"), Some(Scope::Inside));

            ip("link set cni0 address 02:00:00:00:00:02");
            seen.until(&mut events, "another address of the bridge", |seen| {
                seen.named("pod0").is_some_and(|spec| spec.entry.bridge_mac == [2, 0, 0, 0, 0, 2])
            })
            .await;
            ip("link set pod0 nomaster");
            seen.until(&mut events, "no master", |seen| {
                seen.named("pod0").is_some_and(|spec| spec.entry.flags == 0) && seen.scope("cni0").is_none()
            })
            .await;
            ip("addr add 198.51.100.1/24 dev up0");
            seen.until(&mut events, "an address", |seen| {
                seen.addresses.iter().any(|a| a.address.to_string() == "198.51.100.1")
            })
            .await;
            ip("addr del 192.0.2.1/24 dev up0");
            seen.until(&mut events, "another primary address", |seen| {
                primary(seen).contains(&"198.51.100.1".to_owned())
            })
            .await;

            let index = seen.named("pod0").expect("it is there").index;
            ip("link del pod0");
            ip(&format!("link add pod0 index {index} type veth peer name pod0p netns {pid}"));
            let before = seen.set;
            seen.until(&mut events, "its successor of the same index", |seen| seen.set > before).await;
            assert_eq!(seen.named("pod0").map(|spec| spec.index), Some(index));
            ip("link del pod0");
            seen.until(&mut events, "it is gone", |seen| seen.named("pod0").is_none()).await;
            assert_eq!(seen.synced, 1);
            drop(events);
            task.await.expect("no panic").expect("run() ends well");
        });
    });
}

#[test]
fn the_uplink_is_where_the_default_route_goes() {
    in_place(|_| {
        let outside = Elsewhere::new();
        for name in ["up1", "up2"] {
            ip(&format!("link add {name} type veth peer name far-{name} netns {}", outside.pid()));
            ip(&format!("link set {name} up"));
        }
        ip("addr add 192.0.2.1/24 dev up1");
        ip("addr add 198.51.100.1/24 dev up2");
        ip("route add default via 192.0.2.254 dev up1");
        block_on(async move {
            let (sender, mut events) = mpsc::channel(64);
            let task = tokio::spawn(follow(InterfaceOptions::default(), sender));
            let mut seen = Seen::default();
            seen.until(&mut events, "synced", |seen| seen.synced == 1).await;
            assert_eq!((seen.scope("up1"), seen.scope("up2")), (Some(Scope::Outside), Some(Scope::Inside)));
            ip("route replace default via 198.51.100.254 dev up2");
            seen.until(&mut events, "the other uplink", |seen| {
                (seen.scope("up1"), seen.scope("up2")) == (Some(Scope::Inside), Some(Scope::Outside))
            })
            .await;
            ip("route replace default nexthop via 192.0.2.254 dev up1 nexthop via 198.51.100.254 dev up2");
            seen.until(&mut events, "both uplinks", |seen| {
                (seen.scope("up1"), seen.scope("up2")) == (Some(Scope::Outside), Some(Scope::Outside))
            })
            .await;
            drop(events);
            task.await.expect("no panic").expect("run() ends well");
        });
    });
}

#[test]
fn more_interfaces_than_the_receive_buffer_holds_are_all_found() {
    in_place(|_| {
        let pods = Elsewhere::new();
        let pid = pods.pid();
        block_on(async move {
            let (sender, mut events) = mpsc::channel(4);
            let task = tokio::spawn(follow(InterfaceOptions::default(), sender));
            let mut seen = Seen::default();
            seen.until(&mut events, "synced", |seen| seen.synced == 1).await;
            // Nobody receives while this runs: one thread serves both sides.
            let lines: Vec<String> =
                (0..1500).map(|n| format!("link add pod{n} type veth peer name p{n} netns {pid}")).collect();
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), lines.join("\n")).expect("write");
            run("ip", &["-batch", file.path().to_str().expect("a path")]);
            seen.until(&mut events, "all of them", |seen| seen.interfaces.len() == 1500).await;
            drop(events);
            task.await.expect("no panic").expect("run() ends well");
        });
    });
}
