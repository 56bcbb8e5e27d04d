//! Keeps the flow cache honest: whenever routes, neighbours, addresses or links change, what it knows no longer holds.
//!
//! A task of its own, so that neither Services nor attachments keep it waiting.

use crate::{
    interfaces::ways::{self, Ways},
    kernel::FlowCache,
};

/// Turns the cache on and follows what it depends on; without that it stays off, and packets go the long way.
pub(super) fn start(cache: FlowCache) {
    match ways::listen() {
        Ok(ways) => drop(tokio::spawn(follow(cache, ways))),
        Err(error) => tracing::warn!(
            %error, "rtnetlink: cannot subscribe to routes and neighbours: XDP forwards without its flow cache, which is slower"
        ),
    }
}

async fn follow(cache: FlowCache, ways: Ways) {
    if let Err(error) = cache.turn_on() {
        tracing::warn!("XDP forwards without its flow cache, which is slower: {:#}", anyhow::Error::from(error));
        return;
    }
    let error = loop {
        if let Err(error) = ways.changed().await {
            break anyhow::Error::from(error).context("rtnetlink: cannot follow routes and neighbours");
        }
        if let Err(error) = cache.changed() {
            break error.into();
        }
    };
    tracing::error!("the flow cache of XDP is turned off until the agent starts again: {error:#}");
    if let Err(error) = cache.turn_off() {
        tracing::error!(
            "it cannot be turned off: for up to a second after a change, packets may go by old routes: {:#}",
            anyhow::Error::from(error)
        );
    }
}
