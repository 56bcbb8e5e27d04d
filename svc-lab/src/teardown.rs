//! A lab's traces on the machine (its name, lock, directories, namespaces, cgroups, pins) and their removal.
//!
//! It never looks at who is in the lab: whatever runs in the lab's cgroups or namespaces is killed.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::{LabError, place::capture, wait::until};

/// Every lab's name starts with it.
const PREFIX: &str = "svclab-";
const STATE: &str = "/run/svc-lab";
const BPFFS: &str = "/sys/fs/bpf";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Name and directories of one lab. Holding it (its lock) is what makes a lab alive.
#[derive(Debug)]
pub(crate) struct Traces {
    /// `svclab-<pid>-<n>`.
    pub(crate) id: String,
    /// Logs, manifests and the lock.
    pub(crate) state: PathBuf,
    /// Root of the lab's cgroups.
    pub(crate) cgroup: PathBuf,
    /// Root of the lab's pins.
    pub(crate) bpffs: PathBuf,
    _lock: File,
}

impl Traces {
    /// Claims a fresh name and makes the directories.
    pub(crate) fn create() -> Result<Self, LabError> {
        let id = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        mount_bpffs()?;
        let (state, cgroup, bpffs) = (state_of(&id), cgroup_mount()?.join(&id), Path::new(BPFFS).join(&id));
        // A dead process of the same number may have left something under this name.
        remove(&id)?;
        fs::create_dir_all(&state).map_err(LabError::path("create", &state))?;
        let lock = File::create(state.join("lock")).map_err(LabError::path("create a lock in", &state))?;
        lock.lock().map_err(LabError::path("lock", &state))?;
        for directory in [&cgroup, &bpffs, &state.join("logs")] {
            fs::create_dir_all(directory).map_err(LabError::path("create", directory))?;
        }
        Ok(Self { id, state, cgroup, bpffs, _lock: lock })
    }

    /// Full name of one of the lab's namespaces.
    pub(crate) fn namespace(&self, short: &str) -> String {
        format!("{}-{short}", self.id)
    }
}

/// Removes what labs whose process is gone left behind; `only`: just that lab. Returns the names of those removed.
pub fn clean(only: Option<&str>) -> Result<Vec<String>, LabError> {
    let mut removed = Vec::new();
    for id in found()? {
        if only.is_none_or(|only| only == id) && !is_alive(&id)? {
            remove(&id)?;
            removed.push(id);
        }
    }
    Ok(removed)
}

/// Removes the labs of this process under its hands: for the moment before an exit that runs no destructors.
pub fn remove_own() -> Result<(), LabError> {
    let own = format!("{PREFIX}{}-", std::process::id());
    found()?.iter().filter(|id| id.starts_with(&own)).try_for_each(|id| remove(id))
}

/// Names of all labs that have left a trace.
fn found() -> Result<Vec<String>, LabError> {
    let mut ids: Vec<String> = Vec::new();
    let cgroups = cgroup_mount()?;
    for directory in [Path::new(STATE), &cgroups, Path::new(BPFFS), Path::new("/run/netns")] {
        for name in names(directory)? {
            let id = name.splitn(4, '-').take(3).collect::<Vec<_>>().join("-");
            if name.starts_with(PREFIX) && !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    Ok(ids)
}

/// Whether the process that built the lab still holds it.
fn is_alive(id: &str) -> Result<bool, LabError> {
    let path = state_of(id).join("lock");
    match File::open(&path) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(LabError::path("lock", &path)(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(LabError::path("open", &path)(error)),
    }
}

/// Removes every trace of a lab: processes first, then pins, namespaces, cgroups, files. Goes on after a failure and
/// reports the first.
pub(crate) fn remove(id: &str) -> Result<(), LabError> {
    let mut first = Ok(());
    let mut note = |result: Result<(), LabError>| {
        if first.is_ok() {
            first = result;
        }
    };
    let cgroup = cgroup_mount()?.join(id);
    note(kill_all(&cgroup));
    note(remove_files(&Path::new(BPFFS).join(id)));
    let mine = |name: &String| name.starts_with(&format!("{id}-"));
    let namespaces: Vec<String> = names(Path::new("/run/netns"))?.into_iter().filter(mine).collect();
    if !namespaces.is_empty() {
        let batch: Vec<String> = namespaces.iter().map(|name| format!("netns delete {name}\n")).collect();
        note(capture(Command::new("ip").args(["-force", "-batch", "-"]), Some(&batch.concat())).map(drop));
    }
    note(remove_cgroups(&cgroup));
    note(remove_files(&state_of(id)));
    first
}

/// Kills what runs in a cgroup and removes it.
pub(crate) fn remove_cgroup(cgroup: &Path) -> Result<(), LabError> {
    kill_all(cgroup)?;
    remove_cgroups(cgroup)
}

fn kill_all(cgroup: &Path) -> Result<(), LabError> {
    if !cgroup.exists() {
        return Ok(());
    }
    let kill = cgroup.join("cgroup.kill");
    fs::write(&kill, "1").map_err(LabError::path("kill the processes of", cgroup))?;
    until(&format!("the end of the processes in {}", cgroup.display()), Duration::from_secs(10), || {
        let events = fs::read_to_string(cgroup.join("cgroup.events"));
        events.is_ok_and(|text| text.contains("populated 0")).then_some(()).ok_or(String::new())
    })
}

fn remove_cgroups(directory: &Path) -> Result<(), LabError> {
    if !directory.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(directory).map_err(LabError::path("list", directory))? {
        let entry = entry.map_err(LabError::path("list", directory))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(directory).map_err(LabError::path("remove cgroup", directory))
}

fn remove_files(directory: &Path) -> Result<(), LabError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LabError::path("remove", directory)(error)),
        _ => Ok(()),
    }
}

fn state_of(id: &str) -> PathBuf {
    Path::new(STATE).join(id)
}

/// Names in a directory; none if there is no such directory.
fn names(directory: &Path) -> Result<Vec<String>, LabError> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(LabError::path("list", directory)(error)),
    }
}

/// Where cgroup v2 is mounted.
fn cgroup_mount() -> Result<PathBuf, LabError> {
    let mounts = fs::read_to_string("/proc/mounts").map_err(LabError::io("read /proc/mounts"))?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .ok_or_else(|| LabError::Invalid("no cgroup v2 is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup".into()))
}

fn mount_bpffs() -> Result<(), LabError> {
    let mounted = statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if mounted {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| LabError::Io { what: format!("mount bpffs at {BPFFS} (are you root?)"), source: errno.into() })
}
