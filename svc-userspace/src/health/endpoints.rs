//! /healthz and /livez, with the answers that kube-proxy's have.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::{Health, Unwell, server};
use crate::metrics::Metrics;

/// The body, with kube-proxy's field names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: Timestamp,
    current_time: Timestamp,
    /// Absent on /livez, which does not look at the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    /// Absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Serves both, for as long as the future is polled.
pub async fn serve(address: SocketAddr, health: Arc<Health>, metrics: Arc<Metrics>) {
    match server::keep(address, "/healthz and /livez", router(health, metrics)).await {}
}

/// Both paths.
pub fn router(health: Arc<Health>, metrics: Arc<Metrics>) -> Router {
    let (live, live_metrics) = (health.clone(), metrics.clone());
    let healthz = async move || {
        let report = health.report(Instant::now());
        let response = answer(report.healthy, Some(report.node_eligible), report.caught_up);
        metrics.healthz(response.status());
        response
    };
    let livez = async move || {
        let report = live.report(Instant::now());
        let response = answer(report.alive, None, report.caught_up);
        live_metrics.livez(response.status());
        response
    };
    Router::new().route("/healthz", any(healthz)).route("/livez", any(livez))
}

fn answer(state: Result<(), Unwell>, node_eligible: Option<bool>, caught_up: Option<SystemTime>) -> Response {
    let now = timestamp(SystemTime::now());
    // While all is well nothing older than now is missing from the maps.
    let last_updated = if state.is_ok() { now } else { timestamp(caught_up.unwrap_or(SystemTime::UNIX_EPOCH)) };
    let reason = state.err().map(|unwell| unwell.to_string());
    let body = Body { last_updated, current_time: now, node_eligible, reason };
    let code = if state.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    match serde_json::to_string(&body) {
        Ok(text) => (code, headers, text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    // A clock beyond the year 9999 is not worth an error.
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}
