//! Which Service a line is about: names out of the maps, and the filters that pick them.

use std::str::FromStr;

use svc_common::ServiceName;

use crate::model::Protocol;

/// Text of a zero-padded field.
pub fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
}

/// A Service port as it is printed and written to JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct PortName {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Port of the Service.
    pub port: u16,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// Name of the port, empty if it has none.
    pub port_name: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
}

impl From<&ServiceName> for PortName {
    fn from(name: &ServiceName) -> Self {
        Self {
            namespace: text(&name.namespace),
            name: text(&name.name),
            port: name.port,
            protocol: Protocol::from_number(name.protocol).map_or_else(|| name.protocol.to_string(), |p| p.to_string()),
            port_name: text(&name.port_name),
            family: format!("IPv{}", name.version),
        }
    }
}

impl PortName {
    /// `80/TCP`, or `http:80/TCP` for a named port.
    pub fn port_text(&self) -> String {
        let name = if self.port_name.is_empty() { String::new() } else { format!("{}:", self.port_name) };
        format!("{name}{}/{}", self.port, self.protocol)
    }

    /// `namespace/name`.
    pub fn object(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// `NAME` or `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFilter {
    namespace: Option<String>,
    name: String,
}

impl FromStr for ServiceFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
            None => (None, text),
        };
        if name.is_empty() || name.contains('/') || namespace.as_deref() == Some("") {
            return Err("write NAME or NAMESPACE/NAME".to_owned());
        }
        Ok(Self { namespace, name: name.to_owned() })
    }
}

impl ServiceFilter {
    /// True if the Service is meant.
    pub fn matches(&self, port: &PortName) -> bool {
        self.name == port.name && self.namespace.as_ref().is_none_or(|namespace| *namespace == port.namespace)
    }
}

/// Both ways to pick Services: `-n NAMESPACE` and a name.
pub fn picked(port: &PortName, namespace: Option<&str>, filter: Option<&ServiceFilter>) -> bool {
    namespace.is_none_or(|namespace| namespace == port.namespace) && filter.is_none_or(|filter| filter.matches(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(namespace: &str, name: &str) -> PortName {
        PortName { namespace: namespace.into(), name: name.into(), ..PortName::default() }
    }

    #[test]
    fn a_filter_with_a_namespace_is_exact_and_one_without_takes_any() -> Result<(), String> {
        let both: ServiceFilter = "prod/web".parse()?;
        assert!(both.matches(&port("prod", "web")) && !both.matches(&port("test", "web")));
        let name: ServiceFilter = "web".parse()?;
        assert!(name.matches(&port("test", "web")) && !name.matches(&port("test", "web2")));
        assert!(!picked(&port("test", "web"), Some("prod"), Some(&name)));
        Ok(())
    }

    #[test]
    fn a_malformed_filter_says_what_would_be_right() {
        for wrong in ["", "/", "a/", "/b", "a/b/c"] {
            assert_eq!(wrong.parse::<ServiceFilter>(), Err("write NAME or NAMESPACE/NAME".to_owned()), "{wrong}");
        }
    }

    #[test]
    fn a_field_without_padding_is_read_whole() {
        assert_eq!(text(b"abc\0\0"), "abc");
        assert_eq!(text(b"abc"), "abc");
    }
}
