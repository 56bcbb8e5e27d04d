//! The files of the directory: what each holds, what was last good, what has been reported.
//!
//! It compares and reports; it never reports an object gone because its file cannot be read.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry as MapEntry},
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::api::{core::v1, discovery::v1::EndpointSlice};

use super::{
    parse::{self, Broken, Found, Place},
    watch::Dirty,
};
use crate::{
    model::{Change, Node, ObjectName, Problem, Slice},
    source::{
        SourceOptions,
        convert::{AnyService, Convert, Converted, Outcome, convert_value},
        names::Names,
    },
};

/// Kinds in the order in which they are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Node,
    Service,
    Slice,
}

type Key = (Kind, ObjectName);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Object {
    Node(Box<Node>),
    Service(Box<AnyService>),
    Slice(Box<Slice>),
}

/// An object of a file.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    outcome: Outcome<Object>,
    problems: Vec<Problem>,
}

/// What tells one version of a file from another: device, inode, size, modification and change time.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// A file as it was last read.
#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    /// Its objects when it was last good, in the order of the file.
    objects: Vec<(Key, Place, Arc<Entry>)>,
    /// What is wrong with it as a whole, and with objects that have no name.
    problems: Vec<Problem>,
}

/// What the receiver knows of an object.
#[derive(Debug)]
struct Reported {
    entry: Arc<Entry>,
    used: bool,
}

/// The directory.
pub(super) struct Store {
    dir: PathBuf,
    options: SourceOptions,
    names: Names,
    files: BTreeMap<OsString, File>,
    reported: BTreeMap<Key, Reported>,
    /// Problems of files that have been reported.
    problems: Vec<Problem>,
    /// Directories where files that are links really are.
    targets: BTreeSet<PathBuf>,
}

impl Store {
    pub(super) fn new(dir: PathBuf, options: SourceOptions) -> Self {
        Self {
            dir,
            options,
            names: Names::default(),
            files: BTreeMap::new(),
            reported: BTreeMap::new(),
            problems: Vec::new(),
            targets: BTreeSet::new(),
        }
    }

    /// Directories outside this one that hold what links here lead to.
    pub(super) fn target_directories(&self) -> BTreeSet<PathBuf> {
        self.targets.clone()
    }

    /// Reads what is new and returns what changed; fails if the directory itself cannot be read.
    pub(super) fn scan(&mut self, dirty: &Dirty) -> io::Result<Vec<Change>> {
        let mut present = BTreeSet::new();
        let mut targets = BTreeSet::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if is_manifest(&name) {
                if entry.file_type()?.is_symlink() {
                    targets.extend(entry.path().canonicalize().ok().and_then(|path| Some(path.parent()?.to_owned())));
                }
                present.insert(name);
            }
        }
        self.targets = targets;
        self.files.retain(|name, _| present.contains(name));
        for name in present {
            if dirty.open.contains(&name) {
                continue;
            }
            self.refresh(&name, dirty.all || dirty.files.contains(&name));
        }
        Ok(self.difference())
    }

    /// Reads a file if it changed, or whatever its stamp says if `force`.
    fn refresh(&mut self, name: &OsStr, force: bool) {
        let path = self.dir.join(name);
        let mut file = self.files.remove(name).unwrap_or_default();
        match read(&path, file.stamp.filter(|_| !force)) {
            Ok(Content::Same) => {}
            Ok(Content::Other) => return,
            Ok(Content::Text(stamp, text)) => {
                file.stamp = Some(stamp);
                self.understand(&path, &text, &mut file);
            }
            // Gone between the look into the directory and the look at the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() => return,
            Err(error) => {
                file.stamp = None;
                file.problems = vec![unreadable(&path, "1:1".to_owned(), &error.to_string())];
            }
        }
        self.files.insert(name.to_owned(), file);
    }

    /// A file has this text now.
    fn understand(&mut self, path: &Path, text: &str, file: &mut File) {
        let json = path.extension().is_some_and(|extension| extension == "json");
        match parse::objects(text, json) {
            Ok(found) => self.take(path, found, file),
            Err(Broken { place, message }) => file.problems = vec![unreadable(path, place.to_string(), &message)],
        }
    }

    /// As [`Store::scan`], after a file that is only in memory got this text, or is gone.
    pub(super) fn put(&mut self, name: &OsStr, text: Option<&str>) -> Vec<Change> {
        let mut file = self.files.remove(name).unwrap_or_default();
        if let Some(text) = text {
            self.understand(&self.dir.join(name), text, &mut file);
            self.files.insert(name.to_owned(), file);
        }
        self.difference()
    }

    /// Replaces the objects of a file by what was found in it.
    fn take(&mut self, path: &Path, found: Vec<Found>, file: &mut File) {
        if file.problems.iter().any(|problem| problem.kind == "File") {
            tracing::info!("{}: readable again", path.display());
        }
        file.objects.clear();
        file.problems.clear();
        for found in found {
            let place = found.place;
            match (found.kind.as_str(), found.api_version.as_str()) {
                ("Service", "v1" | "") => self.add::<v1::Service>(found, Kind::Service, Object::Service, file),
                ("EndpointSlice", "discovery.k8s.io/v1" | "") => {
                    self.add::<EndpointSlice>(found, Kind::Slice, Object::Slice, file);
                }
                ("Node", "v1" | "") => self.add::<v1::Node>(found, Kind::Node, Object::Node, file),
                ("EndpointSlice", version) if version.starts_with("discovery.k8s.io/") => {
                    let message = format!("EndpointSlice of {version} is not read: write it as discovery.k8s.io/v1");
                    file.problems.push(broken(path, place.to_string(), message));
                }
                (kind, version) => tracing::debug!("{}:{place}: {kind} of {version} ignored", path.display()),
            }
        }
    }

    fn add<K: Convert>(&mut self, found: Found, kind: Kind, wrap: fn(Box<K::Model>) -> Object, file: &mut File) {
        let Converted { name, outcome, problems } = convert_value::<K>(found.value, &self.options, &mut self.names);
        let Some(name) = name else {
            file.problems.extend(problems);
            return;
        };
        if kind == Kind::Node && *name.name != *self.options.node_name {
            return;
        }
        let outcome = match outcome {
            Outcome::Use(object) => Outcome::Use(Box::new(wrap(object))),
            Outcome::Unused => Outcome::Unused,
            Outcome::Unreadable => Outcome::Unreadable,
        };
        file.objects.push(((kind, name), found.place, Arc::new(Entry { outcome, problems })));
    }

    /// What the receiver does not know yet.
    fn difference(&mut self) -> Vec<Change> {
        let mut effective: BTreeMap<Key, (Arc<Entry>, &OsStr)> = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, file) in &self.files {
            problems.extend(file.problems.iter().cloned());
            for (key, place, entry) in &file.objects {
                match effective.entry(key.clone()) {
                    MapEntry::Vacant(vacant) => {
                        vacant.insert((Arc::clone(entry), name));
                    }
                    MapEntry::Occupied(first) => {
                        let first = first.get().1.display();
                        let message = format!("{} is in {first} already: this one is not used; remove one", title(key));
                        problems.push(broken(&self.dir.join(name), place.to_string(), message));
                    }
                }
            }
        }
        let mut changes = Vec::new();
        self.reported.retain(|key, reported| {
            let stays = effective.contains_key(key);
            if !stays && (reported.used || !reported.entry.problems.is_empty()) {
                changes.push(gone(key));
            }
            stays
        });
        for (key, (entry, _)) in effective {
            let before = self.reported.get(&key);
            if before.is_some_and(|before| Arc::ptr_eq(&before.entry, &entry) || before.entry == entry) {
                continue;
            }
            let was_used = before.is_some_and(|before| before.used);
            let had_problems = before.is_some_and(|before| !before.entry.problems.is_empty());
            let used = match &entry.outcome {
                Outcome::Use(object) => {
                    changes.push(change(&key, object));
                    true
                }
                Outcome::Unused => {
                    if was_used || had_problems {
                        changes.push(gone(&key));
                    }
                    false
                }
                // What was reported stays in force.
                Outcome::Unreadable => was_used,
            };
            changes.extend(entry.problems.iter().cloned().map(Change::Problem));
            self.reported.insert(key, Reported { entry, used });
        }
        // A file whose problems changed is cleared and reports what it has now.
        let of = |all: &[Problem], name: &str| -> Vec<Problem> {
            all.iter().filter(|problem| problem.kind == "File" && problem.name == name).cloned().collect()
        };
        let files: BTreeSet<_> = self.problems.iter().filter(|p| p.kind == "File").map(|p| p.name.clone()).collect();
        for name in files {
            if of(&self.problems, &name) != of(&problems, &name) {
                self.problems.retain(|problem| problem.kind != "File" || problem.name != name);
                changes.push(Change::Readable(name));
            }
        }
        changes
            .extend(problems.iter().filter(|problem| !self.problems.contains(problem)).cloned().map(Change::Problem));
        self.problems = problems;
        changes
    }
}

/// What reading a file yields.
enum Content {
    /// It has not changed.
    Same,
    /// It is no file.
    Other,
    Text(Stamp, String),
}

fn read(path: &Path, known: Option<Stamp>) -> io::Result<Content> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Ok(Content::Other);
    }
    let stamp = (
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        (metadata.mtime(), metadata.mtime_nsec()),
        (metadata.ctime(), metadata.ctime_nsec()),
    );
    if known == Some(stamp) {
        return Ok(Content::Same);
    }
    Ok(Content::Text(stamp, fs::read_to_string(path)?))
}

/// Whether a file of this name is read: hidden files are editors' and ConfigMaps' own.
fn is_manifest(name: &OsStr) -> bool {
    let path = Path::new(name);
    let extension = path.extension().and_then(OsStr::to_str);
    matches!(extension, Some("yaml" | "yml" | "json")) && !name.as_encoded_bytes().starts_with(b".")
}

/// A file that cannot be read or understood.
fn unreadable(path: &Path, field: String, cause: &str) -> Problem {
    broken(path, field, format!("{cause}: correct the file; what was last good in it stays in force"))
}

fn broken(path: &Path, field: String, message: String) -> Problem {
    Problem { kind: "File", name: path.display().to_string(), field, message }
}

fn title((kind, name): &Key) -> String {
    match kind {
        Kind::Node => format!("Node {}", name.name),
        Kind::Service => format!("Service {name}"),
        Kind::Slice => format!("EndpointSlice {name}"),
    }
}

fn change((_, name): &Key, object: &Object) -> Change {
    match object {
        Object::Node(node) => Change::Node(Some(node.clone())),
        Object::Service(service) => match &**service {
            AnyService::Balanced(service) => Change::Service(name.clone(), Some(service.clone())),
            AnyService::Unbalanced(service) => Change::Unbalanced(name.clone(), Box::new(service.clone())),
        },
        Object::Slice(slice) => Change::Slice(name.clone(), Some(slice.clone())),
    }
}

fn gone((kind, name): &Key) -> Change {
    match kind {
        Kind::Node => Change::Node(None),
        Kind::Service => Change::Service(name.clone(), None),
        Kind::Slice => Change::Slice(name.clone(), None),
    }
}
