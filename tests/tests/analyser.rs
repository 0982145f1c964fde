//! The WAF of the lab flags attacks, leaves ordinary requests alone, and refuses what nginx refuses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use lab::analyser::Analyser;
use lab::client::{Connection, curl};
use lab::data_plane::{ANALYSER, DataPlane};
use lab::network::Options;
use lab::process::wait_for;

#[test]
fn attacks_are_flagged_and_malformed_requests_refused_before_inspection() {
    if lab::skip::no_lab("attacks_are_flagged_and_malformed_requests_refused_before_inspection") {
        return;
    }
    let plane = DataPlane::new(Options::default()).unwrap();
    let analyser = Analyser::start(&plane.analyser, plane.vpc.directory()).unwrap();
    let base = format!("http://{ANALYSER}");
    let host = ["-H", "Host: shop.example"];
    let get = |path: &str| {
        curl(
            &plane.client,
            &[host[0], host[1], "--path-as-is", &format!("{base}{path}")],
        )
        .unwrap()
    };
    assert_eq!(get("/ordinary"), 200);
    assert_eq!(get("/sqli?id=1%27%20OR%20%271%27=%271"), 200);
    assert_eq!(get("/../etc/passwd"), 400);
    let form = ["--data", "comment=<script>alert(1)</script>"];
    let url = format!("{base}/xss");
    assert_eq!(
        curl(&plane.client, &[host[0], host[1], form[0], form[1], &url]).unwrap(),
        200
    );

    let mut connection =
        Connection::open(&plane.client, format!("{ANALYSER}:80").parse().unwrap()).unwrap();
    connection
        .send(b"POST /both HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        .unwrap();
    assert!(connection.finish().unwrap().starts_with(b"HTTP/1.1 400 "));
    let mut connection =
        Connection::open(&plane.client, format!("{ANALYSER}:80").parse().unwrap()).unwrap();
    connection
        .send(b"POST /coding HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: odd\r\n\r\n")
        .unwrap();
    assert!(connection.finish().unwrap().starts_with(b"HTTP/1.1 501 "));

    let audit = wait_for("the audit log", Duration::from_secs(5), || {
        let audit = analyser.audit_log()?;
        Ok((audit.len() >= 3).then_some(audit))
    })
    .unwrap();
    let flagged: Vec<(&str, &str, bool)> = audit
        .iter()
        .map(|it| (it.method.as_str(), it.target.as_str(), it.is_flagged()))
        .collect();
    assert_eq!(
        flagged,
        [
            ("GET", "/ordinary", false),
            ("GET", "/sqli?id=1%27%20OR%20%271%27=%271", true),
            ("POST", "/xss", true)
        ]
    );
    assert_eq!(audit[0].rules, Vec::<String>::new());
    // nginx writes a line when it has closed the connection, which may be after the answer.
    for refused in [("/../etc/passwd", 400), ("/both", 400), ("/coding", 501)] {
        wait_for(
            &format!("{refused:?} in the access log"),
            Duration::from_secs(10),
            || {
                let log = analyser.access_log()?;
                Ok(log
                    .iter()
                    .any(|entry| (entry.target(), entry.status) == refused)
                    .then_some(()))
            },
        )
        .unwrap();
    }
}
