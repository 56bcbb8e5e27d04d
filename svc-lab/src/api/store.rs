//! Objects, their versions, and the history that watches are served from.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{Resource, selector::Selector};

/// Resource, namespace ("" for Nodes), name.
pub(super) type Key = (Resource, String, String);

/// Changes kept unless told otherwise.
const HISTORY: usize = 1000;
/// Lists whose further pages can still be asked for.
const SNAPSHOTS: usize = 16;

/// A change, or a line sent to watches as it is.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) version: u64,
    pub(super) resource: Resource,
    pub(super) namespace: String,
    pub(super) before: Option<Arc<Value>>,
    pub(super) after: Option<Arc<Value>>,
    pub(super) line: Option<String>,
}

/// A list that is handed out in pages.
#[derive(Debug)]
struct Snapshot {
    id: u64,
    version: u64,
    items: Arc<Vec<Arc<Value>>>,
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Arc<Value>>,
    pub(super) next: Option<String>,
}

#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    /// Newest last.
    history: VecDeque<Record>,
    limit: usize,
    /// Number of the first record of `history`.
    first: u64,
    /// The latest version that is no longer in the history.
    forgotten: u64,
    snapshots: VecDeque<Snapshot>,
    next_snapshot: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            version: 1,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            limit: HISTORY,
            first: 0,
            forgotten: 0,
            snapshots: VecDeque::new(),
            next_snapshot: 1,
        }
    }
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn keys(&self) -> BTreeSet<Key> {
        self.objects.keys().cloned().collect()
    }

    pub(super) fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        self.objects.get(&key(resource, namespace, name)).map(|object| Value::clone(object))
    }

    pub(super) fn put(&mut self, resource: Resource, namespace: &str, name: &str, mut object: Value) -> u64 {
        self.version += 1;
        let key = key(resource, namespace, name);
        if let Some(fields) = object.as_object_mut().filter(|fields| fields.contains_key("metadata")) {
            fields.entry("apiVersion").or_insert_with(|| json!(resource.api_version()));
            fields.entry("kind").or_insert_with(|| json!(resource.kind()));
        }
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            if resource.is_namespaced() && metadata.contains_key("name") {
                metadata.entry("namespace").or_insert_with(|| json!(key.1));
            }
            metadata.insert("resourceVersion".to_owned(), json!(self.version.to_string()));
        }
        let after = Arc::new(object);
        let namespace = key.1.clone();
        let before = self.objects.insert(key, Arc::clone(&after));
        self.record(Record { version: self.version, resource, namespace, before, after: Some(after), line: None });
        self.version
    }

    pub(super) fn delete(&mut self, resource: Resource, namespace: &str, name: &str) -> bool {
        let key = key(resource, namespace, name);
        let Some(before) = self.objects.remove(&key) else { return false };
        self.version += 1;
        let namespace = key.1;
        self.record(Record {
            version: self.version,
            resource,
            namespace,
            before: Some(before),
            after: None,
            line: None,
        });
        true
    }

    pub(super) fn line(&mut self, resource: Resource, line: &str) {
        let line = Some(line.to_owned());
        let record =
            Record { version: self.version, resource, namespace: String::new(), before: None, after: None, line };
        self.record(record);
    }

    fn record(&mut self, record: Record) {
        self.history.push_back(record);
        self.trim();
    }

    fn trim(&mut self) {
        while self.history.len() > self.limit {
            if let Some(record) = self.history.pop_front() {
                self.first += 1;
                self.forgotten = record.version;
            }
        }
    }

    pub(super) fn advance(&mut self, versions: u64) {
        self.version += versions;
    }

    pub(super) fn forget(&mut self) {
        self.first += self.history.len() as u64;
        self.history.clear();
        self.forgotten = self.version.saturating_sub(1);
    }

    pub(super) fn limit(&mut self, changes: usize) {
        self.limit = changes;
        self.trim();
    }

    pub(super) fn expire_pages(&mut self) {
        self.snapshots.clear();
    }

    /// Objects in a namespace ("": in all), as a list has them.
    pub(super) fn select(&self, resource: Resource, namespace: &str, selector: &Selector) -> Vec<Arc<Value>> {
        let wanted = |key: &Key| key.0 == resource && (namespace.is_empty() || key.1 == namespace);
        let objects = self.objects.iter().filter(|(key, object)| wanted(key) && selector.matches(object));
        objects.map(|(_, object)| Arc::clone(object)).collect()
    }

    /// The first page of a list; `limit` 0: all of it.
    pub(super) fn list(&mut self, items: Vec<Arc<Value>>, limit: usize) -> Page {
        let items = Arc::new(items);
        let id = self.next_snapshot;
        let page = page(&items, id, 0, limit, self.version);
        if page.next.is_some() {
            self.next_snapshot += 1;
            self.snapshots.push_back(Snapshot { id, version: self.version, items });
            while self.snapshots.len() > SNAPSHOTS {
                self.snapshots.pop_front();
            }
        }
        page
    }

    /// A further page; `None`: the token has expired.
    pub(super) fn page(&self, token: &str, limit: usize) -> Option<Page> {
        let (id, offset) = token.split_once('-')?;
        let (id, offset): (u64, usize) = (id.parse().ok()?, offset.parse().ok()?);
        let snapshot = self.snapshots.iter().find(|snapshot| snapshot.id == id)?;
        Some(page(&snapshot.items, id, offset, limit, snapshot.version))
    }

    /// Number of the first record after a version; `None`: the history does not reach back so far.
    pub(super) fn cursor(&self, version: u64) -> Option<u64> {
        if version < self.forgotten {
            return None;
        }
        let older = self.history.iter().take_while(|record| record.version <= version).count();
        Some(self.first + older as u64)
    }

    /// Number of the next record there will be.
    pub(super) fn end(&self) -> u64 {
        self.first + self.history.len() as u64
    }

    /// Record of a number; `None`: it is not there yet, or no longer.
    pub(super) fn at(&self, cursor: u64) -> Option<&Record> {
        self.history.get(usize::try_from(cursor.checked_sub(self.first)?).ok()?)
    }

    /// Whether the record of a number has been forgotten.
    pub(super) fn is_forgotten(&self, cursor: u64) -> bool {
        cursor < self.first
    }
}

fn key(resource: Resource, namespace: &str, name: &str) -> Key {
    let namespace = if resource.is_namespaced() { namespace } else { "" };
    (resource, namespace.to_owned(), name.to_owned())
}

fn page(items: &[Arc<Value>], id: u64, offset: usize, limit: usize, version: u64) -> Page {
    let rest = items.get(offset..).unwrap_or_default();
    let count = if limit == 0 { rest.len() } else { limit.min(rest.len()) };
    let next = (count < rest.len()).then(|| format!("{id}-{}", offset + count));
    Page { version, items: rest[..count].to_vec(), next }
}
