//! The demonstration: a cluster of two nodes and a client outside, agents, and a request along every path of a Service.
//!
//! It tells a story and checks it; what the paths are is in `paths`, how the cluster is made in `cluster`.

mod cluster;
mod interrupt;
mod names;
mod paths;
mod pools;
mod table;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{Cni, Lab, Node, Source, Spec};

/// Command line of `svc-lab demo`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// The `svc` program; by default the one beside this program
    #[arg(long, value_name = "PATH")]
    pub svc: Option<PathBuf>,
    /// Directory of manifests to take the Services from
    #[arg(long, value_name = "DIR", default_value = "deploy/examples")]
    pub examples: PathBuf,
    /// Shape of the pod network
    #[arg(long, value_enum, default_value_t)]
    pub cni: Cni,
    /// Leave the cluster up, and say how to look around
    #[arg(long)]
    pub keep: bool,
}

/// Runs the demonstration; an error if a request did not end as it should have.
pub fn run(options: &Options) -> Result<()> {
    let svc = match &options.svc {
        Some(path) => path.canonicalize().with_context(|| format!("no svc program at {}", path.display()))?,
        None => crate::binary::svc()?,
    };
    let services = cluster::Services::read(&options.examples)?;
    let _watch = interrupt::clean_up_on_signals()?;
    let result = show(options, &svc, services);
    interrupt::hold();
    result
}

fn show(options: &Options, svc: &Path, services: cluster::Services) -> Result<()> {
    println!("Building two nodes ({} pod network), a router and a client outside …", name(options.cni));
    let lab = Lab::build(Spec { cni: options.cni, rp_filter: 1, keep: options.keep, ..Spec::default() })?;
    println!("Starting pods and the Services of {} …", options.examples.display());
    let shop = cluster::Shop::open(&lab, services)?;
    println!("Starting an agent on each node …");
    let mut agents = Vec::new();
    let file = pools::write(&lab)?;
    let file = file.to_str().context("the lab's directory has a strange name")?;
    for node in lab.nodes() {
        let arguments = [&names::argument(node), "--pools", file];
        let mut agent = lab.agent(node.index, Source::Manifests(shop.manifests.path()), &arguments)?;
        agent.set_program(svc);
        agent.start()?;
        agents.push(agent);
    }
    for agent in &mut agents {
        agent.wait_ready()?;
    }
    let given = pools::given(&agents, &shop)?;
    let texts: Vec<String> = given.iter().map(ToString::to_string).collect();
    println!("Out of a pool, Service {} got {} …", shop.services.load_balancer.name(), texts.join(" and "));
    println!();
    let mut rows = paths::walk(&lab, &shop, &given);
    rows.extend(names::walk(&lab, &shop));
    interrupt::hold();
    let (failed, total) = table::print(&rows)?;
    println!();
    hints(&lab, svc, options, &given);
    if failed > 0 {
        for agent in &agents {
            println!("\nLast words of the agent of {}:\n{}", agent.node().name(), agent.log_tail());
        }
        let hint = if options.keep { "" } else { " (to look around, run it again with --keep)" };
        bail!("{failed} of {total} rows are not what they should be{hint}");
    }
    Ok(())
}

fn hints(lab: &Lab, svc: &Path, options: &Options, given: &[IpAddr]) {
    let svc = svc.display();
    println!("What to try next");
    if !options.keep {
        println!("  the same, left up to look around:   add --keep");
        println!("  another pod network:                add --cni bridge, or --cni vxlan");
        return;
    }
    let Some(vip) = given.iter().find(|address| address.is_ipv4()) else { return };
    let node = lab.node(1);
    let bpffs = node.bpffs.display();
    let exe = std::env::current_exe().map_or_else(|_| "svc-lab".into(), |path| path.display().to_string());
    println!("  what node1 knows:     {} {svc} services --bpffs {bpffs}", enter(node));
    println!("                        {} {svc} status --bpffs {bpffs}", enter(node));
    println!("                        {} {svc} flows --bpffs {bpffs}", enter(node));
    println!("  why it goes there:    {} {svc} explain 198.51.100.10 {vip}:80 --bpffs {bpffs}", enter(node));
    println!("  what the kernel has:  bpftool map dump pinned {bpffs}/layout-2/maps/FRONTENDS_V4");
    println!("                        bpftool prog show");
    println!("  ask from outside:     ip netns exec {} {exe} probe tcp {vip}:80", lab.outside().namespace());
    println!("  a shell on node1:     ip netns exec {} bash", node.namespace());
    println!("  change a Service:     edit the files in {}", lab.directory().join("manifests").display());
    println!("  the agents' logs:     {}", lab.logs().display());
    println!("  remove all of it:     {exe} clean --lab {}", lab.id());
}

/// Enters the network namespace but stays where bpffs is mounted, which `ip netns exec` does not.
fn enter(node: &Node) -> String {
    format!("nsenter --net=/run/netns/{}", node.namespace())
}

fn name(cni: Cni) -> &'static str {
    match cni {
        Cni::Routed => "routed",
        Cni::Bridge => "bridge",
        Cni::Vxlan => "VXLAN",
    }
}
