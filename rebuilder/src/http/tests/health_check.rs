//! Which requests are health checks, and what does not pass for one.

use super::super::is_health_check;
use super::*;

/// What an Application Load Balancer, a kubelet and a Classic Load Balancer send.
const PROBES: [&str; 3] = [
    "GET / HTTP/1.1\r\nHost: 10.0.0.2:80\r\nConnection: close\r\nUser-Agent: ELB-HealthChecker/2.0\r\nAccept-Encoding: gzip, compressed\r\n\r\n",
    "GET /healthz HTTP/1.1\r\nHost: 10.0.0.2:8080\r\nUser-Agent: kube-probe/1.31\r\nAccept: */*\r\nConnection: close\r\n\r\n",
    "GET /index.html HTTP/1.1\r\nHost: 10.0.0.2\r\nUser-Agent: ELB-HealthChecker/1.0\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n",
];

fn networks(list: &[&str]) -> Vec<super::super::Cidr> {
    list.iter().map(|n| n.parse().unwrap()).collect()
}

/// Whether the first request of these events, sent by 192.0.2.7, is left out where 192.0.2.0/24 checks.
fn left_out(events: &[Event]) -> bool {
    let outcome = run(events);
    is_health_check(&outcome.requests[0], &networks(&["192.0.2.0/24"]))
}

/// A GET with these fields.
fn with(fields: &str) -> bool {
    left_out(&[seg(format!(
        "GET /health HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"
    ))])
}

#[test]
fn a_probe_from_inside_the_networks_is_a_health_check() {
    for probe in PROBES {
        assert!(left_out(&[seg(probe)]), "{probe:?}");
    }
    for head in [
        "HEAD /health HTTP/1.1\r\nUser-Agent: kube-probe/1.31\r\n\r\n",
        "GET /health HTTP/1.0\r\nuser-agent:ELB-HealthChecker/2.0\r\n\r\n",
        "GET /health HTTP/1.1\r\nUser-Agent: kube-probe/1.31\r\nContent-Length: 0\r\n\r\n",
        "\r\nGET /health HTTP/1.1\r\nUser-Agent: kube-probe/\r\n\r\n",
    ] {
        assert!(left_out(&[seg(head)]), "{head:?}");
    }
    // On a connection that persists, and with the header that a network load balancer puts before its own checks: LOCAL.
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    assert!(left_out(&[
        seg([&local[..], PROBES[2].as_bytes()].concat())
    ]));
}

#[test]
fn a_user_agent_alone_is_no_health_check() {
    let request = one(PROBES[0]).requests.remove(0);
    for list in [
        &[][..],
        &["198.51.100.0/24", "192.0.3.0/24", "2001:db8::/32"],
        &["192.0.2.8/29"],
    ] {
        assert!(!is_health_check(&request, &networks(list)), "{list:?}");
    }
    assert!(is_health_check(
        &request,
        &networks(&["10.0.0.0/8", "192.0.2.7"])
    ));
}

#[test]
fn what_a_header_says_of_the_client_puts_nobody_inside() {
    let options = HttpOptions {
        trust: networks(&["192.0.2.0/24"]),
        ..HttpOptions::default()
    };
    let proxy = format!("PROXY TCP4 10.9.9.9 10.0.0.2 4660 80\r\n{}", PROBES[0]);
    let xff = PROBES[0].replace("Host:", "X-Forwarded-For: 10.9.9.9\r\nHost:");
    for text in [proxy, xff] {
        let outcome = run_with(options.clone(), false, &[seg(text)], End::Fin);
        assert_eq!(outcome.only().origin.to_string(), "10.9.9.9");
        assert!(!is_health_check(outcome.only(), &networks(&["10.0.0.0/8"])));
        // ... and a client whose request the load balancer passes on is not the load balancer, though it sends it.
        assert!(!is_health_check(
            outcome.only(),
            &networks(&["192.0.2.0/24"])
        ));
    }
}

#[test]
fn a_request_that_a_proxy_passes_on_is_no_health_check() {
    for field in [
        "X-Forwarded-For: 203.0.113.9",
        "x_forwarded_for: 203.0.113.9",
        "X-Forwarded-Proto: https",
        "X-Forwarded-",
        "Forwarded: for=203.0.113.9",
        "Via: 1.1 edge",
        "X-Amzn-Trace-Id: Root=1-67891233-abcdef012345678912345678",
        "True-Client-IP: 203.0.113.9",
    ] {
        assert!(
            !with(&format!("User-Agent: ELB-HealthChecker/2.0\r\n{field}")),
            "{field:?}"
        );
    }
    assert!(with(
        "User-Agent: ELB-HealthChecker/2.0\r\nX-Forwarder: a\r\nVia-Port: 80"
    ));
}

#[test]
fn one_user_agent_of_a_prober_and_no_other_is_a_health_check() {
    for fields in [
        "User-Agent: Mozilla/5.0",
        "User-Agent: elb-healthchecker/2.0",
        "User-Agent: ELB-HealthChecker",
        "User-Agent: x ELB-HealthChecker/2.0",
        "User-Agent: \"kube-probe/1.31\"",
        "User-Agent:",
        "User-Agent",
        "X-User-Agent: kube-probe/1.31",
        "User_Agent: kube-probe/1.31",
        "User-Agent: kube-probe/1.31\r\nUser-Agent: sqlmap",
        "User-Agent: sqlmap\r\nUser-Agent: kube-probe/1.31",
        "User-Agent: kube-probe/1.31\r\nUser-Agent: kube-probe/1.31",
        "User-Agent: kube-probe/1.31\r\nUser_Agent: sqlmap",
        "User-Agent: kube-probe/1.31\r\nuser_agent: kube-probe/1.31",
        // A fold, and a blank before the colon: not every reader sees the same field.
        "User-Agent:\r\n kube-probe/1.31",
        "User-Agent : kube-probe/1.31",
        "Cookie: a\r\n User-Agent: kube-probe/1.31",
    ] {
        assert!(!with(fields), "{fields:?}");
    }
}

#[test]
fn another_method_a_query_or_another_form_of_target_is_no_health_check() {
    let agent = "Host: a\r\nUser-Agent: kube-probe/1.31\r\n\r\n";
    for line in [
        "POST /health HTTP/1.1",
        "OPTIONS /health HTTP/1.1",
        "get /health HTTP/1.1",
        "GETS /health HTTP/1.1",
        "GET /health?a=b HTTP/1.1",
        "GET /health? HTTP/1.1",
        "GET http://a/health HTTP/1.1",
        "GET http://a?q=1 HTTP/1.1",
        "GET * HTTP/1.1",
        "GET /health' or 1=1 HTTP/1.1",
        "GET /health HTTP/1.2",
        "GET /health HTTP/1.1 ",
    ] {
        assert!(!left_out(&[seg(format!("{line}\r\n{agent}"))]), "{line:?}");
    }
}

#[test]
fn a_body_or_what_announces_one_is_no_health_check() {
    for (fields, body) in [
        ("Content-Length: 3", "abc"),
        ("Content-Length: 3", ""),
        ("Content-Length: 0\r\nContent-Length: 3", ""),
        ("Content-Length: x", ""),
        ("Content_Length: 3", "abc"),
        ("Transfer-Encoding: chunked", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n"),
        ("Transfer_Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n"),
        ("Transfer-Encoding: xchunked", ""),
        ("Connection: upgrade\r\nUpgrade: websocket", ""),
        ("Expect: 100-continue", ""),
    ] {
        let text = format!(
            "GET /health HTTP/1.1\r\nUser-Agent: kube-probe/1.31\r\n{fields}\r\n\r\n{body}"
        );
        assert!(!left_out(&[seg(text)]), "{fields:?}");
    }
}

#[test]
fn what_was_not_captured_whole_and_undisputed_is_no_health_check() {
    let inside = |request: &Request| is_health_check(request, &networks(&["192.0.2.0/24"]));
    // Copies disagreed.
    assert!(!inside(run(&[Conflict(PROBES[0].into())]).only()));
    // The beginning of the connection was not seen, or the framing was lost before it.
    let events = [seg(PROBES[0])];
    assert!(!inside(
        run_with(HttpOptions::default(), true, &events, End::Fin).only()
    ));
    let resynced = run(&[Gap(5), seg(PROBES[0])]);
    assert_eq!(resynced.only().flags, Flags::RESYNCED | Flags::HOP);
    assert!(!inside(resynced.only()));
    // Behind a request that two readers frame differently; with a field that would pass for one of ours.
    let smuggled = one(format!(
        "POST / HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{}",
        PROBES[2]
    ));
    assert!(!inside(&smuggled.requests[1]));
    assert!(!with("User-Agent: kube-probe/1.31\r\nX-Real-IP: 1.1.1.1"));
}

/// The rule of the design lets these go; the README says so under "Which health checks are left out".
#[test]
fn an_attack_in_the_head_of_a_probe_from_inside_is_hidden_and_that_is_written_down() {
    assert!(with("User-Agent: kube-probe/1.31\r\nCookie: id=' or 1=1--"));
    let path = "GET /../../etc/passwd HTTP/1.1\r\nUser-Agent: kube-probe/1.31\r\n\r\n";
    assert!(left_out(&[seg(path)]));
    let readme = include_str!("../../../README.md");
    assert!(readme.contains("its path, `Host`, `Cookie` and other headers are then"));
}
