//! What the Lease says: who may write, and what is about to be written.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::model::ObjectName;

/// What is about to be written into a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// `metadata.uid` of the Service.
    pub uid: String,
    /// Its `metadata.resourceVersion`: only that version of it can be written.
    pub version: u64,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}

/// What has been decided and may not have been written yet, by Service.
pub type Intents = BTreeMap<ObjectName, Intent>;

/// The Lease as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Who may write; empty: nobody.
    pub holder: Arc<str>,
    /// How often that has been another one.
    pub transitions: i32,
    /// What the holder is about to write, or one before it was.
    pub intents: Intents,
}

/// A Lease, and its version for the next update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// `metadata.resourceVersion`.
    pub version: String,
    /// Its content.
    pub ledger: Ledger,
}

/// Intents as text for an annotation.
pub fn to_text(intents: &Intents) -> Result<String, serde_json::Error> {
    let by_text: BTreeMap<String, &Intent> = intents.iter().map(|(name, it)| (name.to_string(), it)).collect();
    serde_json::to_string(&by_text)
}

/// Intents from the text of an annotation.
pub fn from_text(text: &str) -> Result<Intents, String> {
    let by_text: BTreeMap<String, Intent> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let named = by_text.into_iter().map(|(text, intent)| {
        let (namespace, name) = text.split_once('/').ok_or_else(|| format!("{text:?} is no name of a Service"))?;
        Ok((ObjectName::new(namespace, name), intent))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intents_come_back_from_their_text() {
        let addresses = vec![IpAddr::from([203, 0, 113, 1]), "2001:db8::1".parse().expect("an address")];
        let intent = Intent { uid: "u".to_owned(), version: 7, addresses };
        let intents = Intents::from([(ObjectName::new("shop", "web"), intent)]);
        let text = to_text(&intents).expect("text");
        assert_eq!(text, r#"{"shop/web":{"uid":"u","version":7,"addresses":["203.0.113.1","2001:db8::1"]}}"#);
        assert_eq!(from_text(&text), Ok(intents));
        assert!(from_text("{\"web\":{}}").is_err() && from_text("x").is_err());
    }
}
