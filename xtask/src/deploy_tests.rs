//! The manifests below deploy/ are well-formed, have only fields that Kubernetes has, and refer to files that exist.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Namespace, PodSpec, Service, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding},
    },
    serde::{Serialize, de::DeserializeOwned},
};
use serde_json::Value;

use crate::{
    process::{find_program, output},
    workspace,
};

fn manifests(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(manifests(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found
}

fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What is left of a document after it was read as its kind.
fn as_its_kind(document: &Value) -> Value {
    fn read<T: DeserializeOwned + Serialize>(document: &Value) -> serde_json::Result<Value> {
        serde_json::to_value(T::deserialize(document)?)
    }
    let read = match document["kind"].as_str().unwrap() {
        "ClusterRole" => read::<ClusterRole>,
        "ClusterRoleBinding" => read::<ClusterRoleBinding>,
        "ConfigMap" => read::<ConfigMap>,
        "DaemonSet" => read::<DaemonSet>,
        "Namespace" => read::<Namespace>,
        "Role" => read::<Role>,
        "RoleBinding" => read::<RoleBinding>,
        "Service" => read::<Service>,
        "ServiceAccount" => read::<ServiceAccount>,
        other => panic!("{other}: this test does not know the kind"),
    };
    read(document).unwrap_or_else(|error| panic!("{error}: {document}"))
}

/// The path of the first thing in `document` that is not in `kept`: Kubernetes would not know the field.
fn lost(document: &Value, kept: &Value) -> Option<String> {
    match (document, kept) {
        (Value::Object(fields), Value::Object(known)) => fields.iter().find_map(|(name, value)| {
            let Some(kept) = known.get(name) else { return Some(name.clone()) };
            lost(value, kept).map(|path| format!("{name}.{path}"))
        }),
        (Value::Array(values), Value::Array(kept)) if values.len() == kept.len() => {
            let mut pairs = values.iter().zip(kept).enumerate();
            pairs.find_map(|(n, (value, kept))| lost(value, kept).map(|path| format!("{n}.{path}")))
        }
        (document, kept) => (document != kept).then(|| format!("{document} became {kept}")),
    }
}

fn has_only_known_fields(document: &Value, place: &str) {
    assert_eq!(lost(document, &as_its_kind(document)), None, "{place}");
}

#[test]
fn every_field_is_one_that_kubernetes_has() {
    for path in manifests(&workspace::root().join("deploy")) {
        for document in documents(&path).iter().filter(|document| document["kind"] != "Kustomization") {
            has_only_known_fields(document, &path.display().to_string());
        }
    }
}

#[test]
fn a_misspelt_field_is_found() {
    let document = serde_json::json!({"kind": "DaemonSet", "apiVersion": "apps/v1", "spec": {"template": {"spec": {
        "containers": [{"name": "svc", "readynessProbe": {}}]}}}});
    let lost = lost(&document, &as_its_kind(&document));
    assert_eq!(lost.as_deref(), Some("spec.template.spec.containers.0.readynessProbe"));
}

/// The pods of the DaemonSet of a kustomization, rendered; `None` where there is no kubectl.
fn rendered(directory: &str) -> Option<PodSpec> {
    let Some(kubectl) = find_program("kubectl") else {
        eprintln!("not rendered: there is no kubectl here");
        return None;
    };
    let path = workspace::root().join("deploy").join(directory);
    let text = output(Command::new(kubectl).arg("kustomize").arg(&path)).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    for document in &documents {
        has_only_known_fields(document, directory);
        let kind = document["kind"].as_str().unwrap();
        let namespace = (!kind.starts_with("ClusterRole")).then_some("kube-system");
        assert_eq!(document["metadata"]["namespace"].as_str(), namespace, "{directory}: {kind}");
    }
    let set = documents.iter().find(|document| document["kind"] == "DaemonSet").expect("a DaemonSet");
    let set: DaemonSet = serde_json::from_value(set.clone()).unwrap();
    set.spec.template.spec
}

#[test]
fn rendered_agents_run_everywhere_and_only_the_base_is_privileged() {
    for (directory, privileged, ports) in [
        ("base", true, &["health"][..]),
        ("overlays/capabilities", false, &["health"]),
        ("overlays/confined", false, &["health"]),
        ("overlays/dns", true, &["dns", "dns-tcp", "health"]),
        ("overlays/pools", true, &["health"]),
    ] {
        let Some(pod) = rendered(directory) else { return };
        assert_eq!((pod.host_network, pod.service_account_name.as_deref()), (Some(true), Some("svc")), "{directory}");
        assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"), "{directory}");
        let tolerations = pod.tolerations.unwrap();
        let all = |it: &k8s_openapi::api::core::v1::Toleration| {
            it.operator.as_deref() == Some("Exists") && it.key.is_none() && it.effect.is_none()
        };
        assert!(tolerations.iter().any(all), "{directory}: {tolerations:?}");

        let [container] = &pod.containers[..] else { panic!("{directory}: one container") };
        assert_eq!(container.image.as_deref(), Some(concat!("localhost/svc:", env!("CARGO_PKG_VERSION"))));
        let security = container.security_context.as_ref().unwrap();
        assert_eq!(security.privileged, Some(privileged), "{directory}");
        let added = security.capabilities.as_ref().and_then(|it| it.add.clone()).unwrap_or_default();
        let four = ["BPF", "PERFMON", "NET_ADMIN", "NET_BIND_SERVICE"];
        assert_eq!(added, if privileged { &[][..] } else { &four[..] }, "{directory}");
        assert_eq!(security.read_only_root_filesystem, Some(true), "{directory}");
        if !privileged {
            assert_eq!(security.allow_privilege_escalation, Some(false), "{directory}");
            let dropped = security.capabilities.as_ref().and_then(|it| it.drop.clone()).unwrap_or_default();
            assert_eq!(dropped, ["ALL"], "{directory}");
        }
        let volumes: Vec<_> = pod.volumes.unwrap().into_iter().map(|volume| volume.name).collect();
        let mounts = container.volume_mounts.as_ref().unwrap();
        assert!(mounts.iter().all(|mount| volumes.contains(&mount.name)), "{directory}: {mounts:?}");
        assert_eq!(mounts.len(), volumes.len(), "{directory}: {mounts:?}");
        // Bidirectional propagation is for privileged containers only; the API server refuses others.
        let bidirectional = mounts.iter().any(|mount| mount.mount_propagation.as_deref() == Some("Bidirectional"));
        assert_eq!(bidirectional, privileged, "{directory}");
        let mut found: Vec<_> = container.ports.iter().flatten().filter_map(|port| port.name.clone()).collect();
        found.sort();
        assert_eq!(found, ports, "{directory}: the probes' port, and those of names");
    }
}

#[test]
fn the_agent_that_serves_names_has_the_nodes_address_and_port_53() {
    let Some(pod) = rendered("overlays/dns") else { return };
    let [container] = &pod.containers[..] else { panic!("one container") };
    let variables = container.env.as_deref().unwrap_or_default();
    let place = |name: &str| variables.iter().position(|it| it.name == name).unwrap_or_else(|| panic!("no {name}"));
    let (host, dns) = (place("HOST_IP"), place("SVC_DNS"));
    // A variable is put into those after it only.
    assert!(host < dns, "{variables:?}");
    let source = variables[host].value_from.as_ref().and_then(|it| it.field_ref.as_ref());
    assert_eq!(source.map(|it| &*it.field_path), Some("status.hostIP"));
    assert_eq!(variables[dns].value.as_deref(), Some("$(HOST_IP):53"));
    let ports: Vec<_> = container.ports.iter().flatten().filter(|port| port.container_port == 53).collect();
    let mut protocols: Vec<_> = ports.iter().filter_map(|port| port.protocol.as_deref()).collect();
    protocols.sort_unstable();
    assert_eq!(protocols, ["TCP", "UDP"]);
    // Without privileges, the port takes a capability.
    let pod = rendered("overlays/capabilities").expect("rendered");
    let added = pod.containers[0].security_context.as_ref().and_then(|it| it.capabilities.as_ref()?.add.clone());
    assert!(added.is_some_and(|added| added.iter().any(|it| it == "NET_BIND_SERVICE")));
}

/// What a rule of a role allows: resources, and verbs.
fn allowed(rules: Option<Vec<PolicyRule>>) -> Vec<(String, String)> {
    let rules = rules.unwrap_or_default().into_iter();
    let each = rules.flat_map(|rule| {
        let resources = rule.resources.unwrap_or_default();
        resources.into_iter().map(move |resource| (resource, rule.verbs.join(" ")))
    });
    each.collect()
}

#[test]
fn the_base_writes_nothing_and_pools_write_a_lease_a_status_and_events() {
    let root = workspace::root().join("deploy");
    for document in documents(&root.join("base/rbac.yaml")).iter().filter(|it| it["kind"] == "ClusterRole") {
        let role: ClusterRole = serde_json::from_value(document.clone()).unwrap();
        for (resource, verbs) in allowed(role.rules) {
            assert!(verbs.split(' ').all(|verb| ["get", "list", "watch"].contains(&verb)), "{resource}: {verbs}");
        }
    }
    let documents = documents(&root.join("overlays/pools/rbac.yaml"));
    let rules = |kind: &str| {
        let document = documents.iter().find(|document| document["kind"] == kind).unwrap();
        let rules: Vec<PolicyRule> = serde_json::from_value(document["rules"].clone()).unwrap();
        allowed(Some(rules))
    };
    let pair = |resource: &str, verbs: &str| (resource.to_owned(), verbs.to_owned());
    assert_eq!(rules("ClusterRole"), [pair("services/status", "patch"), pair("events", "create patch")]);
    assert_eq!(rules("Role"), [pair("leases", "create"), pair("leases", "get update")]);
}

#[test]
fn the_agent_with_pools_reads_them_from_the_directory_that_is_mounted() {
    let Some(pod) = rendered("overlays/pools") else { return };
    let [container] = &pod.containers[..] else { panic!("one container") };
    let variables = container.env.as_deref().unwrap_or_default();
    let file = variables.iter().find(|it| it.name == "SVC_POOLS").and_then(|it| it.value.clone()).unwrap();
    let mount = container.volume_mounts.iter().flatten().find(|mount| mount.name == "pools").unwrap();
    let name = file.strip_prefix(&format!("{}/", mount.mount_path)).unwrap();
    assert_eq!(mount.sub_path, None, "a file that is mounted by itself never changes");
    let map = &documents(&workspace::root().join("deploy/overlays/pools/pools.yaml"))[0];
    assert!(map["data"][name].is_string(), "{name}");
}

#[test]
fn rendered_clean_up_runs_the_same_image() {
    let Some(pod) = rendered("cleanup") else { return };
    let [container] = &pod.containers[..] else { panic!("one container") };
    assert_eq!(container.image.as_deref(), Some(concat!("localhost/svc:", env!("CARGO_PKG_VERSION"))));
    assert_eq!(container.args.as_deref(), Some(&["cleanup".to_owned()][..]));
}

#[test]
fn every_document_says_what_it_is_and_has_a_name() {
    let paths = manifests(&workspace::root().join("deploy"));
    assert!(paths.len() >= 8, "{paths:?}");
    for path in paths {
        let documents = documents(&path);
        assert!(!documents.is_empty(), "{} is empty", path.display());
        for document in documents {
            for field in ["/apiVersion", "/kind"] {
                assert!(document.pointer(field).is_some_and(Value::is_string), "{}: {field}", path.display());
            }
            let is_kustomization = document["kind"] == "Kustomization";
            assert!(is_kustomization || document.pointer("/metadata/name").is_some(), "{}", path.display());
        }
    }
}

#[test]
fn kustomizations_refer_to_what_exists() {
    let mut referred = 0;
    for path in manifests(&workspace::root().join("deploy")) {
        for document in documents(&path).iter().filter(|document| document["kind"] == "Kustomization") {
            let resources = document["resources"].as_array().cloned().unwrap_or_default();
            let patches = document["patches"].as_array().cloned().unwrap_or_default();
            let names = resources.into_iter().chain(patches.iter().map(|patch| patch["path"].clone()));
            for name in names.filter(|name| !name.is_null()) {
                let target = path.parent().unwrap().join(name.as_str().unwrap());
                assert!(target.exists(), "{}: {}", path.display(), target.display());
                referred += 1;
            }
        }
    }
    assert!(referred > 3);
}

#[test]
fn examples_are_services_whose_ports_and_names_are_unique() {
    let mut names = Vec::new();
    let mut node_ports = Vec::new();
    for path in manifests(&workspace::root().join("deploy").join("examples")) {
        for document in documents(&path).iter().filter(|document| document["kind"] == "Service") {
            assert_eq!(document["metadata"]["namespace"], "shop", "{}", path.display());
            names.push(document["metadata"]["name"].as_str().unwrap().to_owned());
            for port in document["spec"]["ports"].as_array().unwrap() {
                node_ports.extend(port["nodePort"].as_u64().map(|number| (number, port["protocol"].to_string())));
            }
        }
    }
    names.sort();
    assert_eq!(names, ["api", "front", "members", "orders", "web"]);
    node_ports.sort_unstable();
    let all = node_ports.len();
    node_ports.dedup();
    assert_eq!(node_ports.len(), all, "two Services share a node port");
}

/// What a seccomp profile allows without looking at arguments, by name.
fn allowed_calls(profile: &Value) -> Vec<&str> {
    let rules = profile["syscalls"].as_array().expect("rules");
    let plain = rules.iter().filter(|rule| rule.get("args").is_none());
    plain.flat_map(|rule| rule["names"].as_array().expect("names")).map(|name| name.as_str().expect("a name")).collect()
}

#[test]
fn the_confined_agent_has_the_profile_that_is_here_and_it_opens_nothing_else() {
    let text = std::fs::read_to_string(workspace::root().join("deploy/seccomp/svc.json")).unwrap();
    let profile: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let names = allowed_calls(&profile);
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "a name stands twice");
    for needed in
        ["bpf", "socket", "epoll_wait", "epoll_pwait", "openat", "mmap", "capset", "prctl", "inotify_add_watch"]
    {
        assert!(names.contains(&needed), "{needed}");
    }
    for closed in
        ["mount", "unshare", "setns", "ptrace", "perf_event_open", "init_module", "clone", "clone3", "fork", "keyctl"]
    {
        assert!(!names.contains(&closed), "{closed}");
    }
    let Some(pod) = rendered("overlays/confined") else { return };
    let security = pod.containers[0].security_context.as_ref().unwrap();
    let seccomp = security.seccomp_profile.as_ref().unwrap();
    assert_eq!((&*seccomp.type_, seccomp.localhost_profile.as_deref()), ("Localhost", Some("svc.json")));
}

#[test]
fn the_agent_may_only_read_what_it_needs() {
    let documents = documents(&workspace::root().join("deploy/base/rbac.yaml"));
    let role = documents.iter().find(|document| document["kind"] == "ClusterRole").expect("a role");
    let rules = role["rules"].as_array().expect("rules");
    let mut resources = Vec::new();
    for rule in rules {
        assert_eq!(rule["verbs"], serde_json::json!(["list", "watch"]), "{rule}");
        resources.extend(rule["resources"].as_array().expect("resources").iter().filter_map(Value::as_str));
    }
    assert_eq!(resources, ["services", "endpointslices", "nodes"]);
}
