//! Writes the seeds of the fuzz targets into a directory (`fuzz/seeds`): packets as networks carry them, and manifests.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use svc_fuzz::{
    craft::{ACK, Checksum, FIN, Fragment, Frame, RST, SYN, Transport, error},
    trace,
    world::{BACKEND_PORT, Packet, address},
};

const PSH: u8 = 8;
const CLIENT: u8 = 10;
const BACKEND: u8 = 1;
const ROUTER: u8 = 12;
const VIP: u8 = 16;
const NODE: u8 = 18;

/// Bits of a trace's setting.
const INSIDE: u8 = 1;
const OVERLAY: u8 = 2;
const BRIDGE: u8 = 4;
const AFFINITY: u8 = 8;
const REMOTE: u8 = 16;

/// A family's addresses.
#[derive(Clone, Copy)]
struct Side {
    is_v4: bool,
}

impl Side {
    fn ip(self, host: u8) -> IpAddr {
        address(self.is_v4, host)
    }

    fn at(self, host: u8, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(host), port)
    }

    fn client(self) -> SocketAddr {
        self.at(CLIENT, 1000)
    }

    fn vip(self) -> SocketAddr {
        self.at(VIP, 80)
    }

    fn backend(self) -> SocketAddr {
        self.at(BACKEND, BACKEND_PORT)
    }
}

fn incoming(frame: &Frame) -> Packet {
    Packet { egress: false, bare: frame.bare, bytes: frame.bytes(), mark: 0 }
}

fn outgoing(frame: &Frame) -> Packet {
    Packet { egress: true, bare: frame.bare, bytes: frame.bytes(), mark: 0 }
}

fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Frame {
    let mut frame = Frame::new(source, destination, Transport::Tcp(flags));
    if flags & PSH == 0 {
        frame.payload.clear();
    }
    frame
}

fn udp(source: SocketAddr, destination: SocketAddr) -> Frame {
    Frame::new(source, destination, Transport::Udp)
}

/// What every backend may answer: which one the packet path chooses is not known here.
fn answers(side: Side, to: SocketAddr, flags: Option<u8>) -> Vec<Packet> {
    let transport = flags.map_or(Transport::Udp, Transport::Tcp);
    (1..=4).map(|host| outgoing(&Frame::new(side.at(host, BACKEND_PORT), to, transport))).collect()
}

/// Traces of one family: name, setting, packets.
fn traces(side: Side) -> Vec<(&'static str, u8, Vec<Packet>)> {
    let (client, vip, backend) = (side.client(), side.vip(), side.backend());
    let node = side.at(NODE, 30080);
    let request = |frame: Frame| incoming(&frame);
    let connection = |to: SocketAddr| {
        let mut packets = vec![request(tcp(client, to, SYN))];
        packets.extend(answers(side, client, Some(SYN | ACK)));
        packets.push(request(tcp(client, to, ACK)));
        packets.push(request(tcp(client, to, PSH | ACK)));
        packets.extend(answers(side, client, Some(PSH | ACK)));
        packets.push(request(tcp(client, to, FIN | ACK)));
        packets.extend(answers(side, client, Some(FIN | ACK)));
        packets.push(request(tcp(client, to, SYN)));
        packets
    };
    let datagram = |id, offset, more| Frame { fragment: Some(Fragment { id, offset, more }), ..udp(client, vip) };
    let bare = |frame: Frame| Frame { bare: true, ..frame };
    let about = bare(udp(client, backend)).bytes();
    let answer = bare(udp(vip, client)).bytes();
    let mut traces = vec![
        ("tcp-connection", INSIDE, connection(vip)),
        ("tcp-node-port-remote", REMOTE, connection(node)),
        ("tcp-affinity-overlay", OVERLAY | AFFINITY, connection(vip)),
        (
            "tcp-reset",
            0,
            vec![request(tcp(client, node, SYN)), request(tcp(client, node, RST)), request(tcp(client, node, SYN))],
        ),
        (
            "tcp-bridge",
            INSIDE | BRIDGE,
            [
                vec![request(tcp(client, vip, SYN))],
                answers(side, client, Some(SYN | ACK))
                    .into_iter()
                    .flat_map(|packet| [Packet { egress: false, ..packet.clone() }, packet])
                    .collect(),
            ]
            .concat(),
        ),
        (
            "udp",
            0,
            [vec![request(udp(client, vip))], answers(side, client, None), vec![request(udp(client, vip))]].concat(),
        ),
        ("udp-without-checksum", 0, vec![request(Frame { checksum: Checksum::Zero, ..udp(client, vip) })]),
        ("udp-wrong-checksum", 0, vec![request(Frame { checksum: Checksum::Off(7), ..udp(client, vip) })]),
        ("udp-empty", 0, vec![request(Frame { payload: Vec::new(), ..udp(client, vip) })]),
        ("udp-padded", 0, vec![request(Frame { padding: 18, ..udp(client, vip) })]),
        (
            "hairpin",
            INSIDE,
            (1000..1010)
                .flat_map(|port| {
                    // One in four of them reaches itself.
                    let pod = side.at(BACKEND, port);
                    [
                        incoming(&tcp(pod, vip, SYN)),
                        outgoing(&tcp(pod, backend, SYN)),
                        incoming(&tcp(backend, SocketAddr::new(vip.ip(), port), SYN | ACK)),
                    ]
                })
                .collect(),
        ),
        (
            "fragments",
            0,
            vec![request(datagram(1, 0, true)), request(datagram(1, 4, true)), request(datagram(1, 8, false))],
        ),
        (
            "fragments-overtaking",
            0,
            vec![request(datagram(2, 4, false)), request(datagram(2, 0, true)), request(datagram(2, 4, false))],
        ),
        (
            "vlan",
            0,
            vec![request(Frame { tags: 1, ..tcp(client, vip, SYN) }), request(Frame { tags: 2, ..udp(client, vip) })],
        ),
        (
            "no-link-header",
            INSIDE,
            vec![request(bare(tcp(client, vip, SYN))), outgoing(&bare(tcp(backend, client, SYN | ACK)))],
        ),
        ("echo", 0, [false, true].map(|reply| request(Frame::new(client, vip, Transport::Echo { reply }))).to_vec()),
        ("sctp", 0, [1, 2, 0].map(|kind| request(Frame::new(client, vip, Transport::Sctp(kind)))).to_vec()),
        (
            "nobodys",
            0,
            vec![request(tcp(client, side.at(99, 80), SYN)), outgoing(&tcp(side.at(99, 80), client, SYN | ACK))],
        ),
        ("unknown-port", 0, vec![request(tcp(client, SocketAddr::new(vip.ip(), 81), SYN))]),
        ("other-protocol", 0, vec![request(Frame::new(client, vip, Transport::Other(47)))]),
    ];
    for (name, kind) in
        [("error-unreachable", 3), ("error-too-big", 2), ("error-time-exceeded", 11), ("error-redirect", 5)]
    {
        let mut packets = vec![request(udp(client, vip))];
        for host in 1..=4 {
            let about = bare(udp(client, side.at(host, BACKEND_PORT))).bytes();
            packets.push(Packet {
                egress: true,
                bare: false,
                bytes: error(&about, side.ip(ROUTER), client.ip(), kind, 48),
                mark: 0,
            });
        }
        packets.push(Packet {
            egress: true,
            bare: false,
            bytes: error(&about, backend.ip(), client.ip(), kind, 200),
            mark: 0,
        });
        packets.push(Packet {
            egress: false,
            bare: false,
            bytes: error(&answer, side.ip(ROUTER), vip.ip(), kind, 200),
            mark: 0,
        });
        traces.push((name, 0, packets));
    }
    if side.is_v4 {
        traces.push((
            "options",
            0,
            vec![
                request(Frame { options: 3, ..tcp(client, vip, SYN) }),
                request(Frame { options: 10, ..udp(client, vip) }),
            ],
        ));
    } else {
        let with = |extensions: &[u8]| request(Frame { extensions: extensions.to_vec(), ..udp(client, vip) });
        traces.push((
            "extensions",
            0,
            vec![with(&[0]), with(&[60]), with(&[0, 60, 43, 60]), with(&[44]), with(&[0, 60, 43, 60, 60]), with(&[51])],
        ));
    }
    traces
}

/// Manifests, as the target for objects reads them: files set apart by `%%`.
const OBJECTS: [(&str, &str); 4] = [
    ("cluster-ip", include_str!("objects/cluster-ip.yaml")),
    ("load-balancer", include_str!("objects/load-balancer.yaml")),
    ("policies", include_str!("objects/policies.yaml")),
    ("nonsense", include_str!("objects/nonsense.yaml")),
];

fn main() -> io::Result<()> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "fuzz/seeds".to_owned());
    let write = |target: &str, name: &str, bytes: &[u8]| -> io::Result<()> {
        let directory = Path::new(&directory).join(target);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(name), bytes)
    };
    for (family, is_v4) in [("v4", true), ("v6", false)] {
        for (name, setting, packets) in traces(Side { is_v4 }) {
            write("frames", &format!("{name}-{family}"), &trace::write(setting, &packets))?;
        }
    }
    for (name, text) in OBJECTS {
        write("objects", name, &[&[0], text.as_bytes()].concat())?;
    }
    Ok(())
}
