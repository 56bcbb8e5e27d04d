//! From Kubernetes objects to the model: one file per object, `fields` for what they share.
//!
//! What makes no sense is left out alone and reported. Conversion never decides which endpoint is used, and never fails as
//! a whole for one bad field.

mod asking;
mod claim;
mod fields;
mod node;
mod service;
mod slice;
#[cfg(test)]
mod tests;

pub(crate) use self::{
    asking::{Balanced, given_message},
    service::AnyService,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    SourceOptions,
    names::Names,
    read::{Fault, Read, read},
};
use crate::model::{ObjectName, Problem};

/// At most this many problems of one object are reported; the last one says how many more there are.
const MAX_PROBLEMS: usize = 16;

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome<T> {
    /// It is used.
    Use(Box<T>),
    /// It is none of ours (headless, other proxy, FQDN …) or has nothing that can be used.
    Unused,
    /// A field that everything depends on cannot be read: what was known of the object stays in force.
    Unreadable,
}

/// An object after conversion.
#[derive(Clone, Debug)]
pub(crate) struct Converted<T> {
    /// Its name; `None`: not even that can be read.
    pub(crate) name: Option<ObjectName>,
    /// What became of it.
    pub(crate) outcome: Outcome<T>,
    /// What was wrong with it.
    pub(crate) problems: Vec<Problem>,
}

/// A Kubernetes object that has a counterpart in the model.
pub(crate) trait Convert: DeserializeOwned {
    /// Its counterpart.
    type Model;
    /// Its kind, as in manifests.
    const KIND: &'static str;
    /// Whether it lives in a namespace.
    const NAMESPACED: bool;
    /// Fields without which nothing can be said about the object.
    const ESSENTIAL: &'static [&'static str];

    /// The model's view of this object; `None`: it is not used.
    fn convert(&self, name: &ObjectName, context: &mut Context<'_>) -> Option<Self::Model>;
}

/// What conversion of one object needs and yields beside the object.
pub(crate) struct Context<'a> {
    pub(crate) options: &'a SourceOptions,
    pub(crate) names: &'a mut Names,
    kind: &'static str,
    name: String,
    faults: Vec<Fault>,
    problems: Vec<Problem>,
}

impl Context<'_> {
    /// Reports a field, unless it is known already that it could not be read.
    pub(crate) fn problem(&mut self, field: impl Into<String>, message: impl Into<String>) {
        let field = field.into();
        let known = |fault: &Fault| nested(&fault.path, &field) || nested(&field, &fault.path);
        if !self.faults.iter().any(known) {
            self.push(field, message.into());
        }
    }

    fn push(&mut self, field: String, message: String) {
        self.problems.push(Problem { kind: self.kind, name: self.name.clone(), field, message });
    }

    fn finish(mut self) -> Vec<Problem> {
        let total = self.problems.len();
        if total > MAX_PROBLEMS {
            self.problems.truncate(MAX_PROBLEMS - 1);
            let more = total - self.problems.len();
            self.push("*".to_owned(), format!("{more} more problems of this kind: correct these first"));
        }
        self.problems
    }
}

/// Whether the field `inner` is `outer` or inside it.
fn nested(outer: &str, inner: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Converts an object given as JSON.
pub(crate) fn convert_value<K: Convert>(
    value: Value,
    options: &SourceOptions,
    names: &mut Names,
) -> Converted<K::Model> {
    convert(read::<K>(value), options, names)
}

/// Converts an object that has been read.
pub(crate) fn convert<K: Convert>(object: Read<K>, options: &SourceOptions, names: &mut Names) -> Converted<K::Model> {
    let identity = object.object_name(K::NAMESPACED, names);
    let Read { namespace, name, resource_version: _, object, faults } = object;
    let shown = match (name.as_str(), K::NAMESPACED) {
        ("", _) => "(without a name)".to_owned(),
        (name, true) => format!("{namespace}/{name}"),
        (name, false) => name.to_owned(),
    };
    let mut context = Context { options, names, kind: K::KIND, name: shown, faults, problems: Vec::new() };
    let essential = |fault: &Fault| {
        fault.path.is_empty()
            || ["metadata", "metadata.name", "metadata.namespace", "metadata.labels"].contains(&fault.path.as_str())
            || K::ESSENTIAL.contains(&fault.path.as_str())
    };
    let mut unreadable = object.is_none();
    for fault in context.faults.clone() {
        unreadable |= essential(&fault);
        let field = if fault.path.is_empty() { "." } else { fault.path.as_str() };
        context.push(field.to_owned(), format!("{}: left out until it has the right type", fault.message));
    }
    if identity.is_none() {
        context.problem("metadata.name", "missing or not a string: object left out; give it a name");
    }
    let outcome = match (&identity, object) {
        (Some(identity), Some(object)) if !unreadable => match object.convert(identity, &mut context) {
            Some(model) => Outcome::Use(Box::new(model)),
            None => Outcome::Unused,
        },
        _ => Outcome::Unreadable,
    };
    if matches!(outcome, Outcome::Unreadable) && context.problems.is_empty() {
        context.push(".".to_owned(), "cannot be read: left out until it is corrected".to_owned());
    }
    Converted { name: identity, outcome, problems: context.finish() }
}
