//! The connect-time hooks: sock_addr programs on a cgroup v2 directory, as pinned links.

use std::{
    fs,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{
    error::KernelError,
    links::{self, LinkTarget},
    load::Programs,
    pins::Layout,
    sys,
};

/// One hook.
pub(super) struct Hook {
    /// Program name, which is the name of the link's pin as well.
    pub(super) program: &'static str,
    /// `enum bpf_attach_type`.
    pub(super) attach_type: u32,
}

/// The hooks, in the order of attaching: answers are translated before requests are, so that no socket that a request
/// hook has touched is seen by the kernel without its answer hook.
pub(super) const HOOKS: [Hook; 8] = [
    Hook { program: "svc_recvmsg4", attach_type: 19 },
    Hook { program: "svc_recvmsg6", attach_type: 20 },
    Hook { program: "svc_getpeer4", attach_type: 29 },
    Hook { program: "svc_getpeer6", attach_type: 30 },
    Hook { program: "svc_connect4", attach_type: 10 },
    Hook { program: "svc_connect6", attach_type: 11 },
    Hook { program: "svc_sendmsg4", attach_type: 14 },
    Hook { program: "svc_sendmsg6", attach_type: 15 },
];

/// Attaches all hooks to a directory; links that are there already are updated in place.
pub(super) fn attach(layout: &Layout, programs: &Programs, directory: &Path) -> Result<(), KernelError> {
    require_cgroup2(directory)?;
    let failed = |message: String| KernelError::Cgroup {
        path: directory.to_owned(),
        message: format!("cannot attach {message}"),
    };
    let cgroup = fs::File::open(directory).map_err(|error| failed(format!("hooks: {error}")))?;
    // The id of a cgroup is the number of its inode (`cgroup_id`, include/linux/cgroup.h).
    let id = cgroup.metadata().map_err(|error| failed(format!("hooks: {error}")))?.ino();
    for hook in &HOOKS {
        let path = layout.link(hook.program);
        let program = programs.get(hook.program).ok_or_else(|| failed(format!("{}: not loaded", hook.program)))?;
        let wanted = LinkTarget::Cgroup { id, attach_type: hook.attach_type };
        if let Some(link) = super::attach::adopt(&path, wanted)? {
            links::update(link.as_fd(), program.as_fd())
                .map_err(|error| failed(format!("{}: link update: {error}", hook.program)))?;
            continue;
        }
        let link = links::create_cgroup(program.as_fd(), cgroup.as_fd(), hook.attach_type).map_err(|error| {
            failed(format!("{}: {error}: run with the capabilities BPF and NET_ADMIN", hook.program))
        })?;
        sys::object_pin(link.as_fd(), &path).map_err(|error| KernelError::Pin {
            path,
            action: "pin the link",
            error,
        })?;
    }
    Ok(())
}

/// Hooks that are not attached to a directory.
pub(super) fn missing(
    layout: &Layout,
    programs: &Programs,
    directory: &Path,
) -> Result<Vec<&'static str>, KernelError> {
    let id = fs::metadata(directory).map_err(|error| KernelError::Cgroup {
        path: directory.to_owned(),
        message: format!("it cannot be read ({error})"),
    })?;
    let is_missing = |hook: &&Hook| {
        let target = LinkTarget::Cgroup { id: id.ino(), attach_type: hook.attach_type };
        programs.get(hook.program).is_some_and(|program| !links::has(&layout.link(hook.program), target, program))
    };
    Ok(HOOKS.iter().filter(is_missing).map(|hook| hook.program).collect())
}

/// Detaches all hooks.
pub(super) fn detach(layout: &Layout) -> Result<(), KernelError> {
    // Requests first: what is connected meanwhile needs no answer hook.
    for hook in HOOKS.iter().rev() {
        super::attach::unpin(&layout.link(hook.program))?;
    }
    Ok(())
}

/// Refuses a directory that is not on a cgroup v2 file system, and names one that is.
pub(super) fn require_cgroup2(directory: &Path) -> Result<(), KernelError> {
    let found = statfs(directory);
    if found.is_ok_and(|kind| kind.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        return Ok(());
    }
    let problem = match found {
        Ok(_) => "it is not on a cgroup v2 file system".to_owned(),
        Err(errno) => format!("it cannot be read ({})", std::io::Error::from(errno)),
    };
    let remedy = match mounted_cgroup2() {
        Some(mount) => format!("use --cgroup {mount}"),
        None => "mount -t cgroup2 none /sys/fs/cgroup, or turn the socket hooks off with --socket-lb off".to_owned(),
    };
    Err(KernelError::Cgroup { path: directory.to_owned(), message: format!("{problem}: {remedy}") })
}

/// Where cgroup v2 is mounted.
pub(super) fn mounted_cgroup2() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, directory, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| directory.to_owned())
    })
}
