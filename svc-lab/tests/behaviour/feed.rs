//! Where an agent gets its objects from, so that a test can be run with either: a directory, or an API server.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Mutex,
};

use anyhow::{Result, anyhow};
use serde_json::Value;
use svc_lab::{
    Manifests, Source,
    api::{Api, serve, write_kubeconfig},
};
use tokio::runtime::Runtime;

use crate::shop::Shop;

/// Where the API server's double listens within node 1.
const API: ([u8; 4], u16) = ([127, 0, 0, 1], 6443);

/// A source of objects, which are put and replaced in groups.
pub(crate) enum Feed {
    Manifests(Manifests),
    Api(Server),
}

/// The API server's double, within node 1.
pub(crate) struct Server {
    api: Api,
    kubeconfig: PathBuf,
    groups: Mutex<BTreeMap<String, Vec<Value>>>,
    /// Serves until it is dropped.
    _runtime: Runtime,
}

impl Feed {
    /// A directory with the Nodes in it.
    pub(crate) fn manifests(shop: &Shop) -> Result<Self> {
        Ok(Self::Manifests(shop.lab.manifests("manifests")?))
    }

    /// An API server with the Nodes in it.
    pub(crate) fn api(shop: &Shop) -> Result<Self> {
        let kubeconfig = shop.lab.directory().join("kubeconfig");
        write_kubeconfig(&kubeconfig, API.into())?;
        let api = Api::new();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = shop.lab.node(1).enter(|| TcpListener::bind(SocketAddr::from(API)))??;
        runtime.spawn(serve(listener, api.clone()));
        let feed = Self::Api(Server { api, kubeconfig, groups: Mutex::default(), _runtime: runtime });
        feed.put("nodes", &shop.lab.node_objects())?;
        Ok(feed)
    }

    /// Makes these the objects of a group; those it had before and has no longer are deleted.
    pub(crate) fn put(&self, group: &str, objects: &[Value]) -> Result<()> {
        match self {
            Self::Manifests(manifests) => manifests.write(group, objects)?,
            Self::Api(Server { api, groups, .. }) => {
                let mut groups = groups.lock().map_err(|_| anyhow!("another thread panicked"))?;
                // A relist must not see an object twice or not at all: everything is handed over in one list.
                groups.insert(group.to_owned(), objects.to_vec());
                api.replace_all(groups.values().flatten().cloned().collect());
            }
        }
        Ok(())
    }

    pub(crate) fn source(&self) -> Source<'_> {
        match self {
            Self::Manifests(manifests) => Source::Manifests(manifests.path()),
            Self::Api(Server { kubeconfig, .. }) => Source::Kubeconfig(kubeconfig),
        }
    }
}
