//! A watch: records of the history as one JSON line each, for as long as nothing cuts it.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use axum::body::Bytes;
use futures::Stream;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::{Api, Cut, Resource, State, selector::Selector, store::Record};

/// Number of no record: the watch ends when its lines are sent.
pub(super) const END: u64 = u64::MAX;

/// What a watch was asked for.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) resource: Resource,
    /// "": all.
    pub(super) namespace: String,
    pub(super) selector: Selector,
    pub(super) bookmarks: bool,
    pub(super) timeout: Duration,
}

/// Counts an open watch.
struct Open(Api, Resource);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.change(|state| *state.counters.watching.entry(self.1).or_default() -= 1);
    }
}

struct Watch {
    request: Request,
    tick: watch::Receiver<u64>,
    deadline: Instant,
    /// Number of the next record.
    cursor: u64,
    /// Lines to be sent.
    queue: VecDeque<String>,
    /// Bookmarks and cuts that came before this watch.
    bookmarks: u64,
    cuts: usize,
    /// Events since the last bookmark.
    events: u64,
    /// The cut that is under way, and the bytes still to send.
    cut: Option<(Cut, usize)>,
    over: bool,
    open: Open,
}

/// Lines of a watch that begins with `first` and goes on with record `cursor`.
pub(super) fn stream(
    api: &Api,
    state: &mut State,
    request: Request,
    first: Vec<String>,
    cursor: u64,
) -> impl Stream<Item = io::Result<Bytes>> + use<> {
    *state.counters.watching.entry(request.resource).or_default() += 1;
    let watch = Watch {
        tick: api.tick.subscribe(),
        deadline: Instant::now() + request.timeout,
        cursor,
        queue: first.into(),
        bookmarks: state.faults.bookmarks,
        cuts: state.faults.cuts.len(),
        events: 0,
        cut: None,
        over: false,
        open: Open(api.clone(), request.resource),
        request,
    };
    futures::stream::unfold(watch, |mut watch| async move {
        let chunk = watch.next().await?;
        Some((chunk, watch))
    })
}

impl Watch {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if self.over {
                return None;
            }
            self.tick.mark_unchanged();
            if self.gather() {
                // Somebody may wait for bookmarks to be sent.
                self.open.0.change(|_| ());
            }
            if self.queue.is_empty()
                && let Some((Cut::Clean, _)) = self.cut
            {
                return None;
            }
            if let Some((cut @ (Cut::Truncated { .. } | Cut::Abrupt { .. }), 0)) = self.cut {
                // Let the server send what it has before the connection breaks.
                tokio::task::yield_now().await;
                self.over = true;
                return matches!(cut, Cut::Abrupt { .. }).then(|| Err(io::Error::other("cut on demand")));
            }
            if let Some(line) = self.queue.pop_front() {
                let mut bytes = Bytes::from(line);
                if let Some((Cut::Truncated { .. } | Cut::Abrupt { .. }, budget)) = &mut self.cut {
                    bytes.truncate(*budget);
                    *budget -= bytes.len();
                }
                return Some(Ok(bytes));
            }
            if self.cursor == END {
                return None;
            }
            tokio::select! {
                changed = self.tick.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.deadline) => return None,
            }
        }
    }

    /// Takes what is new into the queue; whether there were bookmarks.
    fn gather(&mut self) -> bool {
        let api = self.open.0.clone();
        let mut state = api.state();
        let State { store, faults, counters, .. } = &mut *state;
        let bookmarks = counters.bookmarks;
        if self.cut.is_none()
            && let Some(&cut) = faults.cuts.get(self.cuts)
        {
            self.cut = Some((cut, cut.budget()));
        }
        if let Some((Cut::Clean, _)) = self.cut {
            return false;
        }
        if store.is_forgotten(self.cursor) {
            self.queue.push_back(gone_line(store.version()));
            self.cursor = END;
        }
        while let Some(record) = store.at(self.cursor) {
            self.cursor += 1;
            let Some(line) = self.line(record) else { continue };
            self.queue.push_back(line.clone());
            if faults.duplicate {
                self.queue.push_back(line);
            }
            self.events += 1;
            if faults.bookmark_every > 0 && self.events >= faults.bookmark_every {
                self.bookmark(record.version, &mut counters.bookmarks);
            }
        }
        if self.bookmarks < faults.bookmarks {
            self.bookmarks = faults.bookmarks;
            self.bookmark(store.version(), &mut counters.bookmarks);
        }
        counters.bookmarks > bookmarks
    }

    fn bookmark(&mut self, version: u64, count: &mut u64) {
        if self.request.bookmarks {
            self.events = 0;
            *count += 1;
            self.queue.push_back(bookmark_line(self.request.resource, version, false));
        }
    }

    /// What this watch gets to see of a record: an object that begins or ceases to match comes or goes.
    fn line(&self, record: &Record) -> Option<String> {
        let request = &self.request;
        if record.resource != request.resource {
            return None;
        }
        if let Some(line) = &record.line {
            return Some(format!("{line}\n"));
        }
        if !request.namespace.is_empty() && record.namespace != request.namespace {
            return None;
        }
        let matching = |object: &Option<Arc<Value>>| object.clone().filter(|object| request.selector.matches(object));
        match (matching(&record.before), matching(&record.after)) {
            (None, None) => None,
            (None, Some(after)) => Some(line("ADDED", &after)),
            (Some(_), Some(after)) => Some(line("MODIFIED", &after)),
            (Some(before), None) => {
                let mut last = Value::clone(&before);
                if let Some(metadata) = last.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.insert("resourceVersion".to_owned(), json!(record.version.to_string()));
                }
                Some(line("DELETED", &last))
            }
        }
    }
}

/// An event.
pub(super) fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

/// A bookmark; `initial`: it ends the initial events.
pub(super) fn bookmark_line(resource: Resource, version: u64, initial: bool) -> String {
    let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
    if initial {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object = json!({"kind": resource.kind(), "apiVersion": resource.api_version(), "metadata": metadata});
    line("BOOKMARK", &object)
}

/// The event that says that the version is too old.
pub(super) fn gone_line(version: u64) -> String {
    line("ERROR", &super::http::status(410, "Expired", &format!("too old resource version, current is {version}")))
}
