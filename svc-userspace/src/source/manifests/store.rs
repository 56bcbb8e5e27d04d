//! The files of the directory: what each holds, what was last good, what has been reported.
//!
//! It compares and reports; it never reports an object gone because its file cannot be read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
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
    model::{Change, Node, ObjectName, Problem, Service, Slice},
    source::{
        SourceOptions,
        convert::{Convert, Converted, Outcome, convert_value},
        names::Names,
    },
};

/// Kinds in the order in which they are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Node,
    Service,
    Slice,
}

type Key = (Kind, ObjectName);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Object {
    Node(Box<Node>),
    Service(Box<Service>),
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
    files: BTreeMap<Arc<OsStr>, File>,
    /// Where each object is: file and place among its objects, sorted; the first one is used.
    places: HashMap<Key, Vec<(Arc<OsStr>, usize)>>,
    /// Objects that came, changed or went since changes were reported last.
    affected: BTreeSet<Key>,
    reported: HashMap<Key, Reported>,
    /// Problems of objects that are in more than one place.
    duplicates: BTreeMap<Key, Vec<Problem>>,
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
            places: HashMap::new(),
            affected: BTreeSet::new(),
            reported: HashMap::new(),
            duplicates: BTreeMap::new(),
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
        let gone: Vec<Arc<OsStr>> = self.files.keys().filter(|name| !present.contains(&***name)).cloned().collect();
        for name in gone {
            self.forget(&name);
        }
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
        let stamp = self.files.get(name).and_then(|file| file.stamp);
        match read(&path, stamp.filter(|_| !force)) {
            Ok(Content::Same) => {}
            Ok(Content::Other) => self.forget(name),
            Ok(Content::Text(stamp, text)) => self.understand(name, Some(stamp), &text),
            // Gone between the look into the directory and the look at the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() => {
                self.forget(name);
            }
            Err(error) => {
                let file = self.files.entry(name.into()).or_default();
                file.stamp = None;
                file.problems = vec![unreadable(&path, "1:1".to_owned(), &error.to_string())];
            }
        }
    }

    /// A file is gone.
    fn forget(&mut self, name: &OsStr) {
        if let Some(file) = self.files.remove(name) {
            self.unlist(name, &file);
        }
    }

    /// Takes the objects of a file out of `places`.
    fn unlist(&mut self, name: &OsStr, file: &File) {
        for (key, ..) in &file.objects {
            if let Some(places) = self.places.get_mut(key) {
                places.retain(|(other, _)| **other != *name);
                if places.is_empty() {
                    self.places.remove(key);
                }
            }
            self.affected.insert(key.clone());
        }
    }

    /// A file has this text now.
    fn understand(&mut self, name: &OsStr, stamp: Option<Stamp>, text: &str) {
        let path = self.dir.join(name);
        let json = path.extension().is_some_and(|extension| extension == "json");
        let mut file = self.files.remove(name).unwrap_or_default();
        file.stamp = stamp;
        let name: Arc<OsStr> = name.into();
        match parse::objects(text, json) {
            Ok(found) => {
                self.unlist(&name, &file);
                self.take(&path, found, &mut file);
                for (at, (key, ..)) in file.objects.iter().enumerate() {
                    let places = self.places.entry(key.clone()).or_insert_with(|| Vec::with_capacity(1));
                    let behind = places.partition_point(|place| *place < (Arc::clone(&name), at));
                    places.insert(behind, (Arc::clone(&name), at));
                    self.affected.insert(key.clone());
                }
            }
            Err(Broken { place, message }) => file.problems = vec![unreadable(&path, place.to_string(), &message)],
        }
        self.files.insert(name, file);
    }

    /// As [`Store::scan`], after a file that is only in memory got this text, or is gone.
    pub(super) fn put(&mut self, name: &OsStr, text: Option<&str>) -> Vec<Change> {
        match text {
            Some(text) => self.understand(name, None, text),
            None => self.forget(name),
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

    /// The entry of an object that counts; of one that is there more than once, what to say about the others.
    fn effective(&self, key: &Key) -> Option<(Arc<Entry>, Vec<Problem>)> {
        let mut found = self.places.get(key)?.iter().filter_map(|(name, at)| {
            let (_, place, entry) = self.files.get(name)?.objects.get(*at)?;
            Some((name, place, entry))
        });
        let (first, _, entry) = found.next()?;
        let message = || format!("{} is in {} already: this one is not used; remove one", title(key), first.display());
        let others = found.map(|(name, place, _)| broken(&self.dir.join(&**name), place.to_string(), message()));
        Some((Arc::clone(entry), others.collect()))
    }

    /// What the receiver does not know yet.
    fn difference(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut effective = Vec::new();
        for key in std::mem::take(&mut self.affected) {
            self.duplicates.remove(&key);
            if let Some((entry, others)) = self.effective(&key) {
                if !others.is_empty() {
                    self.duplicates.insert(key.clone(), others);
                }
                effective.push((key, entry));
            } else if let Some(reported) = self.reported.remove(&key)
                && (reported.used || !reported.entry.problems.is_empty())
            {
                changes.push(gone(&key));
            }
        }
        let of_files = self.files.values().flat_map(|file| &file.problems);
        let problems: Vec<Problem> = of_files.chain(self.duplicates.values().flatten()).cloned().collect();
        for (key, entry) in effective {
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
        Object::Service(service) => Change::Service(name.clone(), Some(service.clone())),
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
