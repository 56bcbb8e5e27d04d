//! Agents: `svc agent` in a node's namespace and cgroup, with pins of its own. It never judges what the agent programs.

use std::{
    ffi::OsString,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Lab, LabError, Node, binary, process::Process, until};

/// Where agents answer `/healthz` within their node.
pub const HEALTHZ: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 10256);
/// Where agents serve `/metrics` within their node.
pub const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 10249);
/// Longest wait for an agent, a loaded machine included.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where an agent gets its objects from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A directory of manifests.
    Manifests(&'a Path),
    /// An API server, by a kubeconfig file.
    Kubeconfig(&'a Path),
}

/// An agent of a node; dropping it kills it (-9), which leaves the dataplane in place. In a test that panics, the end
/// of its log is printed.
#[derive(Debug)]
pub struct Agent {
    node: Node,
    program: Option<PathBuf>,
    arguments: Vec<OsString>,
    log: PathBuf,
    keep: bool,
    process: Option<Process>,
}

impl Lab {
    /// Starts the agent of a node (counted from 1) and waits until it is ready.
    pub fn start_agent(&self, node: u8, source: Source<'_>, extra: &[&str]) -> Result<Agent, LabError> {
        let mut agent = self.agent(node, source, extra)?;
        agent.start()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts agents on all nodes and waits until all are ready.
    pub fn start_agents(&self, source: Source<'_>, extra: &[&str]) -> Result<Vec<Agent>, LabError> {
        let mut agents: Vec<Agent> =
            self.nodes().iter().map(|node| self.agent(node.index, source, extra)).collect::<Result<_, _>>()?;
        agents.iter_mut().try_for_each(Agent::start)?;
        agents.iter_mut().try_for_each(Agent::wait_ready)?;
        Ok(agents)
    }

    /// An agent that is not started yet.
    pub fn agent(&self, node: u8, source: Source<'_>, extra: &[&str]) -> Result<Agent, LabError> {
        let node = self.node(node).clone();
        let (healthz, metrics) = (SocketAddr::from(HEALTHZ).to_string(), SocketAddr::from(METRICS).to_string());
        let mut arguments: Vec<OsString> =
            ["agent", "--node-name", node.name(), "--uplink", "eth0"].map(Into::into).into();
        let (option, path) = match source {
            Source::Manifests(path) => ("--manifests", path),
            Source::Kubeconfig(path) => ("--kubeconfig", path),
        };
        for (option, value) in [
            (option, path.as_os_str()),
            ("--bpffs", node.bpffs.as_os_str()),
            ("--cgroup", node.cgroup().as_os_str()),
            ("--metrics-address", metrics.as_ref()),
            ("--healthz-address", healthz.as_ref()),
        ] {
            arguments.extend([option.into(), value.to_owned()]);
        }
        arguments.extend(extra.iter().map(Into::into));
        let log = self.logs().join(format!("agent-{}.log", node.name()));
        Ok(Agent { node, program: None, arguments, log, keep: self.spec().keep, process: None })
    }

    /// Runs `svc` in a node with that node's pins, e.g. `["services", "-o", "json"]`; its standard output.
    pub fn svc(&self, node: u8, arguments: &[&str]) -> Result<String, LabError> {
        svc(self.node(node), &binary::svc()?, arguments)
    }
}

impl Agent {
    /// Starts it (again); does not wait. Its log goes on in the same file.
    pub fn start(&mut self) -> Result<(), LabError> {
        if self.process.is_some() {
            return Err(LabError::Invalid(format!("the agent of {} runs already", self.node.name())));
        }
        let mut command = self.node.command(self.program()?)?;
        command.args(&self.arguments);
        self.process = Some(Process::start_logged(command, &self.log)?.kept(self.keep));
        Ok(())
    }

    /// Uses another program than the `svc` that was found, from the next start on: an upgrade.
    pub fn set_program(&mut self, svc: impl Into<PathBuf>) {
        self.program = Some(svc.into());
    }

    /// Waits until `/healthz` says 200 and `svc status` says that everything has been programmed once.
    pub fn wait_ready(&mut self) -> Result<(), LabError> {
        let what = format!("readiness of the agent of {}", self.node.name());
        let outcome = until(&what, PATIENCE, || match self.look() {
            Ok(()) => Ok(Ok(())),
            // There is no use in waiting for a process that has ended.
            Err(last) => match self.has_ended() {
                Ok(None) => Err(last),
                Ok(Some(status)) => Ok(Err(LabError::Command {
                    command: format!("agent of {}", self.node.name()),
                    stderr: format!("{status}\n{}", self.log_tail()),
                })),
                Err(error) => Ok(Err(error)),
            },
        });
        match outcome {
            Err(LabError::Timeout { what, seconds, detail }) => {
                Err(LabError::Timeout { what, seconds, detail: format!("{detail}\n{}", self.log_tail()) })
            }
            Err(other) => Err(other),
            Ok(outcome) => outcome,
        }
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Result<(), LabError> {
        self.end(Signal::SIGKILL).map(drop)
    }

    /// Sends SIGTERM and waits for its end.
    pub fn terminate(&mut self) -> Result<ExitStatus, LabError> {
        self.end(Signal::SIGTERM)
    }

    /// The exit status of an agent that ended by itself.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>, LabError> {
        self.process.as_mut().map_or(Ok(None), Process::ended)
    }

    /// Process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The node it works for.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its log file: all runs, one after the other.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Runs `svc` with this node's pins, e.g. `["services", "-o", "json"]`; its standard output.
    pub fn svc(&self, arguments: &[&str]) -> Result<String, LabError> {
        svc(&self.node, &self.program()?, arguments)
    }

    fn program(&self) -> Result<PathBuf, LabError> {
        self.program.clone().map_or_else(binary::svc, Ok)
    }

    /// `GET` of a path of its health port: status code and body.
    pub fn healthz(&self, path: &str) -> Result<(u16, String), LabError> {
        http_get(&self.node, HEALTHZ.into(), path)
    }

    /// Its metrics, in Prometheus' text format.
    pub fn metrics(&self) -> Result<String, LabError> {
        http_get(&self.node, METRICS.into(), "/metrics").map(|(_, body)| body)
    }

    fn look(&self) -> Result<(), String> {
        let (code, body) = self.healthz("/healthz").map_err(|error| error.to_string())?;
        if code != 200 {
            return Err(format!("/healthz says {code}: {}", body.trim()));
        }
        let text = self.svc(&["status", "-o", "json"]).map_err(|error| error.to_string())?;
        if says_synced(&text) { Ok(()) } else { Err("`svc status` does not say synced".into()) }
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus, LabError> {
        let name = self.node.name();
        let mut process =
            self.process.take().ok_or_else(|| LabError::Invalid(format!("the agent of {name} does not run")))?;
        process.signal(signal)?;
        until(&format!("the end of the agent of {name}"), PATIENCE, || match process.ended() {
            Ok(Some(status)) => Ok(Ok(status)),
            Ok(None) => Err(String::new()),
            Err(error) => Ok(Err(error)),
        })?
    }

    /// The last lines of its log, while it runs.
    pub fn log_tail(&self) -> String {
        self.process.as_ref().map(Process::log_tail).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() && self.process.is_some() {
            eprintln!("--- log of the agent of {} ---\n{}", self.node.name(), self.log_tail());
        }
    }
}

/// Whether the output of `svc status -o json` says that everything has been programmed once.
pub fn says_synced(status: &str) -> bool {
    serde_json::from_str::<Value>(status).is_ok_and(|status| status["synced"] == Value::Bool(true))
}

fn svc(node: &Node, program: &Path, arguments: &[&str]) -> Result<String, LabError> {
    let mut words: Vec<OsString> = arguments.iter().map(Into::into).collect();
    words.extend(["--bpffs".into(), node.bpffs.clone().into()]);
    node.exec(program, &words)
}

/// A plain HTTP request from within a node: status code and body.
pub fn http_get(node: &Node, address: SocketAddr, path: &str) -> Result<(u16, String), LabError> {
    let limit = Duration::from_secs(2);
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let text = node.enter(exchange)?.map_err(LabError::io(format!("GET http://{address}{path}")))?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code =
        code.ok_or_else(|| LabError::Invalid(format!("http://{address}{path} does not speak HTTP: {head:?}")))?;
    Ok((code, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::says_synced;

    #[test]
    fn only_a_true_synced_counts() {
        assert!(says_synced(r#"{"bpffs": "/x", "synced": true}"#));
        for text in [r#"{"synced": false}"#, r#"{"synced": "true"}"#, "{}", "", "synced: true"] {
            assert!(!says_synced(text), "{text}");
        }
    }
}
