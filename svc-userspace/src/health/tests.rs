//! The state over time, and the exact bytes of every answer over real connections.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Health, LONGEST_WAIT, Unwell, endpoints, node_ports, node_ports::HealthPort, server};
use crate::{kernel::view::Snapshot, metrics::Metrics, model::ObjectName};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[test]
fn nothing_is_well_before_the_first_sync() {
    let health = Health::new();
    assert_eq!(health.report(Instant::now()).alive, Err(Unwell::NotSynced));
    health.set_synced();
    assert_eq!(health.report(Instant::now()).healthy, Ok(()));
}

#[test]
fn a_change_may_wait_two_minutes_and_no_longer() {
    let health = Health::new();
    health.set_synced();
    let start = Instant::now();
    health.changed(start);
    health.changed(start + Duration::from_secs(100));
    assert_eq!(health.report(start + LONGEST_WAIT).alive, Ok(()));
    assert_eq!(health.report(start + Duration::from_secs(121)).alive, Err(Unwell::Behind(121)));
    health.caught_up();
    assert_eq!(health.report(start + Duration::from_secs(500)).alive, Ok(()));
}

#[test]
fn a_leaving_node_is_alive_but_not_healthy() {
    let health = Health::new();
    health.set_synced();
    health.set_leaving(true);
    let report = health.report(Instant::now());
    assert_eq!((report.alive, report.healthy), (Ok(()), Err(Unwell::Leaving)));
}

/// Status line, headers in lower case without `date`, body.
async fn get(address: SocketAddr, path: &str) -> io::Result<(String, BTreeMap<String, String>, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("no body"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default().to_owned();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).filter(|(n, _)| n != "date");
    Ok((status, headers.collect(), body.to_owned()))
}

/// Asks until the answer is there: a listener starts in a task of its own.
async fn get_soon(address: SocketAddr, path: &str) -> (String, BTreeMap<String, String>, String) {
    let asking = async {
        loop {
            match get(address, path).await {
                Ok(answer) => return answer,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asking).await.expect("an answer within 20 s")
}

/// A port nobody has just now.
fn free_port() -> u16 {
    std::net::TcpListener::bind((LOOPBACK, 0)).and_then(|socket| socket.local_addr()).expect("a free port").port()
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(|| Ok(Snapshot::default())))
}

#[tokio::test(flavor = "multi_thread")]
async fn healthz_and_livez_differ_in_the_nodes_part() {
    let health = Arc::new(Health::new());
    let metrics = metrics();
    let address = SocketAddr::new(LOOPBACK, free_port());
    let server = tokio::spawn(endpoints::serve(address, health.clone(), metrics.clone()));

    let (status, headers, body) = get_soon(address, "/healthz").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(headers.get("content-type").map(String::as_str), Some("application/json"));
    assert_eq!(headers.get("x-content-type-options").map(String::as_str), Some("nosniff"));
    assert!(body.starts_with(r#"{"lastUpdated":"1970-01-01T00:00:00Z","currentTime":""#), "{body}");
    let end = r#""nodeEligible":true,"reason":"Services have not been listed and programmed yet"}"#;
    assert!(body.ends_with(end), "{body}");

    health.set_synced();
    health.set_leaving(true);
    let (status, _, body) = get_soon(address, "/healthz").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(body.ends_with(r#""nodeEligible":false,"reason":"the node is being removed"}"#), "{body}");
    let (status, _, body) = get_soon(address, "/livez").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(!body.contains("nodeEligible") && !body.contains("reason"), "{body}");
    assert_eq!(get_soon(address, "/other").await.0, "HTTP/1.1 404 Not Found");

    let text = metrics.encode().expect("metrics");
    assert!(text.contains("kubeproxy_proxy_healthz_total{code=\"503\"} 2\n"), "{text}");
    assert!(text.contains("kubeproxy_proxy_livez_total{code=\"200\"} 1\n"), "{text}");
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_check_node_port_answers_on_any_path_and_follows_its_service() {
    let health = Arc::new(Health::new());
    health.set_synced();
    let mut handle = node_ports::start(health.clone());
    let name = ObjectName::new("prod", "web");
    let (first, second) = (free_port(), free_port());
    let mut set = |port, local_endpoints| {
        handle.set(&[LOOPBACK], &BTreeMap::from([(name.clone(), HealthPort { port, local_endpoints })]));
    };

    set(first, 2);
    let address = SocketAddr::new(LOOPBACK, first);
    let (status, headers, body) = get_soon(address, "/any/path?at=all").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    let body_200 = r#"{"service":{"namespace":"prod","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#;
    assert_eq!(body, body_200);
    let expected = [
        ("connection", "close"),
        ("content-length", "91"),
        ("content-type", "application/json"),
        ("x-content-type-options", "nosniff"),
        ("x-load-balancing-endpoint-weight", "2"),
    ];
    assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());

    set(first, 0);
    let (status, headers, body) = get_soon(address, "/").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(headers.get("x-load-balancing-endpoint-weight").map(String::as_str), Some("0"));
    assert!(body.contains(r#""localEndpoints":0,"serviceProxyHealthy":true"#), "{body}");

    set(first, 2);
    health.changed(Instant::now().checked_sub(LONGEST_WAIT * 2).expect("a machine that is up for four minutes"));
    let (status, _, body) = get_soon(address, "/").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(body.contains(r#""localEndpoints":2,"serviceProxyHealthy":false"#), "{body}");
    health.caught_up();

    set(second, 1);
    assert_eq!(get_soon(SocketAddr::new(LOOPBACK, second), "/").await.0, "HTTP/1.1 200 OK");
    let closed = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), closed).await.expect("the old port closes within 20 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_served_as_soon_as_it_is_free() {
    let taken = std::net::TcpListener::bind((LOOPBACK, 0)).expect("a free port");
    let address = taken.local_addr().expect("its address");
    assert!(server::bind(address).is_err(), "the port is in use");
    let health = Arc::new(Health::new());
    health.set_synced();
    let server = tokio::spawn(endpoints::serve(address, health, metrics()));
    drop(taken);
    assert_eq!(get_soon(address, "/livez").await.0, "HTTP/1.1 200 OK");
    server.abort();
}
