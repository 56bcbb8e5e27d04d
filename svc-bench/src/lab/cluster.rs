//! One lab: a node with a client pod and a backend pod, and a way of serving that leads from the one to the other.

use std::{
    env,
    fmt::Write as _,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context, Result, ensure};
use svc_lab::{Agent, Lab, Pod, Source, Spec};

use super::{
    conntrack, nftables,
    services::{ENDPOINTS, PORT, TARGET, measured, shapes},
};
use crate::load::{Outcome, Way};

/// Sources of flows that have to be new: this net is routed to the client.
const SOURCES: Ipv4Addr = Ipv4Addr::new(10, 245, 0, 0);
/// Slots for 10,000 Services of 10 endpoints, with room.
const SLOTS: &str = "20000000";

/// What leads from the client to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serving {
    /// Nothing: the client knows the backend's address.
    Plain,
    /// The agent, with this mode of the socket hooks.
    Svc { socket_lb: &'static str, services: u32 },
    /// Rules as kube-proxy would write them.
    Nftables { services: u32 },
}

impl Serving {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Plain => "plain".into(),
            Self::Svc { socket_lb: "off", services } => format!("svc tc {services}"),
            Self::Svc { services, .. } => format!("svc sockets {services}"),
            Self::Nftables { services } => format!("nftables {services}"),
        }
    }
}

/// A lab.
pub(super) struct Cluster {
    pub(super) serving: Serving,
    to: SocketAddrV4,
    /// The next source that no flow has had.
    source: u32,
    client: Pod,
    server: Server,
    lab: Lab,
    _agent: Option<Agent>,
}

/// The load's server; killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Cluster {
    pub(super) fn build(serving: Serving) -> Result<Self> {
        let lab = Lab::build(Spec { nodes: 1, ..Spec::default() })?;
        let (client, backend) = (lab.pod(1, "client")?, lab.pod(1, "backend")?);
        let backends = addresses(&lab, &client, &backend)?;
        let server = serve(&backend)?;

        let mut agent = None;
        let to = match serving {
            Serving::Plain => SocketAddrV4::new(backends[0], TARGET),
            Serving::Svc { services, .. } | Serving::Nftables { services } => {
                let shapes = shapes(services, &backends);
                let service = measured(&shapes).context("there are no Services")?;
                let to = SocketAddrV4::new(service.address, PORT);
                if let Serving::Svc { socket_lb, .. } = serving {
                    let manifests = lab.manifests("manifests")?;
                    let objects: Vec<_> = shapes.iter().flat_map(super::services::Shape::objects).collect();
                    manifests.write("services", &objects)?;
                    let extra = ["--socket-lb", socket_lb, "--slots", SLOTS];
                    agent = Some(lab.start_agent(1, Source::Manifests(manifests.path()), &extra)?);
                } else {
                    for text in nftables::ruleset(&shapes) {
                        lab.node(1).exec_with("nft", &["-f", "-"], &text)?;
                    }
                }
                to
            }
        };
        Ok(Self { serving, to, source: SOURCES.into(), client, server, lab, _agent: agent })
    }

    /// Sends, on the first CPU; the server is on the last.
    pub(super) fn measure(&mut self, way: Way, count: u32) -> Result<Outcome> {
        conntrack::flush(self.lab.node(1))?;
        let mut command = self.client.command(program()?)?;
        command.arg("send").arg(way.name()).arg(self.to.to_string());
        command.args(["--count", &count.to_string(), "--server", &self.server.0.id().to_string()]);
        command.args(["--source", &Ipv4Addr::from(self.source).to_string()]);
        // More than any count needs.
        self.source += 4;
        let output = command.stderr(Stdio::piped()).output().context("cannot start the client")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", error.trim());
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// Gives the backend as many addresses as a Service has endpoints, and the client a net of sources.
fn addresses(lab: &Lab, client: &Pod, backend: &Pod) -> Result<Vec<Ipv4Addr>> {
    let device = |pod: &Pod| pod.host_interface.clone().context("a pod without an interface");
    let more = (1..ENDPOINTS).map(|number| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 1, 200)) + number));
    let all: Vec<Ipv4Addr> = std::iter::once(backend.addresses.v4).chain(more).collect();
    let (mut node, mut pod) = (String::new(), String::new());
    for address in &all[1..] {
        writeln!(node, "route add {address}/32 dev {} scope link", device(backend)?)?;
        writeln!(pod, "addr add {address}/32 dev eth0")?;
    }
    writeln!(node, "route add {SOURCES}/16 dev {} scope link", device(client)?)?;
    lab.node(1).ip(&node)?;
    backend.ip(&pod)?;
    // Sockets can be bound to any address of it.
    client.ip(&format!("route add local {SOURCES}/16 dev lo\n"))?;
    client.set_sysctls(&[("net.ipv4.ip_local_port_range", "1024 65535")])?;
    Ok(all)
}

fn serve(backend: &Pod) -> Result<Server> {
    let mut command = backend.command(program()?)?;
    command.arg("serve").args(["--port", &TARGET.to_string()]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the server")?;
    let mut server = Server(child);
    let mut line = String::new();
    let stdout = server.0.stdout.take().context("the server has no standard output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line.trim() == "ready", "the server said {line:?}");
    Ok(server)
}

fn program() -> Result<PathBuf> {
    env::current_exe().context("cannot find this program")
}
