//! A ruleset of the shape that kube-proxy's nftables mode writes: verdict maps from addresses to the chains of Services, and
//! from random numbers to the chains of endpoints. Its documentation and its printed rulesets are the model.

use std::fmt::Write as _;

use super::services::{PORT, Shape, TARGET};

const POD_NET: &str = "10.244.0.0/16";
const NODE: &str = "192.168.50.11";
/// Services in one transaction: a single one of them all would not fit a socket's buffer.
const CHUNK: usize = 1_000;

/// Texts for `nft -f`, in order.
pub(super) fn ruleset(shapes: &[Shape]) -> Vec<String> {
    std::iter::once(base()).chain(shapes.chunks(CHUNK).map(services)).collect()
}

/// Hooks, and what every packet of a new connection passes.
fn base() -> String {
    format!(
        "table ip kube-proxy {{
  set cluster-ips {{ type ipv4_addr; }}
  set nodeport-ips {{ type ipv4_addr; elements = {{ {NODE} }}; }}
  map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; }}
  map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
  map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}

  chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
  chain masquerading {{
    meta mark and 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    masquerade fully-random
  }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }}
  chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
  chain nodeport-endpoints-check {{
    ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
  }}
  chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
  chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}

  chain filter-prerouting-pre-dnat {{
    type filter hook prerouting priority dstnat - 10; policy accept;
    ct state new jump firewall-check
  }}
  chain filter-output-pre-dnat {{
    type filter hook output priority -110; policy accept;
    ct state new jump firewall-check
  }}
  chain filter-input {{
    type filter hook input priority -110; policy accept;
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }}
  chain filter-forward {{
    type filter hook forward priority -110; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain filter-output {{
    type filter hook output priority filter - 10; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump services; }}
  chain nat-output {{ type nat hook output priority -100; policy accept; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; policy accept; jump masquerading; }}
}}
"
    )
}

fn services(shapes: &[Shape]) -> String {
    let (mut chains, mut elements, mut addresses) = (String::new(), Vec::new(), Vec::new());
    for Shape { name, address, endpoints, protocols } in shapes {
        addresses.push(address.to_string());
        for protocol in *protocols {
            let protocol = protocol.as_str();
            let mut choices = Vec::new();
            for (number, endpoint) in endpoints.iter().enumerate() {
                let chain = format!("endpoint-{name}-{protocol}-{number}");
                let _ = writeln!(
                    chains,
                    "chain {chain} {{ ip saddr {endpoint} jump mark-for-masquerade; \
                     meta l4proto {protocol} dnat to {endpoint}:{TARGET}; }}"
                );
                choices.push(format!("{number} : goto {chain}"));
            }
            let chain = format!("service-{name}-{protocol}");
            let _ = writeln!(
                chains,
                "chain {chain} {{ ip daddr {address} {protocol} dport {PORT} ip saddr != {POD_NET} \
                 jump mark-for-masquerade; numgen random mod {} vmap {{ {} }}; }}",
                endpoints.len(),
                choices.join(", ")
            );
            elements.push(format!("{address} . {protocol} . {PORT} : goto {chain}"));
        }
    }
    format!(
        "table ip kube-proxy {{\n{chains}}}\n\
         add element ip kube-proxy service-ips {{ {} }}\n\
         add element ip kube-proxy cluster-ips {{ {} }}\n",
        elements.join(", "),
        addresses.join(", ")
    )
}
