//! `net.ipv4.ip_local_reserved_ports`: the ports that the programs masquerade with, kept from the sockets of this host. (The
//! setting is for both families.)
//!
//! What stood there before is left as it is, and comes back when the ports are given up.

use std::{fs, io, ops::RangeInclusive, path::Path};

use svc_common::masquerade::{FIRST_PORT, PORTS};

/// The setting, of the network namespace of the calling thread.
pub const PATH: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Words of 64 bits that have a bit for each of our ports.
pub const WORDS: usize = PORTS as usize / 64;

/// One bit for every port number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Vec<bool>);

/// A list of ports that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no port and no range of ports")]
pub struct NotPorts(String);

fn own() -> RangeInclusive<usize> {
    usize::from(FIRST_PORT)..=usize::from(u16::MAX)
}

impl Ports {
    /// Reads a list such as `8080,9000-9010`.
    pub fn parse(text: &str) -> Result<Self, NotPorts> {
        let mut ports = vec![false; 1 << 16];
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let wrong = |_| NotPorts(part.to_owned());
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u16, u16) = (first.parse().map_err(wrong)?, last.parse().map_err(wrong)?);
            for port in first..=last {
                ports[usize::from(port)] = true;
            }
        }
        Ok(Self(ports))
    }

    /// The list as the kernel takes it; a line of its own if there is none.
    pub fn text(&self) -> String {
        let mut parts = Vec::new();
        let mut port = 0;
        while port < self.0.len() {
            if self.0[port] {
                let run = self.0[port..].iter().take_while(|reserved| **reserved).count();
                parts.push(if run == 1 { port.to_string() } else { format!("{port}-{}", port + run - 1) });
                port += run;
            } else {
                port += 1;
            }
        }
        parts.join(",") + "\n"
    }

    /// Which of our ports are in it, a bit each.
    pub fn own(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        for (n, _) in self.0[own()].iter().enumerate().filter(|(_, reserved)| **reserved) {
            words[n / 64] |= 1 << (n % 64);
        }
        words
    }

    /// With all of our ports.
    #[must_use]
    pub fn with_own(mut self) -> Self {
        self.0[own()].fill(true);
        self
    }

    /// With those of our ports that `before` has, and no others of ours.
    #[must_use]
    pub fn restored(mut self, before: &[u64; WORDS]) -> Self {
        for (n, reserved) in self.0[own()].iter_mut().enumerate() {
            *reserved = before[n / 64] >> (n % 64) & 1 == 1;
        }
        self
    }
}

/// What is reserved now.
pub fn read() -> io::Result<Ports> {
    let text = fs::read_to_string(PATH)?;
    Ports::parse(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Reserves these and no others. Nothing is written if that is so already: a container may not be allowed to.
pub fn write(ports: &Ports) -> io::Result<()> {
    if read()? == *ports {
        return Ok(());
    }
    fs::write(Path::new(PATH), ports.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Ports {
        Ports::parse(text).expect("a list")
    }

    #[test]
    fn a_list_is_read_and_written_as_the_kernel_has_it() {
        assert_eq!(ports("\n").text(), "\n");
        assert_eq!(ports("8080,9000-9010,9011,65535\n").text(), "8080,9000-9011,65535\n");
        assert_eq!(Ports::parse("80,a-b"), Err(NotPorts("a-b".to_owned())));
        assert!(Ports::parse("80-70000").is_err());
    }

    #[test]
    fn what_was_reserved_before_is_reserved_afterwards() {
        for before in ["\n", "30000-32767\n", "50000,60000-60010\n", "49000-49200,65535\n"] {
            let now = ports(before).with_own();
            assert!(
                now.text()
                    .trim_end()
                    .ends_with(&format!("{}-65535", if before.starts_with("49000") { 49000 } else { 49152 }))
            );
            assert_eq!(now.restored(&ports(before).own()), ports(before));
        }
        // What others reserved meanwhile stays.
        let now = ports("50000").with_own();
        let changed = Ports::parse(&format!("8080,{}", now.text())).expect("a list");
        assert_eq!(changed.restored(&ports("50000").own()), ports("8080,50000"));
    }
}
