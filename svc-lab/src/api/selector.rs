//! Label and field selectors.

use serde_json::Value;

/// What an object must look like to be listed or watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Absent(String),
    Equals(String, String),
    Differs(String, String),
}

impl Selector {
    /// From the parameters of a request.
    pub(super) fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, String> {
        let fields = requirements(fields.unwrap_or_default());
        for field in &fields {
            match field {
                Requirement::Equals(field, _) | Requirement::Differs(field, _)
                    if ["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"]
                        .contains(&field.as_str()) => {}
                other => return Err(format!("field selector {other:?} is not supported")),
            }
        }
        Ok(Self { labels: requirements(labels.unwrap_or_default()), fields })
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object.get("metadata")?.get("labels")?.get(key)?.as_str();
        let field = |path: &str| {
            let found = path.split('.').try_fold(object, |value, key| value.get(key)).and_then(Value::as_str);
            Some(found.unwrap_or_default())
        };
        self.labels.iter().all(|requirement| requirement.holds(label))
            && self.fields.iter().all(|requirement| requirement.holds(field))
    }
}

impl Requirement {
    fn holds<'o>(&self, value: impl Fn(&str) -> Option<&'o str>) -> bool {
        match self {
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
            Self::Equals(key, wanted) => value(key) == Some(wanted),
            Self::Differs(key, wanted) => value(key) != Some(wanted),
        }
    }
}

fn requirements(text: &str) -> Vec<Requirement> {
    let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    let own = |text: &str| text.trim().to_owned();
    texts
        .map(|text| {
            if let Some((key, value)) = text.split_once("!=") {
                Requirement::Differs(own(key), own(value))
            } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
                Requirement::Equals(own(key), own(value))
            } else if let Some(key) = text.strip_prefix('!') {
                Requirement::Absent(own(key))
            } else {
                Requirement::Exists(own(text))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_are_those_of_kubernetes() {
        let object = json!({"metadata": {"name": "a", "labels": {"x/y": "1"}}, "spec": {"clusterIP": "None"}});
        for (labels, fields, matches) in [
            ("", "", true),
            ("x/y", "", true),
            ("!x/y", "", false),
            ("!other", "", true),
            ("x/y=1,!z", "", true),
            ("x/y==2", "", false),
            ("x/y!=2", "", true),
            ("z!=2", "", true),
            ("", "spec.clusterIP!=None", false),
            ("", "metadata.name=a", true),
            ("", "metadata.name=b", false),
        ] {
            let selector = Selector::parse(Some(labels), Some(fields)).expect("understood");
            assert_eq!(selector.matches(&object), matches, "{labels:?} {fields:?}");
        }
        assert!(Selector::parse(None, Some("spec.x=y")).is_err());
        assert!(Selector::parse(None, None).expect("empty").matches(&json!("junk")));
    }
}
