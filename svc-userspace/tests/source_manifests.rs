//! A directory of manifests, changed in every way that editors, `kubectl` and ConfigMap mounts change files.

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use svc_userspace::{
    model::{Change, Problem},
    source::{SourceError, SourceOptions, manifests},
};
use tokio::sync::mpsc;

/// Upper bound of every wait; none of them takes that long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(10);

struct Source {
    changes: mpsc::Receiver<Change>,
}

impl Source {
    /// Follows a directory; the changes up to `Synced` come with it.
    async fn start(dir: &Path) -> (Self, Vec<Change>) {
        let (sender, changes) = mpsc::channel(64);
        tokio::spawn(manifests::run(dir.to_owned(), options(), sender));
        let mut source = Self { changes };
        let first = source.until(|change| *change == Change::Synced).await;
        (source, first)
    }

    async fn next(&mut self) -> Change {
        tokio::time::timeout(PATIENCE, self.changes.recv()).await.expect("a change in time").expect("the source runs")
    }

    /// Changes up to and including the first that `last` accepts.
    async fn until(&mut self, last: impl Fn(&Change) -> bool) -> Vec<Change> {
        let mut seen = Vec::new();
        loop {
            seen.push(self.next().await);
            if last(seen.last().expect("just pushed")) {
                return seen;
            }
        }
    }

    /// Nothing is reported before the Service `name`, which is written to `dir` for this.
    async fn assert_quiet(&mut self, dir: &Path, name: &str) {
        replace(&dir.join(format!("{name}.yaml")), &service(name, "10.0.9.9"));
        let seen = self.until(|change| is_service(change, name)).await;
        assert_eq!(seen.len(), 1, "nothing else was reported: {seen:?}");
    }
}

fn options() -> SourceOptions {
    SourceOptions { node_name: "node-a".into(), external_ips: false, claims: svc_userspace::model::Claims::Nobody }
}

fn service(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  clusterIP: {address}\n  ports: [{{port: 80}}]\n"
    )
}

fn slice(name: &str, service: &str, address: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: shop\n  \
         labels: {{kubernetes.io/service-name: {service}}}\naddressType: IPv4\nports: [{{port: 8080}}]\n\
         endpoints: [{{addresses: [{address}]}}]\n"
    )
}

fn node(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")
}

fn is_service(change: &Change, name: &str) -> bool {
    matches!(change, Change::Service(found, Some(_)) if *found.name == *name)
}

fn is_gone(change: &Change, name: &str) -> bool {
    matches!(change, Change::Service(found, None) if *found.name == *name)
}

fn address(change: &Change) -> String {
    match change {
        Change::Service(_, Some(service)) => service.cluster_ips[0].to_string(),
        other => panic!("not a Service: {other:?}"),
    }
}

fn problem(change: &Change) -> &Problem {
    match change {
        Change::Problem(problem) => problem,
        other => panic!("not a problem: {other:?}"),
    }
}

fn directory() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().expect("temporary directory");
    let dir = root.path().join("manifests");
    fs::create_dir(&dir).expect("directory");
    (root, dir)
}

/// Writes a file the way careful programs do: beside, then renamed.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("tmp");
    fs::write(&beside, text).expect("written");
    fs::rename(&beside, path).expect("renamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_read_before_synced_and_only_what_concerns_us() {
    let (_root, dir) = directory();
    let other = "kind: Deployment\napiVersion: apps/v1\nmetadata: {name: x}\n".to_owned();
    let all = [service("a", "10.0.0.1"), slice("a-1", "a", "10.1.0.1"), node("node-a"), node("node-b"), other];
    fs::write(dir.join("a.yaml"), all.join("---\n")).unwrap();
    let json = r#"{"kind": "List", "items": [
        {"kind": "Service", "metadata": {"name": "b"}, "spec": {"clusterIP": "10.0.0.2"}}]}"#;
    fs::write(dir.join("b.json"), json).unwrap();
    fs::write(dir.join("notes.txt"), "kind: Service").unwrap();
    fs::write(dir.join(".hidden.yaml"), "kind: [").unwrap();
    let (_source, first) = Source::start(&dir).await;
    let kinds: Vec<_> = first
        .iter()
        .map(|change| match change {
            Change::Node(Some(node)) => format!("node {}", node.name),
            Change::Service(name, Some(_)) => format!("service {name}"),
            Change::Slice(name, Some(slice)) => format!("slice {name} of {}", slice.service),
            Change::Synced => "synced".to_owned(),
            other => panic!("unexpected: {other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["node node-a", "service default/b", "service shop/a", "slice shop/a-1 of shop/a", "synced"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_come_change_and_go() {
    let (_root, dir) = directory();
    let (mut source, first) = Source::start(&dir).await;
    assert_eq!(first, [Change::Synced], "an empty directory is fine");
    let path = dir.join("a.yaml");
    fs::write(&path, service("a", "10.0.0.1")).unwrap();
    assert_eq!(address(&source.next().await), "10.0.0.1");
    // Same size, at once: the time stamp alone would not tell.
    fs::write(&path, service("a", "10.0.0.2")).unwrap();
    assert_eq!(address(&source.next().await), "10.0.0.2");
    replace(&path, &service("a", "10.0.0.3"));
    assert_eq!(address(&source.next().await), "10.0.0.3");
    replace(&path, &service("a", "10.0.0.3"));
    source.assert_quiet(&dir, "same-content").await;
    fs::rename(&path, dir.join("z.yaml")).unwrap();
    source.assert_quiet(&dir, "renamed").await;
    fs::remove_file(dir.join("z.yaml")).unwrap();
    assert!(is_gone(&source.next().await, "a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_is_reported_and_its_last_good_content_stays() {
    let (_root, dir) = directory();
    let path = dir.join("a.yaml");
    fs::write(&path, service("a", "10.0.0.1")).unwrap();
    let (mut source, _) = Source::start(&dir).await;
    fs::write(&path, service("a", "10.0.0.1") + "  bad: [\n").unwrap();
    let change = source.next().await;
    let found = problem(&change);
    assert_eq!((found.kind, found.name.as_str(), found.field.as_str()), ("File", path.to_str().unwrap(), "7:8"));
    assert!(found.message.contains("correct the file"), "{found}");
    source.assert_quiet(&dir, "still-there").await;
    // Another problem replaces the first one, and a good file leaves none.
    let cleared = Change::Readable(path.to_str().unwrap().to_owned());
    fs::write(&path, b"\xff\xfe").unwrap();
    assert_eq!(source.next().await, cleared);
    assert!(problem(&source.next().await).message.contains("UTF-8"));
    replace(&path, &service("a", "10.0.0.2"));
    assert_eq!(address(&source.next().await), "10.0.0.2");
    assert_eq!(source.next().await, cleared);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_makes_no_sense_is_skipped_alone() {
    let (_root, dir) = directory();
    let path = dir.join("a.yaml");
    let good = service("good", "10.0.0.1");
    fs::write(&path, format!("{good}---\n{}", service("bad", "nonsense"))).unwrap();
    let (mut source, first) = Source::start(&dir).await;
    assert!(first.iter().any(|change| is_service(change, "good")), "{first:?}");
    assert_eq!(problem(&first[0]).name, "shop/bad");
    // A field everything depends on cannot be read: what was known stays.
    let broken = good.replace("[{port: 80}]", "many");
    fs::write(&path, format!("{broken}---\n{}", service("bad", "10.0.0.2"))).unwrap();
    let seen = source.until(|change| matches!(change, Change::Problem(_))).await;
    assert!(is_service(&seen[0], "bad") && seen.len() == 2, "{seen:?}");
    assert_eq!(problem(&seen[1]).field, "spec.ports");
    fs::write(&path, good.replace("80", "81")).unwrap();
    let seen = source.until(|change| is_service(change, "good")).await;
    assert!(is_gone(&seen[0], "bad"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_files_with_one_object_the_first_name_wins() {
    let (_root, dir) = directory();
    fs::write(dir.join("b.yaml"), service("a", "10.0.0.2")).unwrap();
    let (mut source, first) = Source::start(&dir).await;
    assert_eq!(address(&first[0]), "10.0.0.2");
    fs::write(dir.join("a.yaml"), service("a", "10.0.0.1")).unwrap();
    assert_eq!(address(&source.next().await), "10.0.0.1");
    let change = source.next().await;
    assert!(problem(&change).message.contains("Service shop/a is in a.yaml already"), "{change:?}");
    fs::remove_file(dir.join("a.yaml")).unwrap();
    assert_eq!(address(&source.next().await), "10.0.0.2");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_file_is_never_taken_for_the_whole() {
    let (_root, dir) = directory();
    let path = dir.join("a.yaml");
    fs::write(&path, format!("{}---\n{}", service("a", "10.0.0.1"), service("b", "10.0.0.2"))).unwrap();
    let (mut source, _) = Source::start(&dir).await;
    let mut file = fs::File::create(&path).unwrap(); // truncated
    file.write_all(service("a", "10.0.0.3").as_bytes()).unwrap();
    // Another file makes the source look around while this one is open.
    source.assert_quiet(&dir, "meanwhile").await;
    file.write_all(format!("---\n{}", service("b", "10.0.0.2")).as_bytes()).unwrap();
    drop(file);
    assert_eq!(address(&source.next().await), "10.0.0.3", "the change arrives, and b was never gone");
    source.assert_quiet(&dir, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_never_closes_is_not_waited_for() {
    let (_root, dir) = directory();
    let (mut source, _) = Source::start(&dir).await;
    let mut file = fs::File::create(dir.join("a.yaml")).unwrap();
    file.write_all(service("a", "10.0.0.1").as_bytes()).unwrap();
    assert_eq!(address(&source.next().await), "10.0.0.1");
    drop(file);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_mount_is_switched_at_once() {
    let (_root, dir) = directory();
    let version = |number: &str, address: &str| {
        fs::create_dir(dir.join(number)).unwrap();
        fs::write(dir.join(number).join("a.yaml"), service("a", address)).unwrap();
        let link = dir.join("..data_tmp");
        symlink(number, &link).unwrap();
        fs::rename(&link, dir.join("..data")).unwrap();
    };
    version("..1", "10.0.0.1");
    symlink("..data/a.yaml", dir.join("a.yaml")).unwrap();
    let (mut source, first) = Source::start(&dir).await;
    assert_eq!(address(&first[0]), "10.0.0.1");
    version("..2", "10.0.0.2");
    assert_eq!(address(&source.next().await), "10.0.0.2");
    fs::remove_dir_all(dir.join("..1")).unwrap();
    version("..3", "10.0.0.3");
    assert_eq!(address(&source.next().await), "10.0.0.3");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_of_a_link_changes() {
    let (root, dir) = directory();
    let target = root.path().join("elsewhere");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("a.yaml"), service("a", "10.0.0.1")).unwrap();
    symlink(target.join("a.yaml"), dir.join("a.yaml")).unwrap();
    let (mut source, _) = Source::start(&dir).await;
    // `Synced` comes before the target is watched; this is looked at after.
    source.assert_quiet(&dir, "look").await;
    fs::write(target.join("a.yaml"), service("a", "10.0.0.2")).unwrap();
    assert_eq!(address(&source.next().await), "10.0.0.2");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_itself_is_replaced() {
    let (root, dir) = directory();
    fs::write(dir.join("a.yaml"), service("a", "10.0.0.1")).unwrap();
    let (mut source, _) = Source::start(&dir).await;
    fs::rename(&dir, root.path().join("old")).unwrap();
    let new = root.path().join("new");
    fs::create_dir(&new).unwrap();
    fs::write(new.join("a.yaml"), service("a", "10.0.0.2")).unwrap();
    fs::rename(&new, &dir).unwrap();
    assert_eq!(address(&source.next().await), "10.0.0.2");
    fs::write(dir.join("a.yaml"), service("a", "10.0.0.3")).unwrap();
    assert_eq!(address(&source.next().await), "10.0.0.3", "the new directory is watched");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_is_a_link_that_is_switched() {
    let (root, dir) = directory();
    let link = root.path().join("link");
    symlink(&dir, &link).unwrap();
    fs::write(dir.join("a.yaml"), service("a", "10.0.0.1")).unwrap();
    let (mut source, _) = Source::start(&link).await;
    fs::write(dir.join("a.yaml"), service("a", "10.0.0.2")).unwrap();
    assert_eq!(address(&source.next().await), "10.0.0.2");
    let other = root.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("a.yaml"), service("a", "10.0.0.3")).unwrap();
    symlink(&other, root.path().join("link2")).unwrap();
    fs::rename(root.path().join("link2"), &link).unwrap();
    assert_eq!(address(&source.next().await), "10.0.0.3");
    fs::write(other.join("a.yaml"), service("a", "10.0.0.4")).unwrap();
    assert_eq!(address(&source.next().await), "10.0.0.4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_away_for_a_while_takes_nothing_away() {
    let (_root, dir) = directory();
    fs::write(dir.join("a.yaml"), service("a", "10.0.0.1")).unwrap();
    let (mut source, _) = Source::start(&dir).await;
    let away = dir.with_extension("away");
    fs::rename(&dir, &away).unwrap();
    // Nothing may be reported while it is away: a wait for nothing has to take some time.
    assert!(tokio::time::timeout(Duration::from_millis(100), source.changes.recv()).await.is_err());
    fs::write(away.join("b.yaml"), service("b", "10.0.0.2")).unwrap();
    fs::rename(&away, &dir).unwrap();
    assert!(is_service(&source.next().await, "b"), "only the difference");
    source.assert_quiet(&dir, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_reported_at_once() {
    let (_root, dir) = directory();
    let (mut source, _) = Source::start(&dir).await;
    let mut times = Vec::new();
    for i in 1..=21 {
        let text = service("a", &format!("10.0.0.{i}"));
        let start = Instant::now();
        replace(&dir.join("a.yaml"), &text);
        source.next().await;
        times.push(start.elapsed());
    }
    times.sort();
    assert!(times[10] <= Duration::from_millis(20), "half of the changes take {:?} and more", times[10]);
}

#[tokio::test]
async fn a_missing_directory_is_an_error_that_says_what_to_do() {
    let (sender, _changes) = mpsc::channel(1);
    let error = manifests::run("/nonexistent/manifests".into(), options(), sender).await.expect_err("missing");
    assert!(matches!(error, SourceError::Directory { .. }));
    let text = error.to_string();
    assert!(text.contains("/nonexistent/manifests") && text.contains("--manifests"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_ends_when_nobody_listens() {
    let (_root, dir) = directory();
    let (sender, changes) = mpsc::channel(1);
    let task = tokio::spawn(manifests::run(dir, options(), sender));
    drop(changes);
    tokio::time::timeout(PATIENCE, task).await.expect("ends").expect("no panic").expect("no error");
}
