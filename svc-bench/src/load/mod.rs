//! The traffic of the lab: a server and clients, each a process in a namespace, which the benchmark starts.
//!
//! A client measures itself: it prints what it did, how long that took, and the CPU time it took *anywhere*: its own, the
//! server's, and that of the kernel's threads that process packets when a burst is too long for whoever sent it.

mod clients;
mod messages;
mod meter;
mod server;

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use crate::machine::{cpus, pin};

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Load {
    /// Take datagrams and connections, until standard input ends
    #[command(hide = true)]
    Serve {
        /// Port
        #[arg(long)]
        port: u16,
    },
    /// Send, and print what it cost as JSON
    #[command(hide = true)]
    Send(Send),
}

/// What a client sends.
#[derive(Clone, Debug, clap::Args)]
pub struct Send {
    /// How
    #[arg(value_enum)]
    pub way: Way,
    /// To whom
    pub to: SocketAddrV4,
    /// Datagrams, or connections
    #[arg(long)]
    pub count: u32,
    /// The server, whose CPU time counts
    #[arg(long)]
    pub server: u32,
    /// First source address of flows that have to be new
    #[arg(long, default_value = "10.245.0.0")]
    pub source: Ipv4Addr,
}

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// Datagrams of one socket
    Datagrams,
    /// The same, each of them answered
    Answered,
    /// Each datagram a new flow, from a raw socket, which has no hooks
    Flows,
    /// Each datagram from a socket of its own, which is bound, connected and closed
    Sockets,
    /// 32 at a time: connect, ask, be answered, close
    Connections,
    /// One at a time; the time that connect takes
    Connect,
}

impl Way {
    /// As on the command line.
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// What a client prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Datagrams sent, or connections made.
    pub operations: u32,
    /// How many of them the server has seen.
    pub delivered: u32,
    /// How long it took.
    pub seconds: f64,
    /// CPU time of everybody who had a part in it.
    pub cpu_seconds: f64,
    /// Median of what connect took.
    pub connect_seconds: f64,
}

/// Does it: the server on the last CPU, the client on the first, which also processes what it sends, up to the server's
/// socket.
pub fn run(load: &Load) -> Result<()> {
    let cpus = cpus()?;
    match load {
        Load::Serve { port } => {
            pin(*cpus.last().context("there is no CPU")?)?;
            server::run(*port)
        }
        Load::Send(send) => {
            pin(*cpus.first().context("there is no CPU")?)?;
            println!("{}", serde_json::to_string(&clients::run(send)?)?);
            Ok(())
        }
    }
}
