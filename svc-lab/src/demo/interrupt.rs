//! Ctrl-C and SIGTERM during the demonstration: the lab is removed, then the process ends.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Keeps watching as long as it lives.
pub(super) struct Watch {
    _runtime: tokio::runtime::Runtime,
}

/// From now on SIGINT and SIGTERM remove this process's labs before they end it.
pub(super) fn clean_up_on_signals() -> Result<Watch> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start the watch for signals")?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    runtime.spawn(async move {
        let code = tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
        };
        eprintln!("interrupted: removing the cluster");
        if let Err(error) = crate::remove_own() {
            eprintln!("error: {error}\nhint: svc-lab clean");
        }
        std::process::exit(code);
    });
    Ok(Watch { _runtime: runtime })
}
