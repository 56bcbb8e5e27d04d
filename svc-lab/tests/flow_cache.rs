//! The flow cache of XDP: what it knows of a flow must not outlive what it was found out from.

mod support;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use svc_lab::{Protocol, Request, Spec, Steady, Tap, until};

use support::{
    Cluster, PORT, WEB,
    flow::{PATIENCE, goes_on},
    service, service_addresses,
};

/// Times that the neighbour moves.
const MOVES: u8 = 4;
/// Frames of a flow that may have been on their way.
const ON_THEIR_WAY: usize = 3;
/// Frames of a flow that are looked at after each move: more than a second of them.
const FRAMES: usize = 120;

fn cluster() -> Result<Cluster> {
    let mut cluster = Cluster::build(Spec::default())?;
    for node in ["node1", "node2"] {
        cluster.keep(svc_lab::xdp::partner(cluster.lab.switch(), node)?);
    }
    cluster.publish("web", &service("web", 10, WEB), &[&cluster.far])?;
    cluster.start(&["--xdp", "native"])?;
    Ok(cluster)
}

/// A datagram flow of each family through node 1 to `far` on node 2. Those that find the way resolved go past the stack.
fn streams(cluster: &Cluster) -> Result<Vec<Steady>> {
    let mut streams = Vec::new();
    for address in service_addresses(10).1 {
        let door = SocketAddr::new(address, PORT);
        let resolved = cluster.lab.outside().udp(door).map_err(|failure| anyhow::anyhow!("{door}: {failure}"))?;
        ensure!(resolved.answer.server == "far", "{resolved:?}");
        streams.push(cluster.stream(cluster.lab.outside(), &Request::new(Protocol::Udp, door))?);
    }
    Ok(streams)
}

/// Hardware address and IP destination of a frame to `far`; `None` for others.
fn to_far(cluster: &Cluster, frame: &[u8]) -> Option<([u8; 6], IpAddr)> {
    let destination = match frame.get(12..14)? {
        [0x08, 0x00] => IpAddr::from(*frame.get(30..34)?.first_chunk::<4>()?),
        [0x86, 0xdd] => IpAddr::from(*frame.get(38..54)?.first_chunk::<16>()?),
        _ => return None,
    };
    let is_far = cluster.far.addresses.both().contains(&destination);
    is_far.then_some((*frame.first_chunk::<6>()?, destination))
}

/// The kernel itself says when a neighbour has moved; the agent is not needed for that, nor for anything else here.
#[test]
fn no_frame_goes_to_a_neighbours_old_address_although_the_agent_is_dead() -> Result<()> {
    let mut cluster = cluster()?;
    let mut streams = streams(&cluster)?;
    // Its other address: node 2 answers to both.
    let node2 = cluster.lab.node(2);
    for stream in &mut streams {
        goes_on(stream, "far")?;
    }
    is_on(&cluster)?;
    node2.ip("link add link eth0 name moved type macvlan mode bridge\nlink set moved up\n")?;
    let mac = |device: &str| -> Result<String> {
        let shown: Value = serde_json::from_str(&node2.exec("ip", &["-j", "link", "show", "dev", device])?)?;
        Ok(shown[0]["address"].as_str().context("a device without an address")?.to_owned())
    };
    let macs = [mac("moved")?, mac("eth0")?];
    let hops = node2.addresses.both();
    cluster.kill(1)?;
    let tap = Tap::open(cluster.lab.switch(), "node1")?;
    for nth in 0..MOVES {
        let mac = &macs[usize::from(nth % 2)];
        let replace = hops.map(|hop| format!("neigh replace {hop} lladdr {mac} dev eth0 nud permanent\n"));
        cluster.lab.node(1).ip(&replace.concat())?;
        while tap.frame()?.is_some() {}
        let mut seen: BTreeMap<IpAddr, Vec<[u8; 6]>> = BTreeMap::new();
        until("frames of both flows", PATIENCE, || {
            while let Some(frame) = tap.frame().map_err(|error| error.to_string())? {
                if let Some((to, flow)) = to_far(&cluster, &frame) {
                    seen.entry(flow).or_default().push(to);
                }
            }
            let is_enough = seen.len() == 2 && seen.values().all(|all| all.len() >= FRAMES);
            if is_enough { Ok(()) } else { Err(format!("{:?}", seen.values().map(Vec::len).collect::<Vec<_>>())) }
        })?;
        let wanted = bytes(mac)?;
        for (flow, all) in seen {
            let wrong = all.iter().skip(ON_THEIR_WAY).filter(|to| **to != wanted).count();
            ensure!(wrong == 0, "{wrong} of {} frames to {flow} did not go to {mac}", all.len());
        }
    }
    for mut stream in streams {
        goes_on(&mut stream, "far")?;
    }
    Ok(())
}

fn bytes(mac: &str) -> Result<[u8; 6]> {
    let bytes = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<u8>, _>>()?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{mac} is no hardware address"))
}

/// The agent has turned the cache of its XDP program on. (That the program uses it then, a test of the loaded program shows.)
fn is_on(cluster: &Cluster) -> Result<()> {
    let node = cluster.lab.node(1);
    let pin = node.maps()?.with_file_name("programs").join("svc_xdp").display().to_string();
    let program: Value = serde_json::from_str(&node.exec("bpftool", &["-j", "prog", "show", "pinned", &pin])?)?;
    for id in program["map_ids"].as_array().context("the program has no maps")? {
        let id = id.to_string();
        let map: Value = serde_json::from_str(&node.exec("bpftool", &["-j", "map", "show", "id", &id])?)?;
        if map["name"] == "CACHE_STATE" {
            let dump: Value = serde_json::from_str(&node.exec("bpftool", &["-j", "map", "dump", "id", &id])?)?;
            let generation = &dump[0]["formatted"]["value"]["generation"];
            ensure!(generation.as_u64().is_some_and(|generation| generation > 0), "the cache is off: {dump}");
            return Ok(());
        }
    }
    anyhow::bail!("the program has no map CACHE_STATE")
}
