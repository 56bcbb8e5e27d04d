//! Text of a manifest to the objects in it.
//!
//! YAML with any number of documents, JSON likewise, lists of objects taken apart. A file is understood as a whole or not
//! at all; which objects make sense is `convert`'s business.

use serde_json::Value;
use serde_saphyr::{Budget, Options, Spanned};

/// Where something stands in a file, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A file that cannot be understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) place: Place,
    pub(super) message: String,
}

/// An object and what it says it is.
#[derive(Debug)]
pub(super) struct Found {
    /// Where its document begins.
    pub(super) place: Place,
    /// `kind`.
    pub(super) kind: String,
    /// `apiVersion`, empty if it is left away.
    pub(super) api_version: String,
    pub(super) value: Value,
}

/// Lists in lists deeper than this are not taken apart.
const MAX_NESTING: u32 = 4;

/// The objects of a file.
pub(super) fn objects(text: &str, json: bool) -> Result<Vec<Found>, Broken> {
    let mut found = Vec::new();
    for (place, value) in if json { documents_json(text)? } else { documents_yaml(text)? } {
        if !value.is_null() {
            flatten(value, place, None, MAX_NESTING, &mut found)?;
        }
    }
    Ok(found)
}

fn documents_json(text: &str) -> Result<Vec<(Place, Value)>, Broken> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut documents = Vec::new();
    loop {
        let rest = &text[stream.byte_offset()..];
        let place = place_of(text, text.len() - rest.trim_start().len());
        match stream.next() {
            None => return Ok(documents),
            Some(Ok(value)) => documents.push((place, value)),
            Some(Err(error)) => {
                let place = Place { line: error.line() as u64, column: error.column() as u64 };
                return Err(Broken { place, message: without_place(&error.to_string()) });
            }
        }
    }
}

/// One line, without the place, which is reported as the field.
fn without_place(message: &str) -> String {
    let message = message.split(" at line ").next().unwrap_or_default();
    // Advice for programmers.
    let message = message.split(", set DuplicateKeyPolicy").next().unwrap_or_default();
    message.trim_start_matches("error: ").replace('\n', " ")
}

/// Line and column of a byte of the text.
fn place_of(text: &str, offset: usize) -> Place {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() as u64 + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() as u64 + 1;
    Place { line, column }
}

fn documents_yaml(text: &str) -> Result<Vec<(Place, Value)>, Broken> {
    // These are the operator's own files and may hold a whole cluster; the limits on aliases stay.
    let mut budget = Budget::default();
    budget.max_documents = 1_000_000;
    budget.max_events = 200_000_000;
    budget.max_nodes = 100_000_000;
    budget.max_total_scalar_bytes = 1 << 30;
    let mut options = Options::default();
    options.budget = Some(budget);
    options.strict_booleans = true;
    options.with_snippet = false;
    let documents: Vec<Spanned<Value>> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let place = error.location().map_or(Place { line: 1, column: 1 }, |location| place(&location));
        Broken { place, message: without_place(&error.without_snippet().to_string()) }
    })?;
    Ok(documents.into_iter().map(|document| (place(&document.referenced), document.value)).collect())
}

fn place(location: &serde_saphyr::Location) -> Place {
    Place { line: location.line().max(1), column: location.column().max(1) }
}

/// Adds an object, or those of a list. `outer`: kind and version of the items, if the list says so.
fn flatten(
    mut value: Value,
    place: Place,
    outer: Option<(&str, &str)>,
    depth: u32,
    found: &mut Vec<Found>,
) -> Result<(), Broken> {
    let text = |field: &str| value.get(field).and_then(Value::as_str);
    let kind = text("kind").or(outer.map(|(kind, _)| kind)).map(str::to_owned);
    let api_version = text("apiVersion").or(outer.map(|(_, version)| version)).unwrap_or_default().to_owned();
    let Some(kind) = kind else {
        let message = "an object without kind: give it kind and apiVersion".to_owned();
        return Err(Broken { place, message });
    };
    let items = match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) if kind.ends_with("List") && depth > 0 => items,
        Some(Value::Null) | None if kind.ends_with("List") => return Ok(()),
        Some(_) if kind.ends_with("List") => {
            let message = format!("items of a {kind} is not a list: correct it");
            return Err(Broken { place, message });
        }
        _ => {
            found.push(Found { place, kind, api_version, value });
            return Ok(());
        }
    };
    let item_kind = kind.strip_suffix("List").unwrap_or_default();
    let outer = (!item_kind.is_empty()).then_some((item_kind, api_version.as_str()));
    items.into_iter().try_for_each(|item| flatten(item, place, outer, depth - 1, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str, json: bool) -> Vec<String> {
        let found = objects(text, json).expect("understood");
        found.iter().map(|found| format!("{} {} {}", found.kind, found.api_version, found.place)).collect()
    }

    #[test]
    fn documents_and_lists_are_taken_apart() {
        let yaml = "# only a comment\n---\nkind: Service\napiVersion: v1\n---\n---\nkind: List\napiVersion: v1\nitems:\n\
                    - {kind: Node, apiVersion: v1}\n- kind: EndpointSliceList\n  apiVersion: discovery.k8s.io/v1\n  items: [{}]\n...\n";
        assert_eq!(kinds(yaml, false), ["Service v1 3:1", "Node v1 7:1", "EndpointSlice discovery.k8s.io/v1 7:1"]);
        let json = "{\"kind\":\"Service\"}\n {\"kind\":\"List\",\"items\":[{\"kind\":\"Node\"}]}";
        assert_eq!(kinds(json, true), ["Service  1:1", "Node  2:2"]);
        for empty in ["", "\n", "# nothing\n", "---\n", "kind: ServiceList\n", "kind: List\nitems: []\n"] {
            assert!(kinds(empty, false).is_empty(), "{empty:?}");
        }
        assert!(kinds(" \n", true).is_empty());
    }

    #[test]
    fn a_broken_file_says_where() {
        for (text, json, place) in [
            ("kind: Service\nspec:\n  ports: [\n", false, "3:10"),
            ("kind: Service\n  bad: [1\n", false, "2:6"),
            ("a: 1\na: 2\n", false, "2:1"),
            ("---\njust text\n", false, "2:1"),
            ("kind: Service\n---\nspec: {}\n", false, "3:1"),
            ("{\"kind\": \"Service\",\n  oops}", true, "2:3"),
            ("{\"kind\": \"Service\"} [1]", true, "1:21"),
            ("kind: List\nitems: 5\n", false, "1:1"),
        ] {
            let broken = objects(text, json).expect_err(text);
            assert_eq!(broken.place.to_string(), place, "{text:?}: {broken:?}");
            assert!(!broken.message.contains('\n') && !broken.message.is_empty(), "{broken:?}");
        }
    }

    #[test]
    fn scalars_keep_their_types() {
        let text = "kind: Service\na: yes\nb: true\nc: 0x10\nd: 10.0.0.1\ne: '5'\nf: 5\ng: None\nh: ~\ni: fd00::1\n";
        let value = &objects(text, false).expect("understood")[0].value;
        assert_eq!(value["a"], "yes");
        assert_eq!(value["b"], true);
        assert_eq!(value["d"], "10.0.0.1");
        assert_eq!(value["e"], "5");
        assert_eq!(value["f"], 5);
        assert_eq!(value["g"], "None");
        assert!(value["h"].is_null());
        assert_eq!(value["i"], "fd00::1");
    }

    #[test]
    fn a_large_file_is_not_too_large() {
        let text = "kind: Service\nmetadata: {name: a, labels: {x: y}}\n---\n".repeat(20_000);
        assert_eq!(objects(&text, false).expect("understood").len(), 20_000);
    }

    #[test]
    fn aliases_do_not_explode() {
        let mut text = "kind: Service\nx0: &x0 [1,1,1,1,1,1,1,1,1,1]\n".to_owned();
        for i in 1..12 {
            let aliases = vec![format!("*x{}", i - 1); 10].join(",");
            text.extend([&format!("x{i}: &x{i} "), "[", &aliases, "]\n"]);
        }
        assert!(objects(&text, false).is_err());
    }
}
