//! The headless Service: a pod asks the node's DNS server for its name and has to be told of every pod.
//!
//! Queries are written and read here by hand, as small as they can be: the demonstration runs where no DNS client is.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{cluster::Shop, paths::Row};
use crate::{Lab, Node, Place, Pod, until};

/// Port of the DNS servers.
const PORT: u16 = 53;
/// Type of an IPv4 and of an IPv6 address.
const TYPES: [(u16, &str); 2] = [(1, "A"), (28, "AAAA")];
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The argument that makes the agent of a node serve DNS.
pub(super) fn argument(node: &Node) -> String {
    let [v4, v6] = node.addresses.both();
    format!("--dns={v4}:{PORT},[{v6}]:{PORT}")
}

/// Asks both servers' addresses on node 1 for both families.
pub(super) fn walk(lab: &Lab, shop: &Shop) -> Vec<Row> {
    let name = format!("{}.{}.svc.cluster.local", shop.services.headless.name(), shop.services.headless.namespace());
    let mut rows = Vec::new();
    for (kind, label) in TYPES {
        for server in lab.node(1).addresses.both() {
            let server = SocketAddr::new(server, PORT);
            let want: BTreeSet<IpAddr> =
                shop.members.iter().map(|pod| pod.addresses.both()[usize::from(kind != 1)]).collect();
            let outcome = until("the pods of a headless Service", PATIENCE, || {
                let found = ask(&shop.client, server, &name, kind).map_err(|error| format!("{error:#}"))?;
                if found == want { Ok(()) } else { Err(format!("{found:?}")) }
            });
            let pods: Vec<String> = shop.members.iter().map(|pod| told(pod, kind)).collect();
            rows.push(Row {
                title: "A pod asks for the name of a headless Service",
                who: format!("pod {} on node1", shop.client.name()),
                asked: format!("{name} {label} @{}", server.ip()),
                protocols: vec!["udp"],
                answered: if outcome.is_ok() { pods.join(", ") } else { "(not by all of its pods)".to_owned() },
                seen: outcome.as_ref().map_or_else(ToString::to_string, |()| "-".to_owned()),
                right: outcome.is_ok(),
            });
        }
    }
    rows
}

fn told(pod: &Pod, kind: u16) -> String {
    format!("{} ({})", pod.addresses.both()[usize::from(kind != 1)], pod.name())
}

/// The addresses that a server names.
fn ask(place: &Place, server: SocketAddr, name: &str, kind: u16) -> Result<BTreeSet<IpAddr>> {
    // An id, "recursion desired", one question.
    let mut query = vec![0x51, 0x7c, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend([kind.to_be_bytes(), [0, 1]].concat());
    let answer = place.enter(|| -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect(server)?;
        socket.send(&query)?;
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    })??;
    ensure!(answer.get(..2) == query.get(..2) && answer.get(3).is_some_and(|flags| flags % 16 == 0), "no such name");
    let count = u16::from_be_bytes([answer[6], answer[7]]);
    // The question comes again; each answer refers to its name.
    let mut rest = answer.get(query.len()..).context("a short answer")?;
    let mut found = BTreeSet::new();
    for _ in 0..count {
        let (head, data) = rest.split_at_checked(12).context("a short answer")?;
        let (address, next) =
            data.split_at_checked(u16::from_be_bytes([head[10], head[11]]).into()).context("a short answer")?;
        let v4 = <[u8; 4]>::try_from(address).map(IpAddr::from);
        found.insert(v4.or_else(|_| <[u8; 16]>::try_from(address).map(IpAddr::from)).context("no address")?);
        rest = next;
    }
    Ok(found)
}
