//! A process of the lab that keeps running: started with a log file, awaited until ready, killed when dropped.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{LabError, place::describe};

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    line: String,
    log: PathBuf,
    stdout: Option<BufReader<ChildStdout>>,
    keep: bool,
}

impl Process {
    /// Starts a command whose standard error goes to `log`; its standard input and output are pipes.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self, LabError> {
        let line = describe(&command);
        let file = File::options().create(true).append(true).open(log).map_err(LabError::path("open the log", log))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().map_err(LabError::io(format!("start {line}")))?;
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Self { child, line, log: log.into(), stdout, keep: false })
    }

    /// Starts a command whose standard output and error both go to `log`, with no standard input.
    pub(crate) fn start_logged(mut command: Command, log: &Path) -> Result<Self, LabError> {
        let line = describe(&command);
        let file = File::options().create(true).append(true).open(log).map_err(LabError::path("open the log", log))?;
        let other = file.try_clone().map_err(LabError::path("open the log", log))?;
        command.stdin(Stdio::null()).stdout(other).stderr(file);
        let child = command.spawn().map_err(LabError::io(format!("start {line}")))?;
        Ok(Self { child, line, log: log.into(), stdout: None, keep: false })
    }

    /// The next line of its standard output; an error with the end of the log when there is none.
    pub(crate) fn line(&mut self) -> Result<String, LabError> {
        let mut text = String::new();
        if let Some(stdout) = &mut self.stdout {
            stdout.read_line(&mut text).map_err(LabError::io(format!("read from {}", self.line)))?;
        }
        if text.is_empty() {
            return Err(LabError::Command { command: self.line.clone(), stderr: self.log_tail() });
        }
        Ok(text.trim_end().to_owned())
    }

    /// Writes to its standard input.
    pub(crate) fn tell(&mut self, text: &str) -> Result<(), LabError> {
        match &mut self.child.stdin {
            Some(stdin) => match stdin.write_all(text.as_bytes()) {
                // It has ended by itself, and its last words can still be read.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                result => result.map_err(LabError::io(format!("write to {}", self.line))),
            },
            None => Ok(()),
        }
    }

    /// Waits until it says more, or has nothing more to say: false then.
    pub(crate) fn is_talking(&mut self) -> Result<bool, LabError> {
        match &mut self.stdout {
            Some(stdout) => {
                Ok(!stdout.fill_buf().map_err(LabError::io(format!("read from {}", self.line)))?.is_empty())
            }
            None => Ok(false),
        }
    }

    /// Takes its standard input; dropping that closes it.
    pub(crate) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let pid = i32::try_from(self.id()).map_err(|_| LabError::Invalid(format!("{}: no such pid", self.line)))?;
        kill(Pid::from_raw(pid), signal)
            .map_err(|errno| LabError::Io { what: format!("signal {}", self.line), source: errno.into() })
    }

    /// Its exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, LabError> {
        self.child.try_wait().map_err(LabError::io(format!("wait for {}", self.line)))
    }

    /// Lets it run on when this is dropped.
    #[must_use]
    pub(crate) fn kept(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// The last lines of its log.
    pub(crate) fn log_tail(&self) -> String {
        let text = match fs::read_to_string(&self.log) {
            Ok(text) => text,
            Err(error) => return format!("(its log cannot be read: {error})"),
        };
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        if tail.is_empty() { "(nothing in its log)".into() } else { tail }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Both fail only if the process is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
