//! Where objects come from: the Kubernetes API or a directory of manifests.
//!
//! Sources turn Kubernetes objects into [`crate::model`] values and say what they could not use. They never decide
//! which endpoint is chosen, and they never report a deletion because something could not be read: only an object that
//! is known to be gone is reported gone.

mod convert;
pub mod kube;
pub mod manifests;
mod names;
mod read;

pub(crate) use self::{convert::given_message, kube::chain};

use std::{path::PathBuf, sync::Arc};

use crate::model::Claims;

/// What every source has to know.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// Own node name: the only Node that is read.
    pub node_name: Arc<str>,
    /// Honour `spec.externalIPs` (anybody who may write a Service can take traffic of any address with them).
    pub external_ips: bool,
    /// Report what DNS needs beside what is load-balanced: headless and `ExternalName` Services, those of other proxies,
    /// and the slices of headless ones.
    pub names: bool,
    /// Who may ask the pools for an address.
    pub claims: Claims,
}

/// A source cannot do its job at all.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kubeconfig file cannot be used.
    #[error("kubeconfig {}: {cause}: check the file and its current-context", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// Neither a kubeconfig nor the environment of a pod was found.
    #[error(
        "no way to the API server: {0}: pass --kubeconfig FILE, or run as a pod with a service account, or use --manifests DIR"
    )]
    NoCluster(String),
    /// The client cannot be built from a readable configuration.
    #[error("API server {url}: {cause}: check the certificates and credentials of the kubeconfig")]
    Client {
        /// Address of the API server.
        url: String,
        /// Why.
        cause: String,
    },
    /// The manifest directory is not there or not readable.
    #[error("manifests {}: {cause}: create the directory or correct --manifests", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The directory cannot be watched.
    #[error("manifests {}: cannot watch: {cause}: raise fs.inotify.max_user_instances and fs.inotify.max_user_watches", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        cause: String,
    },
}
