//! The exact lines of what is scraped.

use svc_common::{BackendState, Counters, Reason, ServiceName, service::NAME_LEN};

use super::Metrics;
use crate::{
    kernel::view::{MapFill, Snapshot, ViewError},
    model::{ObjectName, Problem},
    tables::{BackendValue, Sets},
};

fn field(text: &str) -> [u8; NAME_LEN] {
    let mut field = [0; NAME_LEN];
    field[..text.len()].copy_from_slice(text.as_bytes());
    field
}

fn snapshot() -> Snapshot {
    let name = ServiceName {
        namespace: field("prod"),
        name: field("web"),
        port_name: field("http"),
        port: 80,
        protocol: 6,
        version: 4,
    };
    let backend = BackendValue {
        address: "10.1.0.5:8080".parse().expect("an address"),
        state: BackendState::Active,
        local: true,
        sets: Sets { cluster: true, local: true },
        generation: 1,
        service: 7,
    };
    let mut snapshot = Snapshot::default();
    snapshot.services.insert(7, Box::new(name));
    snapshot.backends.insert(3, backend);
    snapshot.service_counters.insert(7, Counters { packets: 10, bytes: 1000, connections: 2 });
    snapshot.backend_counters.insert(3, Counters { packets: 9, bytes: 900, connections: 1 });
    snapshot.drops.push((Reason::PolicyEmpty, Counters { packets: 4, bytes: 400, connections: 0 }));
    snapshot.maps.insert("FLOWS_V4".to_owned(), MapFill { entries: Some(5), capacity: 64, bytes: 4096 });
    snapshot.maps.insert("SLOTS".to_owned(), MapFill { entries: None, capacity: 16, bytes: 64 });
    snapshot
}

fn assert_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|found| found == *line), "no line {line} in\n{text}");
    }
}

#[test]
fn maps_become_counters_with_the_names_of_their_objects() {
    let text = Metrics::new(|| Ok(snapshot())).encode().expect("text");
    let service = r#"namespace="prod",name="web",port="80",protocol="TCP",port_name="http",family="IPv4""#;
    assert_lines(
        &text,
        &[
            &format!("svc_service_packets_total{{{service}}} 10"),
            &format!("svc_service_bytes_total{{{service}}} 1000"),
            &format!("svc_service_connections_total{{{service}}} 2"),
            &format!("svc_backend_packets_total{{{service},backend=\"10.1.0.5:8080\"}} 9"),
            r#"svc_drop_packets_total{reason="policy_empty"} 4"#,
            r#"svc_map_entries{map="FLOWS_V4"} 5"#,
            r#"svc_map_capacity{map="SLOTS"} 16"#,
            r#"svc_backends{state="active"} 1"#,
            "svc_service_ports 1",
            "svc_scrape_failures_total 0",
            "# EOF",
        ],
    );
    assert!(!text.contains(r#"svc_map_entries{map="SLOTS"}"#), "an array has no number of entries");
}

#[test]
fn maps_that_cannot_be_read_do_not_hide_the_rest() {
    let metrics = Metrics::new(|| Err(ViewError::NotFound("/nowhere".to_owned())));
    metrics.service_change();
    assert_lines(
        &metrics.encode().expect("text"),
        &["svc_scrape_failures_total 1", "kubeproxy_sync_proxy_rules_service_changes_total 1"],
    );
    assert_lines(&metrics.encode().expect("text"), &["svc_scrape_failures_total 2"]);
}

#[test]
fn a_problem_lasts_until_its_object_is_reported_anew() {
    let metrics = Metrics::new(|| Ok(Snapshot::default()));
    let problem = Problem {
        kind: "Service",
        name: "prod/web".to_owned(),
        field: "spec.ports[0].port".to_owned(),
        message: "0 is no port".to_owned(),
    };
    metrics.problem(&problem);
    metrics.problem(&problem);
    let line = r#"svc_object_problem{kind="Service",namespace="prod",name="web",field="spec.ports[0].port"} 1"#;
    assert_lines(&metrics.encode().expect("text"), &[line]);
    metrics.no_problem("Service", "prod/other");
    assert_lines(&metrics.encode().expect("text"), &[line]);
    metrics.no_problem("Service", "prod/web");
    assert!(!metrics.encode().expect("text").contains("svc_object_problem{"));
}

#[test]
fn refused_ports_are_named_until_they_are_not() {
    let metrics = Metrics::new(|| Ok(Snapshot::default()));
    let web = ObjectName::new("prod", "web");
    metrics.set_refused(&web, 2);
    assert_lines(&metrics.encode().expect("text"), &[r#"svc_refused_ports{namespace="prod",name="web"} 2"#]);
    metrics.set_refused(&web, 0);
    assert!(!metrics.encode().expect("text").contains("svc_refused_ports{"));
}
