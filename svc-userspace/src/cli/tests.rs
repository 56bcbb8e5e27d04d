//! What the commands print, letter by letter, for one snapshot.

use std::path::Path;

use svc_common::{
    BackendState, Config, Counters, Frontend, Interface, Reason, ServiceName, SlotRange,
    config::{CONFIG_SOCKET_HOST, CONFIG_SYNCED, INTERFACE_BRIDGE_PORT},
    frontend::{FLAG_CLUSTER_IP, FLAG_LOAD_BALANCER, FLAG_NODE_PORT, FLAG_OUTSIDE_DROP},
    service::NAME_LEN,
};

use super::{backends, cleanup, flows, services, status};
use crate::{
    kernel::{
        CleanupReport,
        view::{Attachment, FlowEntry, MapFill, Snapshot},
    },
    model::Protocol,
    tables::{BackendValue, FrontendAddress, Sets},
};

fn field(text: &str) -> [u8; NAME_LEN] {
    let mut field = [0; NAME_LEN];
    field[..text.len()].copy_from_slice(text.as_bytes());
    field
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut service = |id, namespace, name, port_name, port, protocol, version| {
        let (namespace, name, port_name) = (field(namespace), field(name), field(port_name));
        snapshot.services.insert(id, Box::new(ServiceName { namespace, name, port_name, port, protocol, version }));
    };
    service(1, "prod", "web", "http", 80, 6, 4);
    service(2, "kube-system", "dns", "", 53, 17, 6);
    let slots = |len| SlotRange { offset: 0, len };
    let mut frontend = |address: &str, service, flags, inside, outside| {
        let protocol = if service == 1 { Protocol::Tcp } else { Protocol::Udp };
        let address = FrontendAddress { address: address.parse().expect("an address"), protocol };
        let (inside, outside) = (slots(inside), slots(outside));
        let frontend = Frontend { service, flags, affinity_seconds: u32::from(service == 1) * 60, inside, outside };
        snapshot.frontends.insert(address, frontend);
    };
    frontend("10.96.0.10:80", 1, FLAG_CLUSTER_IP, 200, 200);
    frontend("192.0.2.1:30080", 1, FLAG_NODE_PORT | FLAG_OUTSIDE_DROP, 200, 0);
    frontend("203.0.113.7:80", 1, FLAG_LOAD_BALANCER | FLAG_OUTSIDE_DROP, 200, 0);
    frontend("[fd00::a]:53", 2, FLAG_CLUSTER_IP, 0, 0);
    let mut backend = |id, address: &str, state, local| {
        let address = address.parse().expect("an address");
        snapshot
            .backends
            .insert(id, BackendValue { address, state, local, sets: Sets::default(), generation: 3, service: 1 });
    };
    backend(5, "10.1.0.9:8080", BackendState::Terminating, false);
    backend(6, "10.1.0.10:8080", BackendState::Active, true);
    snapshot.service_counters.insert(1, Counters { packets: 12_345, bytes: 4_000_000, connections: 99 });
    snapshot.backend_counters.insert(6, Counters { packets: 12_000, bytes: 3_900_000, connections: 90 });
    snapshot.drops.push((Reason::NoEndpoint, Counters { packets: 7, bytes: 420, connections: 0 }));
    // No interface has the greatest index.
    let entry = Interface { scope: 1, flags: INTERFACE_BRIDGE_PORT, bridge_mac: [2, 0, 0, 0, 0, 1] };
    snapshot.interfaces.insert(u32::MAX >> 1, entry);
    snapshot.config = Config { flags: CONFIG_SYNCED | CONFIG_SOCKET_HOST, ..Config::default() };
    snapshot.maps.insert("FLOWS_V4".to_owned(), MapFill { entries: Some(655), capacity: 65_536, bytes: 7_340_032 });
    snapshot.maps.insert("SLOTS".to_owned(), MapFill { entries: None, capacity: 1024, bytes: 65_536 });
    for program in ["svc_ingress", "svc_egress"] {
        let attachment = Attachment { program: program.to_owned(), how: "tcx", to: "eth0".to_owned() };
        snapshot.attachments.push(attachment);
    }
    snapshot
}

#[test]
fn services_as_a_table() {
    let rows = services::rows(&snapshot(), None, None);
    assert_eq!(
        services::table(&rows, false).to_string(),
        "\
NAMESPACE     NAME   PORT          FAMILY   CLUSTER-IP   EXTERNAL      NODE-PORT   BACKENDS             CONNECTIONS   PACKETS   BYTES
kube-system   dns    53/UDP        IPv6     fd00::a      <none>        <none>      0                    0             0         0B
prod          web    http:80/TCP   IPv4     10.96.0.10   203.0.113.7   30080       1 (+1 terminating)   99            12k       3.8Mi
"
    );
    let wide = services::table(&rows, true).to_string();
    assert!(wide.contains("[fd00::a]:53[inside:reject,outside:reject]"), "{wide}");
    assert!(wide.contains("60s        10.96.0.10:80 192.0.2.1:30080[inside:balance,outside:drop]"), "{wide}");
}

#[test]
fn filters_pick_by_namespace_and_name() -> Result<(), String> {
    let names = |namespace, filter: Option<&str>| -> Result<Vec<String>, String> {
        let filter = filter.map(str::parse).transpose()?;
        Ok(services::rows(&snapshot(), namespace, filter.as_ref()).into_iter().map(|row| row.port.name).collect())
    };
    assert_eq!(names(Some("prod"), None)?, ["web"]);
    assert_eq!(names(None, Some("kube-system/dns"))?, ["dns"]);
    assert_eq!(names(Some("prod"), Some("dns"))?, [] as [&str; 0]);
    Ok(())
}

#[test]
fn services_as_json_keep_their_field_names() -> Result<(), serde_json::Error> {
    let rows = services::rows(&snapshot(), Some("prod"), None);
    assert_eq!(
        serde_json::to_value(&rows)?,
        serde_json::json!([{
            "id": 1, "namespace": "prod", "name": "web", "port": 80, "protocol": "TCP", "port_name": "http",
            "family": "IPv4", "affinity_seconds": 60,
            "frontends": [
                {"address": "10.96.0.10:80", "kinds": ["cluster-ip"], "host_only": false,
                 "inside": "balance", "outside": "balance"},
                {"address": "192.0.2.1:30080", "kinds": ["node-port"], "host_only": false,
                 "inside": "balance", "outside": "drop"},
                {"address": "203.0.113.7:80", "kinds": ["load-balancer"], "host_only": false,
                 "inside": "balance", "outside": "drop"},
            ],
            "active_backends": 1, "terminating_backends": 1,
            "connections": 99, "packets": 12_345, "bytes": 4_000_000,
        }])
    );
    Ok(())
}

#[test]
fn backends_are_in_the_order_of_their_addresses() {
    let rows = backends::rows(&snapshot(), None, None);
    assert_eq!(
        backends::table(&rows, true).to_string(),
        "\
NAMESPACE   SERVICE   PORT          BACKEND          STATE         LOCAL   CONNECTIONS   PACKETS   BYTES   ID   GENERATION
prod        web       http:80/TCP   10.1.0.9:8080    terminating   no      0             0         0B      5    3
prod        web       http:80/TCP   10.1.0.10:8080   active        yes     90            12k       3.7Mi   6    3
"
    );
}

#[test]
fn flows_say_which_side_is_rewritten() {
    let flow = |hook, rewrite: &str, service| flows::FlowRow {
        service_port: snapshot().services.get(&service).map(|name| (&**name).into()),
        flow: FlowEntry {
            hook,
            protocol: Protocol::Tcp,
            source: "10.1.0.2:40000".parse().expect("an address"),
            destination: "10.96.0.10:80".parse().expect("an address"),
            rewrite: rewrite.parse().expect("an address"),
            peer_port: 0,
            service,
            backend: 6,
            idle_seconds: 4,
            state: "open",
            masquerade: false,
            direct: false,
        },
    };
    let rows = [flow("ingress", "10.1.0.10:8080", 1), flow("egress", "10.96.0.10:80", 77)];
    assert_eq!(
        flows::table(&rows, false).to_string(),
        "\
SERVICE    PROTOCOL   SOURCE           DESTINATION     HOOK      REWRITE                      STATE   IDLE
prod/web   TCP        10.1.0.2:40000   10.96.0.10:80   ingress   destination=10.1.0.10:8080   open    4s
<none>     TCP        10.1.0.2:40000   10.96.0.10:80   egress    source=10.96.0.10:80         open    4s
"
    );
}

fn status_of(snapshot: &Snapshot) -> status::Status {
    let agent = status::AgentStatus {
        state: "unreachable",
        address: "127.0.0.1:10256".to_owned(),
        detail: "connection refused".to_owned(),
    };
    status::status(Path::new("/sys/fs/bpf/svc"), snapshot, agent)
}

#[test]
fn status_is_facts_first_then_tables() {
    assert_eq!(
        status::text(&status_of(&snapshot()), false),
        "\
Dataplane:  /sys/fs/bpf/svc (layout 2)
Synced:     yes
Agent:      unreachable at 127.0.0.1:10256: connection refused
Socket LB:  host
Masquerade: nftables
Services:   2 (2 ports)
Frontends:  4
Backends:   1 (+1 terminating)

ATTACHED-TO   SCOPE                  HOW      PROGRAMS
2147483647    inside (bridge port)   <none>   <none>
eth0          <none>                 tcx      svc_ingress,svc_egress

MAP        ENTRIES   CAPACITY   USED   MEMORY
FLOWS_V4   655       65536      1%     7.0Mi

DROPS         PACKETS   BYTES   BECAUSE
no_endpoint   7         420B    the Service has no endpoint; the sender was told
"
    );
}

#[test]
fn a_dataplane_that_was_never_complete_is_not_synced() -> Result<(), serde_json::Error> {
    let mut snapshot = snapshot();
    assert_eq!(serde_json::to_value(status_of(&snapshot))?["synced"], true);
    snapshot.config.flags = CONFIG_SOCKET_HOST;
    let status = status_of(&snapshot);
    assert_eq!(serde_json::to_value(&status)?["synced"], false);
    assert!(status::text(&status, false).contains("Synced:     no: "));
    Ok(())
}

#[test]
fn cleanup_says_what_went_and_names_it_when_asked() {
    let bpffs = Path::new("/sys/fs/bpf/svc");
    let nothing = cleanup::text(bpffs, &CleanupReport::default(), true);
    assert_eq!(nothing, "Nothing to remove: nothing is pinned below /sys/fs/bpf/svc and nothing is attached.\n");
    let report = CleanupReport {
        detached: vec!["link a".to_owned()],
        pins: vec!["/sys/fs/bpf/svc/b".to_owned()],
        masquerade: true,
        reserved_ports: false,
        problems: Vec::new(),
    };
    let first = "Detached 1 program, removed 1 pin below /sys/fs/bpf/svc and the nftables table.\n";
    assert_eq!(cleanup::text(bpffs, &report, false), first);
    assert_eq!(cleanup::text(bpffs, &report, true), format!("{first}link a\n/sys/fs/bpf/svc/b\n"));
}
