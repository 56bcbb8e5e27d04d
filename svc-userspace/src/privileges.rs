//! What this process may do: what the agent needs, and nothing else, from before there is a second thread.
//!
//! | capability | for | kept |
//! |---|---|---|
//! | NET_ADMIN | attaching, nftables, rtnetlink, the ports of `ip_local_reserved_ports`, destroying sockets | always |
//! | BPF | maps, programs, links, their pins | always: maps are written and compared as long as the agent runs |
//! | PERFMON | loading programs that compare pointers | by the first thread, which loads them anew when maps grow, and in force only meanwhile; given up once they are loaded where maps do not grow |
//! | NET_BIND_SERVICE | `--dns`, `--metrics-address`, `--healthz-address` below 1024: a bind that fails is tried again | with such a port |
//! | NET_RAW | saying that an announced address is here: gratuitous ARP | with `--pools` |
//! | SYS_ADMIN | in place of BPF and PERFMON, of which a container runtime may know nothing | without one of these |
//!
//! It never adds one, and it is no error that a capability is missing: `svc check` and the start say what that means.

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs,
    },
};

/// Lowest port that everybody may bind to, unless the host has another limit.
const FIRST_FREE_PORT: u16 = 1024;

/// Why privileges could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("cannot give up the privileges that the agent does not need: {0}")]
pub struct PrivilegeError(#[from] Errno);

/// Gives up all privileges that the agent does not need, for this thread and those it will start, and any program they would
/// start; `ports`: those that are bound to, `pools`: whether addresses may have to be announced. To be called while there is one thread.
pub fn limit(ports: impl Iterator<Item = u16>, pools: bool) -> Result<(), PrivilegeError> {
    set_no_new_privs(true)?;
    let now = capabilities(None)?.permitted;
    let kept = needed(now, ports, pools);
    // Of what may be had again by starting a program. It takes SETPCAP, so it comes before that goes; without, a container's
    // runtime has limited it.
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no more capabilities, or this process may not.
            Err(Errno::INVAL | Errno::PERM) => break,
            Err(error) => return Err(error.into()),
        }
    }
    clear_ambient_capability_set()?;
    keep(kept)
}

/// Lays aside what only loading programs takes, for this thread: [`while_loading`] takes it up.
pub fn lay_loading_aside() -> Result<(), PrivilegeError> {
    let now = capabilities(None)?.permitted;
    let sets =
        CapabilitySets { effective: now - CapabilitySet::PERFMON, permitted: now, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Does something that takes loading programs.
pub fn while_loading<T>(work: impl FnOnce() -> T) -> Result<T, PrivilegeError> {
    keep(capabilities(None)?.permitted)?;
    let result = work();
    lay_loading_aside()?;
    Ok(result)
}

/// Starts a thread that cannot load programs.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let work = move || {
        if let Err(error) = drop_loading() {
            tracing::warn!("{error}");
        }
        work();
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Gives up what only loading programs takes, for this thread.
pub fn drop_loading() -> Result<(), PrivilegeError> {
    let now = capabilities(None)?.permitted;
    keep(now - CapabilitySet::PERFMON)
}

fn keep(kept: CapabilitySet) -> Result<(), PrivilegeError> {
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

fn needed(permitted: CapabilitySet, mut ports: impl Iterator<Item = u16>, pools: bool) -> CapabilitySet {
    let loading = CapabilitySet::BPF | CapabilitySet::PERFMON;
    let mut needed = CapabilitySet::NET_ADMIN | loading;
    if ports.any(|port| (1..FIRST_FREE_PORT).contains(&port)) {
        needed |= CapabilitySet::NET_BIND_SERVICE;
    }
    if pools {
        needed |= CapabilitySet::NET_RAW;
    }
    if !permitted.contains(loading) {
        needed |= CapabilitySet::SYS_ADMIN;
    }
    permitted & needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_depends_on_ports_and_on_what_there_is() {
        let three = CapabilitySet::NET_ADMIN | CapabilitySet::BPF | CapabilitySet::PERFMON;
        let all = CapabilitySet::from_bits_retain(u64::MAX >> 23);
        assert_eq!(needed(all, [10256, 10249, 0].into_iter(), false), three);
        assert_eq!(needed(all, [].into_iter(), true), three | CapabilitySet::NET_RAW);
        assert_eq!(needed(all, [10256, 53].into_iter(), false), three | CapabilitySet::NET_BIND_SERVICE);
        let old = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
        assert_eq!(needed(old, [53].into_iter(), false), CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN);
        assert_eq!(needed(CapabilitySet::CHOWN, [].into_iter(), false), CapabilitySet::empty());
    }
}
