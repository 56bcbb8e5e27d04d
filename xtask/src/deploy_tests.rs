//! The manifests below deploy/ are well-formed, complete and refer to files that exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::workspace;

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
    assert_eq!(names, ["api", "front", "orders", "web"]);
    node_ports.sort_unstable();
    let all = node_ports.len();
    node_ports.dedup();
    assert_eq!(node_ports.len(), all, "two Services share a node port");
}
