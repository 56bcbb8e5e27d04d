//! Long transfers through every path: segments that the kernel left to the device to cut and to checksum, and segments with
//! every checksum computed and verified.

use std::{env, net::IpAddr};

use anyhow::{Context, Result, ensure};
use svc_lab::{Cni, Place, Pod, Protocol, Request, Service, Spec};

use crate::{
    feed::Feed,
    shop::{NODE_PORT, PORT, SMALL, Shop, TARGET, cluster_ips, external, service},
};

/// Sets the length of every transfer, in MiB.
const VARIABLE: &str = "SVC_LAB_TRANSFER_MIB";
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// The length of a transfer: what was asked for, else `usual`.
fn length(usual: u64) -> Result<u64> {
    match env::var(VARIABLE) {
        Ok(text) => Ok(text.parse::<u64>().with_context(|| format!("{VARIABLE} is a number of MiB"))? * MIB),
        Err(_) => Ok(usual),
    }
}

/// A way through a Service to the one pod that has it.
struct Path<'a> {
    who: &'a Place,
    to: &'a Pod,
    addresses: [IpAddr; 2],
    port: u16,
}

/// `near` on node 1 is Service 1, `far` on node 2 is Service 2.
struct Market {
    shop: Shop,
    far: Pod,
    _agents: Vec<svc_lab::Agent>,
}

impl Market {
    fn open(cni: Cni) -> Result<Self> {
        let shop = Shop::of(Spec { cni, rp_filter: 1, ..Spec::default() })?;
        let far = shop.lab.pod(2, "far")?;
        shop.lab.serve(&far, TARGET)?;
        let feed = Feed::manifests(&shop)?;
        let of = |name: &str, nth: u8| -> Service {
            service(name, nth).node_port(PORT, TARGET, NODE_PORT + u16::from(nth)).load_balancer(&external(nth))
        };
        feed.put("near", &of("near", 1).with(&[&shop.a]))?;
        feed.put("far", &of("far", 2).with(&[&far]))?;
        // Packets are what is to be rewritten: sockets are left alone.
        let agents = shop.lab.start_agents(feed.source(), &[&SMALL[..], &["--socket-lb", "off"]].concat())?;
        Ok(Self { shop, far, _agents: agents })
    }

    fn paths(&self) -> Vec<Path<'_>> {
        let Self { shop, far, .. } = self;
        let (near, client, outside): (&Pod, &Place, &Place) = (&shop.a, &shop.client, shop.lab.outside());
        let node = shop.lab.node(1).addresses.both();
        vec![
            Path { who: client, to: near, addresses: cluster_ips(1), port: PORT },
            Path { who: client, to: far, addresses: cluster_ips(2), port: PORT },
            Path { who: near, to: near, addresses: cluster_ips(1), port: PORT },
            Path { who: outside, to: near, addresses: node, port: NODE_PORT + 1 },
            Path { who: outside, to: far, addresses: node, port: NODE_PORT + 2 },
            Path { who: outside, to: far, addresses: external(2), port: PORT },
        ]
    }

    /// Every place that has devices of its own.
    fn places(&self) -> Vec<&Place> {
        let Self { shop: Shop { lab, a, b, client }, far, .. } = self;
        let nodes = lab.nodes().iter().map(|node| &**node);
        nodes.chain([lab.outside(), lab.router(), lab.switch(), a, b, client, far]).collect()
    }

    /// Packets with a wrong checksum that any place has seen.
    fn wrong_checksums(&self) -> Result<u64> {
        let mut count = 0;
        for place in self.places() {
            let read = || -> std::io::Result<String> {
                Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?
                    + &std::fs::read_to_string("/proc/thread-self/net/snmp6")?)
            };
            let text = place.enter(read)??;
            count += csum_errors(&text).with_context(|| format!("counters of {}", place.name()))?;
        }
        Ok(count)
    }
}

/// The sum of all counters of checksum errors in /proc/net/snmp and snmp6.
fn csum_errors(text: &str) -> Result<u64> {
    let lines: Vec<&str> = text.lines().collect();
    let mut values = Vec::new();
    for pair in lines.windows(2) {
        let (names, numbers) = (pair[0].split_whitespace(), pair[1].split_whitespace());
        if pair[0].split(':').next() == pair[1].split(':').next() && pair[0].contains("InCsumErrors") {
            values.extend(names.zip(numbers).filter(|(name, _)| *name == "InCsumErrors").map(|(_, value)| value));
        }
    }
    values.extend(lines.iter().filter_map(|line| line.split_once("InCsumErrors").map(|(_, value)| value.trim())));
    let numbers = values.iter().filter_map(|value| value.parse::<u64>().ok());
    let (count, sum) = numbers.fold((0, 0), |(count, sum), number| (count + 1, sum + number));
    // ICMP, TCP, UDP and UDP-Lite, and three of these for IPv6 at least.
    ensure!(count >= 5, "only {count} counters in {text}");
    Ok(sum)
}

fn transfer(path: &Path<'_>, family: usize, bytes: u64) -> Result<()> {
    let request = || Request::tcp((path.addresses[family], path.port)).timeout_ms(60_000);
    for (direction, request) in [("up", request().upload(bytes)), ("down", request().download(bytes))] {
        let title = format!("{} {} {bytes} bytes {direction}", path.who.name(), path.addresses[family]);
        let success = path.who.ask(&request).map_err(|failure| anyhow::anyhow!("{title}: {failure}"))?;
        ensure!(success.answer.server == path.to.name(), "{title}: {} answered", success.answer.server);
        ensure!(success.answer.length == bytes, "{title}: {} bytes", success.answer.length);
        let rate = bytes / success.micros.max(1);
        println!("{title}: {rate} MB/s");
    }
    Ok(())
}

fn every_path(market: &Market, usual: u64) -> Result<()> {
    let bytes = length(usual)?;
    for path in market.paths() {
        for family in 0..2 {
            transfer(&path, family, bytes)?;
        }
    }
    ensure!(market.wrong_checksums()? == 0, "{} wrong checksums", market.wrong_checksums()?);
    Ok(())
}

#[test]
fn transfers_arrive_intact_through_every_path_of_routed_pods() -> Result<()> {
    every_path(&Market::open(Cni::Routed)?, 64 * MIB)
}

#[test]
fn transfers_arrive_intact_through_every_path_of_bridged_pods() -> Result<()> {
    every_path(&Market::open(Cni::Bridge)?, 64 * MIB)
}

#[test]
fn transfers_arrive_intact_through_every_path_of_an_overlay() -> Result<()> {
    every_path(&Market::open(Cni::Vxlan)?, 64 * MIB)
}

#[test]
fn a_gibibyte_arrives_intact_in_both_directions_and_families() -> Result<()> {
    let market = Market::open(Cni::Routed)?;
    // The path on which everything is rewritten: destination, source, and masquerade.
    let paths = market.paths();
    let path = paths.iter().find(|path| path.who.name() == "outside" && path.to.name() == "far").context("the path")?;
    (0..2).try_for_each(|family| transfer(path, family, length(GIB)?))
}

fn without_offloads(cni: Cni) -> Result<()> {
    let market = Market::open(cni)?;
    for place in market.places() {
        for device in devices(place)? {
            let off = ["tx", "rx", "sg", "tso", "gso", "gro"].map(|feature| [feature, "off"]).concat();
            // What a device does not have cannot be switched off; what counts is looked at afterwards.
            let _ = place.exec("ethtool", &[&["-K", &device], &off[..]].concat());
            let features = place.exec("ethtool", &["-k", &device])?;
            for feature in ["tx-checksumming", "tcp-segmentation-offload", "generic-receive-offload"] {
                let line = features.lines().find(|line| line.starts_with(&format!("{feature}:")));
                ensure!(line.is_some_and(|line| line.contains("off")), "{} {device}: {line:?}", place.name());
            }
        }
    }
    every_path(&market, 4 * MIB)?;
    // Datagrams of every length: an odd one ends in half a word of the checksum.
    for path in market.paths() {
        for address in path.addresses {
            for bytes in [64, 65, 1001, 1400] {
                let request =
                    Request::new(Protocol::Udp, (address, path.port)).payload(bytes).pad(bytes).timeout_ms(10_000);
                let title = format!("{} → {address}, {bytes} bytes", path.who.name());
                path.who.ask(&request).map_err(|failure| anyhow::anyhow!("{title}: {failure}"))?;
            }
        }
    }
    ensure!(market.wrong_checksums()? == 0, "{} wrong checksums", market.wrong_checksums()?);
    a_wrong_one_is_noticed(&market)
}

/// Spoils the checksums of what node 1 forwards: if that went unnoticed, the rest would show nothing.
fn a_wrong_one_is_noticed(market: &Market) -> Result<()> {
    let node = market.shop.lab.node(1);
    // Behind conntrack, which would hold such packets before any socket could count them.
    let rule = "chain late { type filter hook postrouting priority 300; udp dport 8080 @th,48,16 set 7; }";
    node.exec_with("nft", &["-f", "-"], &format!("table inet spoil {{\n{rule}\n}}\n"))?;
    for (nth, address) in (1..).zip(node.addresses.both()) {
        let answer = market.shop.lab.outside().ask(&Request::udp((address, NODE_PORT + 1)).timeout_ms(300));
        ensure!(answer.is_err(), "a datagram with a wrong checksum was answered: {answer:?}");
        ensure!(market.wrong_checksums()? == nth, "{} wrong checksums, not {nth}", market.wrong_checksums()?);
    }
    Ok(())
}

/// The devices of a place, without its loopback.
fn devices(place: &Place) -> Result<Vec<String>> {
    let listed: serde_json::Value = serde_json::from_str(&place.exec("ip", &["-j", "link", "show"])?)?;
    let names = listed.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
    Ok(names.filter(|name| *name != "lo").map(str::to_owned).collect())
}

#[test]
fn computed_checksums_are_right_on_every_path_of_routed_pods() -> Result<()> {
    without_offloads(Cni::Routed)
}

#[test]
fn computed_checksums_are_right_on_every_path_of_an_overlay() -> Result<()> {
    without_offloads(Cni::Vxlan)
}
