//! The matrix: every kind of client × address × family × protocol × place of the backend × policy × socket hooks × pod
//! network, with real agents and packets, against a model of the rules that shares nothing with the agent.

mod run;
#[path = "../support/mod.rs"]
mod support;
mod table;

use std::{fmt::Write as _, io::Write as _, time::Instant};

use anyhow::{Result, ensure};
use svc_lab::{Cni, Spec, model::SocketLb};

use support::Cluster;
use table::Table;

/// Fills a lab with the table's Services, asks for every cell, and lists the wrong ones.
fn holds(table: &Table, spec: Spec, socket_lb: SocketLb, more: &[&str]) -> Result<()> {
    let start = Instant::now();
    let what = table.name;
    let title = format!(
        "{what}: {:?} pods, rp_filter {}, --socket-lb {} {}",
        spec.cni,
        spec.rp_filter,
        socket_lb.as_str(),
        more.join(" ")
    );
    let (cells, excluded) = table.cells(spec.cni, socket_lb);
    let mut cluster = Cluster::build(spec)?;
    run::prepare(&cluster, table)?;
    cluster.start(&[&["--socket-lb", socket_lb.as_str(), "--external-ips"], more].concat())?;
    let wrong = run::ask(&cluster, &cells)?;
    // Written past the capture of the test harness: a figure nobody sees is no report.
    let mut report = format!("{title}: {} cells in {} s", cells.len(), start.elapsed().as_secs());
    for outcome in ["answered", "refused", "unreachable", "silent"] {
        let count = cells.iter().filter(|cell| cell.outcome() == outcome).count();
        let _ = write!(report, ", {count} {outcome}");
    }
    for (reason, count) in excluded {
        let _ = write!(report, "; {count} not possible: {reason}");
    }
    writeln!(std::io::stderr(), "{report}")?;
    ensure!(wrong.is_empty(), "{title}: {} of {} cells are wrong:\n{}", wrong.len(), cells.len(), wrong.join("\n"));
    Ok(())
}

/// A lab of the matrix.
fn matrix(cni: Cni, rp_filter: u8, socket_lb: SocketLb) -> Result<()> {
    holds(&Table::of_places(), Spec { cni, rp_filter, ..Spec::default() }, socket_lb, &[])
}

#[test]
fn the_matrix_holds_for_routed_pods_with_every_socket_translated() -> Result<()> {
    matrix(Cni::Routed, 0, SocketLb::All)
}

#[test]
fn the_matrix_holds_for_routed_pods_with_the_sockets_of_mode_auto_translated() -> Result<()> {
    matrix(Cni::Routed, 2, SocketLb::Auto)
}

#[test]
fn the_matrix_holds_for_routed_pods_with_the_sockets_of_hosts_translated() -> Result<()> {
    matrix(Cni::Routed, 0, SocketLb::Host)
}

#[test]
fn the_matrix_holds_for_routed_pods_with_no_socket_translated() -> Result<()> {
    matrix(Cni::Routed, 1, SocketLb::Off)
}

#[test]
fn the_matrix_holds_for_bridged_pods_with_every_socket_translated() -> Result<()> {
    matrix(Cni::Bridge, 0, SocketLb::All)
}

#[test]
fn the_matrix_holds_for_bridged_pods_with_the_sockets_of_mode_auto_translated() -> Result<()> {
    matrix(Cni::Bridge, 2, SocketLb::Auto)
}

#[test]
fn the_matrix_holds_for_bridged_pods_with_the_sockets_of_hosts_translated() -> Result<()> {
    matrix(Cni::Bridge, 0, SocketLb::Host)
}

#[test]
fn the_matrix_holds_for_bridged_pods_with_no_socket_translated() -> Result<()> {
    matrix(Cni::Bridge, 1, SocketLb::Off)
}

#[test]
fn the_matrix_holds_for_bridged_pods_with_br_netfilter() -> Result<()> {
    let spec = Spec { cni: Cni::Bridge, rp_filter: 1, br_netfilter: true, ..Spec::default() };
    holds(&Table::of_places(), spec, SocketLb::Auto, &[])
}

#[test]
fn the_matrix_holds_where_the_programs_masquerade() -> Result<()> {
    holds(&Table::of_places(), Spec { rp_filter: 1, ..Spec::default() }, SocketLb::Off, &["--masquerade", "programs"])
}

#[test]
fn the_matrix_holds_for_pods_of_an_overlay_with_every_socket_translated() -> Result<()> {
    matrix(Cni::Vxlan, 0, SocketLb::All)
}

#[test]
fn the_matrix_holds_for_pods_of_an_overlay_with_the_sockets_of_mode_auto_translated() -> Result<()> {
    matrix(Cni::Vxlan, 2, SocketLb::Auto)
}

#[test]
fn the_matrix_holds_for_pods_of_an_overlay_with_the_sockets_of_hosts_translated() -> Result<()> {
    matrix(Cni::Vxlan, 0, SocketLb::Host)
}

#[test]
fn the_matrix_holds_for_pods_of_an_overlay_with_no_socket_translated() -> Result<()> {
    matrix(Cni::Vxlan, 1, SocketLb::Off)
}

#[test]
fn the_matrix_holds_for_endpoints_of_every_condition_asked_through_sockets() -> Result<()> {
    holds(&Table::of_conditions(), Spec { rp_filter: 1, ..Spec::default() }, SocketLb::All, &[])
}

#[test]
fn the_matrix_holds_for_endpoints_of_every_condition_asked_by_packets() -> Result<()> {
    holds(&Table::of_conditions(), Spec { rp_filter: 1, ..Spec::default() }, SocketLb::Host, &[])
}
