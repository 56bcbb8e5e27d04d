//! `svc explain`: what becomes of a connection, decided by the loaded program over the live maps, and why.
//!
//! This file gathers facts; [`answer`] judges them, [`text`] prints.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    str::FromStr,
};

use anyhow::{Context, bail};
use nix::net::if_::if_nametoindex;

use super::{Output, OutputArg, render};
use crate::{
    interfaces::route::route,
    kernel::{
        trial::{Outcome, Packet},
        view::Pins,
    },
    model::Protocol,
};

mod answer;
mod text;

pub use answer::{Answer, EndpointAnswer, FlowAnswer};
use answer::{Arrival, Facts};

/// The client's port where none is named: the first one that clients are given by RFC 6335.
const CLIENT_PORT: u16 = 49152;

/// Arguments of `svc explain`.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// Who asks: ADDRESS, or ADDRESS:PORT for one connection (the port takes part in the choice)
    pub source: Source,
    /// Whom: ADDRESS:PORT or ADDRESS:PORT/PROTOCOL (tcp, udp, sctp)
    pub destination: Destination,
    /// The interface the packet comes in by; without it, the one that answers to SOURCE leave by
    #[arg(long, env = "SVC_INTERFACE", value_name = "NAME")]
    pub interface: Option<String>,
    #[command(flatten)]
    output: OutputArg,
}

/// `ADDRESS` or `ADDRESS:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(pub SocketAddr);

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, CLIENT_PORT));
        let source = address.or_else(|_| text.parse()).map_err(|_| "write ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT")?;
        Ok(Self(source))
    }
}

/// `ADDRESS:PORT` or `ADDRESS:PORT/PROTOCOL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Address and port, *host order*.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return Err("the protocol is tcp, udp or sctp".to_owned()),
        };
        let address =
            address.parse().map_err(|_| "write ADDRESS:PORT or [ADDRESS]:PORT, and /PROTOCOL if it is not tcp")?;
        Ok(Self { address, protocol })
    }
}

/// Runs the command.
pub fn run(bpffs: &Path, args: &ExplainArgs) -> anyhow::Result<()> {
    let (Source(source), Destination { address: destination, protocol }) = (args.source, args.destination);
    if source.is_ipv4() != destination.is_ipv4() {
        bail!(
            "{} and {} are of different families: a packet has both addresses from one",
            source.ip(),
            destination.ip()
        );
    }
    let pins = Pins::open(bpffs)?;
    let snapshot = pins.snapshot()?;
    let arrival = arrival(source.ip(), args.interface.as_deref())?;
    let trial = match arrival {
        Arrival::Host => None,
        Arrival::Interface(interface) => {
            Some(pins.try_packet(&Packet { source, destination, protocol, interface }).context("svc explain")?)
        }
    };
    let backend = match trial.as_ref().map(|trial| &trial.outcome) {
        Some(Outcome::Forward(forward)) => Some(forward.flow.rewrite.ip()),
        _ => None,
    };
    let facts = Facts {
        source,
        destination,
        protocol,
        arrival,
        trial,
        // A node without a route to an endpoint is a finding, not an error of this command.
        way: backend.map(|backend| route(backend).map_err(|error| error.to_string())),
        slots: &|range| pins.slots(range),
    };
    let answer = answer::answer(&snapshot, &facts)?;
    match args.output.output {
        Output::Json => render::print(&render::json(&answer)?),
        _ => render::print(&answer.text()),
    }
}

/// Where packets of an address come in.
fn arrival(source: IpAddr, interface: Option<&str>) -> anyhow::Result<Arrival> {
    if let Some(name) = interface {
        let index = if_nametoindex(name)
            .with_context(|| format!("interface {name}: name one of this network namespace (`ip link`)"))?;
        return Ok(Arrival::Interface(index));
    }
    let back = route(source)
        .with_context(|| format!("no route to {source}: name the interface its packets come in by with --interface"))?;
    Ok(if back.local { Arrival::Host } else { Arrival::Interface(back.interface) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_names_a_port_and_perhaps_a_protocol() -> Result<(), Box<dyn std::error::Error>> {
        let udp: Destination = "10.96.0.10:53/UDP".parse()?;
        assert_eq!((udp.address, udp.protocol), ("10.96.0.10:53".parse()?, Protocol::Udp));
        assert_eq!("[fd00::1]:80".parse::<Destination>()?.protocol, Protocol::Tcp);
        for wrong in ["10.96.0.10", "10.96.0.10:53/icmp", "10.96.0.10:53/", "fd00::1", ":80", "host:80"] {
            assert!(wrong.parse::<Destination>().is_err(), "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn a_source_without_a_port_gets_one() -> Result<(), Box<dyn std::error::Error>> {
        assert_eq!("10.0.0.1".parse::<Source>()?.0.port(), CLIENT_PORT);
        assert_eq!("fd00::1".parse::<Source>()?.0, SocketAddr::new("fd00::1".parse()?, CLIENT_PORT));
        assert_eq!("10.0.0.1:7".parse::<Source>()?.0.port(), 7);
        assert!("10.0.0.1/24".parse::<Source>().is_err());
        Ok(())
    }
}
