//! Which requests `--ignore-health-checks` leaves out: the probes of a load balancer or of a kubelet, and nothing that a
//! client could pass off as one.
//!
//! A User-Agent is what its sender says. So it counts only from inside the networks that the operator names, only on a
//! request with nowhere to carry anything but its head, and only where two readers cannot take that request for another
//! one. In doubt a request is no health check: one too many costs the analyser a request, one too few hides an attack.

use super::framing::reads_as;
use super::{Cidr, Flags, Framing, OriginSource, Request};

/// How the User-Agent of a health check begins: Elastic Load Balancing, and the kubelet of Kubernetes.
const AGENTS: [&[u8]; 2] = [b"ELB-HealthChecker/", b"kube-probe/"];

/// Fields that a proxy adds for somebody else's request, in lower case. A load balancer sends clients' requests from the
/// very addresses that its health checks come from, and it is these fields that tell them apart: it adds them to what it
/// passes on, and not to what it asks itself.
const RELAYED: [&[u8]; 3] = [b"forwarded", b"via", b"true-client-ip"];
const RELAYED_BEGIN: [&[u8]; 2] = [b"x-forwarded-", b"x-amzn-"];

/// Fields that give a request a body or another protocol for somebody, in lower case.
const CARRIERS: [&[u8]; 4] = [
    b"content-length",
    b"transfer-encoding",
    b"upgrade",
    b"expect",
];

/// Whether `request` is a health check from inside `networks`:
///
/// - its TCP peer (the inner source, whatever a PROXY header or `X-Forwarded-For` names) lies in one of them, and no
///   proxy says that it asks for somebody else;
/// - it is a GET or HEAD whose target is a path, without a query;
/// - it has no body, and no field that announces one, but `Content-Length: 0`;
/// - it has one User-Agent, and that begins with `ELB-HealthChecker/` or `kube-probe/`;
/// - it was captured whole from the beginning of its connection, and its framing is not disputed: of the flags only
///   [`Flags::HOP`] is set.
///
/// Names of fields are compared as the most lenient reader does: any case, `_` for `-`.
#[must_use]
pub fn is_health_check(request: &Request, networks: &[Cidr]) -> bool {
    // Cheapest first: where the option is off nothing else is looked at.
    networks
        .iter()
        .any(|net| net.contains(request.endpoints.src.ip()))
        && (request.flags - Flags::HOP).is_empty()
        && request.origin_from == OriginSource::Peer
        && matches!(request.bytes(&request.method), b"GET" | b"HEAD")
        && is_plain_path(request.bytes(&request.target))
        && matches!(request.framing, Framing::None | Framing::Length(0))
        && request.raw.len() == request.head_end
        && fields_are_of_a_health_check(request)
}

fn is_plain_path(target: &[u8]) -> bool {
    target.first() == Some(&b'/') && !target.contains(&b'?')
}

fn fields_are_of_a_health_check(request: &Request) -> bool {
    let mut agents = 0;
    for header in &request.headers {
        let name = request.bytes(&header.name);
        let value = header.value.as_ref().map(|range| request.bytes(range));
        if reads_as(name, b"user-agent") {
            agents += 1;
            let ours = value.is_some_and(|v| AGENTS.iter().any(|agent| v.starts_with(agent)));
            // `User_Agent` may be the one that somebody reads, or not: neither is a health check.
            if !ours || name.contains(&b'_') {
                return false;
            }
        }
        if RELAYED.iter().any(|field| reads_as(name, field))
            || RELAYED_BEGIN
                .iter()
                .any(|field| name.get(..field.len()).is_some_and(|n| reads_as(n, field)))
        {
            return false;
        }
        let empty = name.eq_ignore_ascii_case(b"content-length") && value == Some(b"0");
        if !empty && CARRIERS.iter().any(|field| reads_as(name, field)) {
            return false;
        }
    }
    agents == 1
}
