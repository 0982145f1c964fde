//! Nobody steers the WAF: what the real nginx reads under our names is ours, whatever was captured, and the client is who
//! the contract says.

use super::nginx::Nginx;
use super::*;

/// One line of the log `ours`: what nginx read.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    status: String,
    target: String,
    real_ip: String,
    server_addr: String,
    server_port: String,
    flags: String,
    connection: String,
    forwarded_for: String,
}

fn read(line: &str) -> Read {
    let mut fields = line.split('|').map(str::to_owned);
    let mut next = || fields.next().unwrap();
    Read {
        status: next(),
        target: next(),
        real_ip: next(),
        server_addr: next(),
        server_port: next(),
        flags: next(),
        connection: next(),
        forwarded_for: next(),
    }
}

/// Heads and bodies that forge our fields, behind `POST /n HTTP/1.1\r\n`.
fn forgeries() -> Vec<String> {
    let mut all = Vec::new();
    for name in [
        "X-Real-IP",
        "x_real_ip",
        "x-REAL_ip",
        "X-Server-Addr",
        "X_Server_Addr",
        "X-Server-Port",
        "x_server-PORT",
        "X-Mirror-Flags",
        "x_mirror_flags",
    ] {
        for line in [
            format!("{name}: 6.6.6.6\r\n"),
            format!("{name}:6.6.6.6\r\n{name}: 6.6.6.6\r\n"),
            format!("{name} : 6.6.6.6\r\n"),
            format!("{name}\t: 6.6.6.6\r\n"),
            format!(" {name}: 6.6.6.6\r\n"),
            format!("{name}:\r\n 6.6.6.6\r\n"),
            format!("A: b\r\n {name}: 6.6.6.6\r\n"),
            format!("A: b\n{name}: 6.6.6.6\n"),
            format!("A: b\r{name}: 6.6.6.6\r\n"),
            format!("{name}\0: 6.6.6.6\r\n"),
            format!("{name}\r\n"),
            format!("{name}: 6.6.6.6\r\n").repeat(40),
        ] {
            all.push(format!("Host: h\r\n{line}Content-Length: 0\r\n\r\n"));
            all.push(format!("{line}Host: h\r\nContent-Length: 0\r\n\r\n"));
        }
        all.push(format!(
            "Host: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n{name}: 6.6.6.6\r\n\r\n"
        ));
        all.push(format!(
            "Host: h\r\nConnection: {name}\r\nContent-Length: 0\r\n\r\n"
        ));
    }
    all
}

#[test]
fn what_nginx_reads_under_our_names_is_ours() {
    for settings in [
        "",
        "underscores_in_headers on;",
        "underscores_in_headers on; ignore_invalid_headers off;",
    ] {
        let Some(nginx) = Nginx::start("", &format!("access_log ours.log ours; {settings}")) else {
            return;
        };
        let mut worker = Worker::new(nginx.address(), ForwardOptions::default());
        let mut sent = 0;
        for (number, forgery) in forgeries().iter().enumerate() {
            let raw = format!("POST /n{number} HTTP/1.1\r\n{forgery}");
            for request in extracted(raw.as_bytes(), End::Fin) {
                worker.submit(&request);
                sent += 1;
            }
        }
        worker.run_idle(20);
        let lines: Vec<Read> = nginx.lines("ours.log").iter().map(|l| read(l)).collect();
        let mut accepted = 0;
        for line in &lines {
            // Of a head that it refuses, nginx knows what stood before the place that it refuses.
            let refused = line.status == "400";
            let ours = |value: &str, ours: &str| value == ours || (refused && value.is_empty());
            assert!(ours(&line.real_ip, "203.0.113.7"), "{settings} {line:?}");
            assert!(ours(&line.server_addr, "10.1.2.3"), "{settings} {line:?}");
            assert!(ours(&line.server_port, "8080"), "{settings} {line:?}");
            assert!(
                line.flags.contains("spoofed") || (refused && line.flags.is_empty()),
                "{settings} {line:?}"
            );
            assert!(
                !line.connection.starts_with(['x', 'X']),
                "{settings} {line:?}"
            );
            accepted += usize::from(line.status == "200");
        }
        assert_eq!(sent, forgeries().len());
        assert!(
            accepted > sent / 3,
            "{settings} {accepted} of {sent} were accepted"
        );
        assert!(lines.len() >= sent, "{} of {sent}", lines.len());
    }
}

#[test]
fn the_client_as_nginx_reads_it_is_who_the_contract_says() {
    let Some(nginx) = Nginx::start("", "access_log ours.log ours; underscores_in_headers on;")
    else {
        return;
    };
    let v2 = |command: u8, family: u8, block: &[u8]| {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        header.extend_from_slice(&[0x20 | command, family]);
        header.extend_from_slice(&u16::try_from(block.len()).unwrap().to_be_bytes());
        header.extend_from_slice(block);
        header
    };
    let ipv4 = [198, 51, 100, 9, 10, 1, 2, 3, 0x9c, 0x40, 0x00, 0x50];
    // A TLV behind the addresses: PP2_TYPE_NOOP with three bytes.
    let with_tlv = [&ipv4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
    let ipv6: Vec<u8> = [
        "2001:db8::9"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets(),
        "2001:db8::1"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets(),
    ]
    .concat()
    .into_iter()
    .chain([0x9c, 0x40, 0x00, 0x50])
    .collect();
    // The TCP peer is 192.0.2.10 throughout.
    let cases: Vec<(&str, Vec<u8>, &str, &str, &str)> = vec![
        ("", vec![], "", "192.0.2.10", ""),
        (
            "",
            vec![],
            "X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n",
            "192.0.2.10",
            "spoofed",
        ),
        (
            "192.0.2.0/24",
            vec![],
            "X-Forwarded-For: 6.6.6.6, 198.51.100.9\r\n",
            "198.51.100.9",
            "client-xff",
        ),
        (
            "192.0.2.0/24",
            vec![],
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 198.51.100.9, 192.0.2.77\r\nx_real_ip: 6.6.6.6\r\n",
            "198.51.100.9",
            "spoofed, client-xff",
        ),
        (
            "192.0.2.0/24",
            vec![],
            "X-Forwarded-For: 6.6.6.6, ?\r\n",
            "192.0.2.10",
            "",
        ),
        (
            "",
            b"PROXY TCP4 198.51.100.9 10.1.2.3 40000 80\r\n".to_vec(),
            "",
            "198.51.100.9",
            "client-proxy",
        ),
        (
            "",
            b"PROXY TCP6 2001:db8::9 2001:db8::1 40000 80\r\n".to_vec(),
            "",
            "2001:db8::9",
            "client-proxy",
        ),
        ("", b"PROXY UNKNOWN\r\n".to_vec(), "", "192.0.2.10", ""),
        (
            "",
            v2(1, 0x11, &ipv4),
            "X-Real-IP: 6.6.6.6\r\n",
            "198.51.100.9",
            "spoofed, client-proxy",
        ),
        (
            "",
            v2(1, 0x11, &with_tlv),
            "",
            "198.51.100.9",
            "client-proxy",
        ),
        ("", v2(1, 0x21, &ipv6), "", "2001:db8::9", "client-proxy"),
        ("", v2(0, 0x00, &[]), "", "192.0.2.10", ""),
        // The PROXY header says more than a list that anybody may have written.
        (
            "192.0.2.0/24",
            b"PROXY TCP4 198.51.100.9 10.1.2.3 40000 80\r\n".to_vec(),
            "X-Forwarded-For: 6.6.6.6\r\n",
            "198.51.100.9",
            "client-proxy",
        ),
    ];
    let mut worker = Worker::new(nginx.address(), ForwardOptions::default());
    for (number, (trust, proxy, fields, ..)) in cases.iter().enumerate() {
        let request = format!("GET /n{number} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let options = HttpOptions {
            trust: trust
                .split(',')
                .filter(|t| !t.is_empty())
                .map(|t| t.parse().unwrap())
                .collect(),
            ..HttpOptions::default()
        };
        let raw = [proxy, request.as_bytes()].concat();
        let requests = extracted_with(options, &raw, End::Fin);
        assert_eq!(requests.len(), 1, "{number}");
        worker.submit(&requests[0]);
    }
    worker.run_idle(10);
    let lines: Vec<Read> = nginx.lines("ours.log").iter().map(|l| read(l)).collect();
    assert_eq!(lines.len(), cases.len());
    for (number, (.., client, flags)) in cases.iter().enumerate() {
        let line = lines
            .iter()
            .find(|line| line.target == format!("/n{number}"))
            .unwrap();
        assert_eq!(
            (line.real_ip.as_str(), line.flags.as_str()),
            (*client, *flags),
            "{line:?}"
        );
        // Whatever was captured, the last address of the list is ours.
        assert!(line.forwarded_for.ends_with(client), "{line:?}");
        assert_eq!(line.status, "200");
    }
}
