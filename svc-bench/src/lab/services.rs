//! The Services of a lab: which addresses they have, and which of them is measured. The others' endpoints do not exist.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use svc_lab::{Protocol, Service};

/// Endpoints of each Service.
pub(super) const ENDPOINTS: u32 = 10;
/// Port of Services.
pub(super) const PORT: u16 = 80;
/// Port of endpoints.
pub(super) const TARGET: u16 = 9000;

/// One of the Services.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    pub(super) endpoints: Vec<Ipv4Addr>,
    pub(super) protocols: &'static [Protocol],
}

/// So many Services; the one in the middle is served by `backends`, over TCP and UDP, the others over TCP.
pub(super) fn shapes(count: u32, backends: &[Ipv4Addr]) -> Vec<Shape> {
    let nth = |base: Ipv4Addr, number: u32| Ipv4Addr::from(u32::from(base) + number);
    (0..count)
        .map(|number| {
            let name = format!("service-{number}");
            let address = nth(Ipv4Addr::new(10, 96, 0, 1), number);
            if number == count / 2 {
                let protocols = &[Protocol::Tcp, Protocol::Udp];
                return Shape { name, address, endpoints: backends.to_vec(), protocols };
            }
            let first = nth(Ipv4Addr::new(10, 248, 0, 0), number * ENDPOINTS);
            let endpoints = (0..ENDPOINTS).map(|endpoint| nth(first, endpoint)).collect();
            Shape { name, address, endpoints, protocols: &[Protocol::Tcp] }
        })
        .collect()
}

/// The one that is measured.
pub(super) fn measured(shapes: &[Shape]) -> Option<&Shape> {
    shapes.get(shapes.len() / 2)
}

impl Shape {
    /// The Service and its slice, as the API server would have them.
    pub(super) fn objects(&self) -> [Value; 2] {
        let service = self
            .protocols
            .iter()
            .fold(Service::new("bench", &self.name, &[self.address.into()]), |service, &protocol| {
                service.one_port(protocol, PORT, TARGET, None)
            });
        let mut slices = service.slices_of(&[]);
        let mut slice = slices.pop().unwrap_or_default();
        let endpoints = self
            .endpoints
            .iter()
            .map(|address| json!({"addresses": [address], "nodeName": "node1", "conditions": {"ready": true}}));
        slice["endpoints"] = endpoints.collect();
        [service.object, slice]
    }
}
