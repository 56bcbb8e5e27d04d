//! The answer for people. It decides nothing.

use std::fmt::Write as _;

use super::Answer;
use crate::cli::table::Table;

impl Answer {
    /// The answer for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |what: &str, value: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{what:<12}{value}");
        };
        line("packet", &format!("{} -> {}/{}", self.source, self.destination, self.protocol));
        match &self.interface {
            Some(interface) => line("comes in", &format!("by {interface} ({})", self.scope)),
            None => line("comes", "from a process of this node"),
        }
        let service = self.service.as_ref().map(|name| format!("{} {}", name.object(), name.port_text()));
        line("service", service.as_deref().unwrap_or("none"));
        line("verdict", &format!("{}: {}", self.verdict, self.why));
        if let Some(note) = self.note {
            line("note", note);
        }
        if let Some(endpoint) = self.endpoint {
            line("endpoint", &endpoint.to_string());
        }
        if let Some(flow) = &self.flow {
            let age = if flow.exists { format!("known, idle for {} s", flow.idle_seconds) } else { "new".to_owned() };
            let port =
                flow.client_port.map(|port| format!(", client port {port} towards the endpoint")).unwrap_or_default();
            let source =
                if flow.masquerade { ", masqueraded as an address of this node" } else { ", client address kept" };
            line("flow", &format!("{age}{source}{port}"));
        }
        if let Some(way) = &self.way {
            line("sent", way);
        }
        if let Some(program) = &self.program {
            let loaded = if self.program_is_loaded {
                "the loaded one"
            } else {
                "of this command; another release is loaded, which may decide otherwise"
            };
            line("program", &format!("svc_ingress, tag {program}: {loaded}"));
        }
        if !self.endpoints.is_empty() {
            let mut table = Table::new(["ENDPOINT", "STATE", "LOCAL", "SHARE", "WHY"]);
            for endpoint in &self.endpoints {
                table.row([
                    endpoint.address.to_string(),
                    endpoint.state.to_owned(),
                    if endpoint.local { "yes" } else { "no" }.to_owned(),
                    format!("{}.{}%", endpoint.share_permille / 10, endpoint.share_permille % 10),
                    endpoint.why.to_owned(),
                ]);
            }
            let _ = write!(text, "\n{table}");
        }
        text
    }
}
