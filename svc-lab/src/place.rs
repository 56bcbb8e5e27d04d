//! A place where a process can run: a network namespace and a cgroup. It owns neither; the lab removes both.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::Write,
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use nix::sched::{CloneFlags, setns};

use crate::LabError;

/// A network namespace and a cgroup. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Place {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    namespace: String,
    netns: File,
    cgroup: PathBuf,
}

impl Place {
    /// The place made of an existing named namespace and a cgroup directory, which is created if need be.
    pub(crate) fn new(name: &str, namespace: &str, cgroup: PathBuf) -> Result<Self, LabError> {
        let path = namespace_path(namespace);
        let netns = File::open(&path).map_err(LabError::path("open", &path))?;
        fs::create_dir_all(&cgroup).map_err(LabError::path("create", &cgroup))?;
        Ok(Self { inner: Arc::new(Inner { name: name.into(), namespace: namespace.into(), netns, cgroup }) })
    }

    /// Short name within the lab: `node1`, `outside`, or the pod's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Name of the network namespace, as `ip netns` lists it.
    pub fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// The cgroup v2 directory.
    pub fn cgroup(&self) -> &Path {
        &self.inner.cgroup
    }

    /// A command that will run in this namespace and cgroup. The mount namespace stays the caller's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command, LabError> {
        let netns = self.inner.netns.try_clone().map_err(LabError::io("duplicate a namespace handle"))?;
        let procs = self.inner.cgroup.join("cgroup.procs");
        let mut procs =
            OpenOptions::new().write(true).open(&procs).map_err(LabError::path("open for writing", &procs))?;
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes two system calls on descriptors opened before; it allocates
        // nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                procs.write_all(b"0")?;
                setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(())
            });
        }
        Ok(command)
    }

    /// Runs a program here to its end; its standard output, or an error that carries its standard error.
    pub fn exec<A: AsRef<OsStr>>(&self, program: impl AsRef<OsStr>, arguments: &[A]) -> Result<String, LabError> {
        let mut command = self.command(program)?;
        command.args(arguments);
        capture(&mut command, None)
    }

    /// Runs a program here and feeds it `input`.
    pub fn exec_with<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: &[A],
        input: &str,
    ) -> Result<String, LabError> {
        let mut command = self.command(program)?;
        command.args(arguments);
        capture(&mut command, Some(input))
    }

    /// Runs lines of `ip` commands (without the word `ip`) in this namespace.
    pub fn ip(&self, batch: &str) -> Result<String, LabError> {
        capture(Command::new("ip").args(["-n", self.namespace(), "-batch", "-"]), Some(batch))
    }

    /// Reads a sysctl of this namespace, e.g. `net.ipv4.ip_forward`. Use `/` where an interface name has a dot.
    pub fn sysctl(&self, key: &str) -> Result<String, LabError> {
        let path = sysctl_path(key);
        self.enter(|| fs::read_to_string(&path).map_err(LabError::path("read", &path)))?
            .map(|text| text.trim().to_owned())
    }

    /// Writes sysctls of this namespace.
    pub fn set_sysctls(&self, pairs: &[(&str, &str)]) -> Result<(), LabError> {
        self.enter(|| {
            for (key, value) in pairs {
                let path = sysctl_path(key);
                fs::write(&path, value).map_err(LabError::path(&format!("write {value} to"), &path))?;
            }
            Ok(())
        })?
    }

    /// Runs `work` on a thread of its own in this network namespace (but in the caller's cgroup, so that socket hooks
    /// of this place do not see it).
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let netns = &self.inner.netns;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| LabError::Io {
                    what: format!("enter network namespace {}", self.namespace()),
                    source: errno.into(),
                })?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Where `ip netns` keeps a namespace of that name.
pub(crate) fn namespace_path(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

fn sysctl_path(key: &str) -> PathBuf {
    let relative = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    Path::new("/proc/sys").join(relative)
}

/// Runs a command to its end and returns its standard output.
pub(crate) fn capture(command: &mut Command, input: Option<&str>) -> Result<String, LabError> {
    let line = describe(command);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(LabError::io(format!("start {line}")))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A program that stops reading early says why on its standard error, which is the better message.
        let written = stdin.write_all(input.as_bytes());
        if let Err(error) = written
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            return Err(LabError::io(format!("write to {line}"))(error));
        }
    }
    let output = child.wait_with_output().map_err(LabError::io(format!("wait for {line}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let mut stderr = if stderr.is_empty() { output.status.to_string() } else { stderr };
    if let Some(input) = input {
        use std::fmt::Write as _;
        let _ = write!(stderr, " (input: {})", input.trim().replace('\n', "; "));
    }
    Err(LabError::Command { command: line, stderr })
}

/// The command line as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
