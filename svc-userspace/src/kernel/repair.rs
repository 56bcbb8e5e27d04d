//! What somebody else did to pins, attachments and settings, and what undoes it. Entries of the maps that `tables` accounts for
//! are compared by the engine ([`super::compare`]).
//!
//! Every object that is pinned has a descriptor here, so a pin that was removed can be made again. Links have none: a link is
//! detached with its pin, and is made anew.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use svc_common::{Interface, config::INTERFACE_XDP};

use super::{
    Dataplane, InterfaceSpec, attach, cgroup,
    error::KernelError,
    is_absent,
    load::MAPS,
    pins::{Layout, Lock, require_bpffs},
    set_service_cidrs, sys, xdp,
};

/// Something that was changed from outside, and is right again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// What kind of thing: a map's name, `pin`, `tcx`, `clsact`, `cgroup` or `xdp`.
    pub what: &'static str,
    /// What was wrong with which one, for people.
    pub message: String,
}

impl Repaired {
    fn new(what: &'static str, message: impl Into<String>) -> Self {
        Self { what, message: message.into() }
    }
}

/// An object that is pinned.
pub(super) struct Pinned {
    pub(super) name: &'static str,
    pub(super) object: OwnedFd,
    id: u32,
}

impl Pinned {
    fn new(name: &'static str, object: OwnedFd) -> io::Result<Self> {
        let id = sys::object_id(object.as_fd())?;
        Ok(Self { name, object, id })
    }
}

/// Opens all pinned maps.
pub(super) fn maps(layout: &Layout) -> Result<Vec<Pinned>, KernelError> {
    let open = |name: &'static str| {
        let map = sys::object_get(&layout.map(name)).and_then(|map| Pinned::new(name, map));
        map.map_err(|error| KernelError::map(name, error))
    };
    MAPS.into_iter().map(open).collect()
}

impl Dataplane {
    /// Makes pins that are gone or lead elsewhere again. Where another bpffs, or none, is mounted now, everything is pinned there
    /// anew, as soon as there is one.
    pub fn repair_pins(&mut self) -> Result<Vec<Repaired>, KernelError> {
        let mut repaired = Vec::new();
        if !self.is_where_it_was() {
            repaired.push(self.move_pins()?);
        }
        self.layout.create()?;
        for pinned in &self.pinned {
            repaired.extend(repair_pin(&self.layout.map(pinned.name), &pinned.object, pinned.id)?);
        }
        for (name, program) in &self.programs {
            let path = self.layout.program(name);
            let id = sys::object_id(program.as_fd()).map_err(|error| pin_error(&path, "identify it", error))?;
            repaired.extend(repair_pin(&path, program, id)?);
        }
        Ok(repaired)
    }

    /// True if the directory of pins is the one that this agent has locked.
    fn is_where_it_was(&self) -> bool {
        let (there, locked) = (fs::metadata(&self.layout.bpffs), self.lock.metadata());
        there.is_ok_and(|there| locked.is_ok_and(|locked| (there.dev(), there.ino()) == (locked.dev(), locked.ino())))
    }

    /// Goes on in the directory that is there now. The file system which was there lives as long as this agent has a descriptor
    /// in it, and with it the links: these are pinned here as well, and nothing is detached.
    fn move_pins(&mut self) -> Result<Repaired, KernelError> {
        let bpffs = self.layout.bpffs.clone();
        require_bpffs(&bpffs)?;
        fs::create_dir_all(&bpffs).map_err(|error| pin_error(&bpffs, "create it", error))?;
        let lock = Lock::take(&bpffs)?;
        self.layout.create()?;
        let before = Path::new("/proc/self/fd").join(self.lock.as_fd().as_raw_fd().to_string());
        let mut links = 0;
        for (name, path) in Layout::current(&before).links()? {
            let new = self.layout.link(&name);
            if new.exists() {
                continue;
            }
            let link = sys::object_get(&path).map_err(|error| pin_error(&path, "open the link", error))?;
            sys::object_pin(link.as_fd(), &new).map_err(|error| pin_error(&new, "pin the link", error))?;
            links += 1;
        }
        self.lock = lock;
        Ok(Repaired::new(
            "pin",
            format!("{} was another file system: {links} links are pinned here now", bpffs.display()),
        ))
    }

    /// Attaches the socket hooks again that somebody detached or replaced.
    pub fn repair_cgroup(&mut self) -> Result<Vec<Repaired>, KernelError> {
        let Some(directory) = self.cgroup.clone() else { return Ok(Vec::new()) };
        let missing = cgroup::missing(&self.layout, &self.programs, &directory)?;
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        cgroup::attach(&self.layout, &self.programs, &directory)?;
        let told = |hook: &str| Repaired::new("cgroup", format!("{hook} was not attached to {}", directory.display()));
        Ok(missing.into_iter().map(told).collect())
    }

    /// Writes CONFIG and SERVICE_CIDRS again where they differ.
    pub fn repair_settings(&mut self) -> Result<Vec<Repaired>, KernelError> {
        let mut repaired = Vec::new();
        let failed = |error| KernelError::map("CONFIG", error);
        if self.maps.config.get(&0, 0).map_err(failed)? != self.config {
            self.maps.config.set(0, self.config, 0).map_err(failed)?;
            repaired.push(Repaired::new("CONFIG", "it had been changed"));
        }
        if set_service_cidrs(&mut self.maps, &self.service_cidrs)? {
            repaired.push(Repaired::new("SERVICE_CIDRS", "a prefix had been changed"));
        }
        Ok(repaired)
    }

    /// Attaches the programs of an interface again if they are not all attached, and writes its entry of INTERFACES again if that
    /// is another one.
    pub fn repair_interface(&mut self, interface: &InterfaceSpec) -> Result<Vec<Repaired>, KernelError> {
        let name = &interface.name;
        let mut repaired = Vec::new();
        let how = if self.tcx { "tcx" } else { "clsact" };
        for program in attach::missing(&self.layout, &self.programs, self.tcx, interface)? {
            repaired.push(Repaired::new(how, format!("{program} was not attached to {name}")));
        }
        let has_xdp = self.xdp_attached.contains(&interface.index);
        if has_xdp && !xdp::is_attached(&self.layout, &self.programs, self.xdp, interface.index) {
            repaired.push(Repaired::new("xdp", format!("{} was not attached to {name}", self.xdp.program())));
        }
        let entry =
            Interface { flags: interface.entry.flags | if has_xdp { INTERFACE_XDP } else { 0 }, ..interface.entry };
        match self.maps.interfaces.get(&interface.index, 0) {
            Ok(found) if found == entry => {}
            Ok(_) => repaired.push(Repaired::new("INTERFACES", format!("the entry of {name} had been changed"))),
            Err(error) if is_absent(&error) => {
                repaired.push(Repaired::new("INTERFACES", format!("the entry of {name} was missing")));
            }
            Err(error) => return Err(KernelError::map("INTERFACES", error)),
        }
        if !repaired.is_empty() || self.xdp_refused.contains_key(&interface.index) {
            self.set_interface(interface)?;
        }
        Ok(repaired)
    }

    /// Uplinks that should have the XDP program and do not.
    pub fn xdp_missing(&self) -> usize {
        self.xdp_refused.len()
    }
}

/// Pins an object again if it is not what is pinned there.
fn repair_pin(path: &Path, object: &OwnedFd, id: u32) -> Result<Option<Repaired>, KernelError> {
    let problem = match sys::object_get(path) {
        Ok(found) if sys::object_id(found.as_fd()).is_ok_and(|found| found == id) => return Ok(None),
        Ok(_) => "led to another object",
        Err(error) if error.kind() == io::ErrorKind::NotFound => "was missing",
        // Whatever cannot be opened is in the way; that it cannot be removed is an error then.
        Err(_) => "led to something else",
    };
    let removed = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(pin_error(path, "remove it", error)),
        _ => {}
    }
    sys::object_pin(object.as_fd(), path).map_err(|error| pin_error(path, "pin it again", error))?;
    Ok(Some(Repaired::new("pin", format!("{} {problem}", path.display()))))
}

fn pin_error(path: &Path, action: &'static str, error: io::Error) -> KernelError {
    KernelError::Pin { path: PathBuf::from(path), action, error }
}
