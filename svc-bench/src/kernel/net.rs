//! A network of the measuring thread's own, with a way out for frames that leave by XDP: an uplink, and a gateway whose
//! hardware address is known for good.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};

use super::world::{Family, end};

const UPLINK: &str = "uplink";
const GATEWAY_MAC: &str = "02:00:00:00:00:63";

/// Moves this thread into a new network namespace, which ends with it, and returns the index of the uplink.
pub(super) fn enter() -> Result<u32> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace cannot be made (root)")?;
    for (setting, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
        let path = format!("/proc/sys/net/{setting}");
        fs::write(&path, value).with_context(|| format!("cannot write {path}"))?;
    }
    let mut batch = format!(
        "link set lo up\nlink add {UPLINK} type veth peer name other\nlink set {UPLINK} up\nlink set other up\n"
    );
    batch += &way::<[u8; 4]>(24, "");
    batch += &way::<[u8; 16]>(112, "nodad");
    ip(&batch)?;
    if_nametoindex(UPLINK).context("the uplink has no index")
}

fn way<A: Family>(len: u8, flag: &str) -> String {
    let (node, gateway) = (A::ending(end::NODE).text(), A::ending(end::GATEWAY).text());
    format!(
        "address add {node}/{len} dev {UPLINK} {flag}\n\
         neighbour add {gateway} lladdr {GATEWAY_MAC} dev {UPLINK} nud permanent\n\
         route add default via {gateway} dev {UPLINK}\n"
    )
}

fn ip(batch: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run ip: `cargo xtask setup` installs it")?;
    child.stdin.take().context("ip has no standard input")?.write_all(batch.as_bytes())?;
    ensure!(child.wait()?.success(), "ip failed");
    Ok(())
}
