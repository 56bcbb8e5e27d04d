//! Which resolvers there are: given, or those of a `resolv.conf`, which is read again when it changes.
//!
//! It never asks any of them.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::SystemTime,
};

/// Port of resolvers in a `resolv.conf`.
const PORT: u16 = 53;

/// Where resolvers are found.
#[derive(Clone, Debug)]
pub enum Upstream {
    /// These.
    Given(Vec<SocketAddr>),
    /// Those of a file like `/etc/resolv.conf`.
    File(PathBuf),
}

/// The resolvers, followed.
#[derive(Debug)]
pub struct Upstreams {
    from: Upstream,
    own: Vec<SocketAddr>,
    stamp: Option<(u64, SystemTime)>,
    known: Option<Vec<SocketAddr>>,
}

impl Upstreams {
    /// Resolvers from there, without those that are this server itself.
    pub fn new(from: Upstream, own: Vec<SocketAddr>) -> Self {
        Self { from, own, stamp: None, known: None }
    }

    /// The resolvers, if they are others than the last time.
    pub fn changed(&mut self) -> Option<Vec<SocketAddr>> {
        let found = match &self.from {
            Upstream::Given(addresses) => addresses.clone(),
            Upstream::File(path) => {
                let metadata = std::fs::metadata(path);
                let stamp = metadata.ok().and_then(|it| Some((it.len(), it.modified().ok()?)));
                if self.known.is_some() && stamp == self.stamp {
                    return None;
                }
                self.stamp = stamp;
                match std::fs::read_to_string(path) {
                    Ok(text) => servers(&text),
                    // What was known stays in force while the file cannot be read.
                    Err(error) if self.known.is_some() => {
                        tracing::warn!(path = %path.display(), %error, "dns: cannot read the resolvers");
                        return None;
                    }
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "dns: cannot read the resolvers");
                        Vec::new()
                    }
                }
            }
        };
        let (own, found): (Vec<_>, Vec<_>) = found.into_iter().partition(|it| self.own.contains(it));
        if self.known.as_ref() == Some(&found) {
            return None;
        }
        if !own.is_empty() {
            tracing::warn!(?own, "dns: this server itself is listed as a resolver: it is not asked");
        }
        match found.as_slice() {
            [] => tracing::warn!("dns: no resolvers: names outside the cluster domain are not resolved"),
            resolvers => tracing::info!(?resolvers, "dns: forwarding to these"),
        }
        self.known = Some(found.clone());
        Some(found)
    }
}

/// The addresses in lines that say `nameserver`.
fn servers(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // A zone (`fe80::1%eth0`) cannot be told to a resolver's address here.
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
        let server = SocketAddr::new(address, PORT);
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_from_a_file_and_this_server_is_not_among_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("resolv.conf");
        let own: SocketAddr = "10.0.0.53:53".parse().expect("an address");
        let mut upstreams = Upstreams::new(Upstream::File(path.clone()), vec![own]);
        assert_eq!(upstreams.changed(), Some(vec![]), "no file");
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 10.0.0.53\nnameserver fd00::1\nnameserver x\nnameserver 192.0.2.1 \n";
        std::fs::write(&path, text).expect("written");
        let found = ["[fd00::1]:53", "192.0.2.1:53"].map(|it| it.parse().expect("an address"));
        assert_eq!(upstreams.changed(), Some(found.to_vec()));
        assert_eq!(upstreams.changed(), None);
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(upstreams.changed(), None, "the last known ones stay");
    }
}
