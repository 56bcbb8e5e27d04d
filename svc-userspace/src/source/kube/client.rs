//! The way to the API server: kubeconfig, the environment of a pod, or whatever is configured.

use std::{net::SocketAddr, path::Path, time::Duration};

use ::kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::{BoxError, util::MapErrLayer};

use crate::source::SourceError;

/// A connection that has been silent for this long is dead: watches end or send bookmarks more often.
const READ_TIMEOUT: Duration = Duration::from_secs(310);
/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A request that got no answer, with the address it was sent to.
#[derive(Debug, thiserror::Error)]
#[error("{url}: {source}")]
pub(super) struct Unreachable {
    url: String,
    source: BoxError,
}

/// A client for `kubeconfig`, or, without one, for `KUBECONFIG`, `~/.kube/config` or the pod this runs in.
///
/// It does not connect: an API server that is away is no error here.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, SourceError> {
    Ok(connection(kubeconfig).await?.0)
}

/// As [`client`], and the address and port of the server if it is configured by address and not by name.
pub async fn connection(kubeconfig: Option<&Path>) -> Result<(Client, Option<SocketAddr>), SourceError> {
    let mut config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::infer().await.map_err(|error| SourceError::NoCluster(chain(&error)))?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    let host = config.cluster_url.host().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
    let port = config.cluster_url.port_u16().unwrap_or(443);
    let server = host.and_then(|host| Some(SocketAddr::new(host.parse().ok()?, port)));
    let url = config.cluster_url.to_string();
    tracing::info!(%url, "API server");
    let builder = ClientBuilder::try_from(config)
        .map_err(|error| SourceError::Client { url: url.clone(), cause: chain(&error) })?;
    let layer =
        MapErrLayer::new(move |source: BoxError| -> BoxError { Box::new(Unreachable { url: url.clone(), source }) });
    Ok((builder.with_layer(&layer).build(), server))
}

async fn from_file(path: &Path) -> Result<Config, SourceError> {
    let wrong = |cause| SourceError::Kubeconfig { path: path.to_owned(), cause };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| wrong(chain(&error)))?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| wrong(chain(&error)))
}

/// An error and its causes in one line, without what the line says already.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text.replace('\n', " ")
}
