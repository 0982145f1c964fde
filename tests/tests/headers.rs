//! Nobody steers the WAF: what nginx reads as `X-Real-IP`, `X-Server-Addr`, `X-Server-Port` and `X-Mirror-Flags` is ours,
//! whatever a client sent, and the client is the client: alone, behind a trusted proxy, behind PROXY v1 and v2.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use lab::client::Connection;
use lab::data_plane::{CLIENT, DataPlane};
use lab::network::Options;
use lab::nginx::Nginx;
use lab::process::wait_for;

/// What is sent on one connection, and what nginx must read.
struct Case {
    /// Over IPv6, whose address is in no `--trust`; the IPv4 one is.
    ipv6: bool,
    bytes: Vec<u8>,
    real_ip: &'static str,
    flags: &'static str,
}

/// PROXY protocol version 2: `command` 0 (LOCAL) or 1 (PROXY), family and transport, addresses and TLVs.
fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend_from_slice(&[0x20 | command, family]);
    header.extend_from_slice(&u16::try_from(block.len()).unwrap().to_be_bytes());
    header.extend_from_slice(block);
    header
}

fn cases() -> Vec<Case> {
    let case = |ipv6, proxy: &[u8], fields: &str, real_ip, flags| Case {
        ipv6,
        // A number of its own comes into the target later.
        bytes: [
            proxy,
            format!("GET /case/{{n}} HTTP/1.1\r\nHost: h\r\n{fields}\r\n").as_bytes(),
        ]
        .concat(),
        real_ip,
        flags,
    };
    let forged = "X-Real-IP: 6.6.6.6\r\nx_real_ip: 6.6.6.6\r\nX-SERVER-ADDR: 6.6.6.6\r\nx_server_addr: 6.6.6.6\r\n\
                  X-Server-Port: 66\r\nX_Server-Port: 66\r\nX-Mirror-Flags: \r\nx_mirror_flags: forged\r\n";
    let twice = forged.repeat(2);
    let ipv4 = [198, 51, 100, 9, 10, 1, 2, 3, 0x9c, 0x40, 0x00, 0x50];
    let tlv = [&ipv4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
    let v1 = b"PROXY TCP4 198.51.100.9 10.1.2.3 40000 80\r\n";
    vec![
        // Alone: nobody is asked but the connection.
        case(true, b"", "", CLIENT[1], ""),
        case(true, b"", "X-Forwarded-For: 6.6.6.6\r\n", CLIENT[1], ""),
        case(true, b"", forged, CLIENT[1], "spoofed"),
        case(true, b"", &twice, CLIENT[1], "spoofed"),
        // Behind the trusted proxy.
        case(
            false,
            b"",
            "X-Forwarded-For: 6.6.6.6, 198.51.100.9\r\n",
            "198.51.100.9",
            "client-xff",
        ),
        case(
            false,
            b"",
            &format!("{forged}X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 2001:db8::9\r\n"),
            "2001:db8::9",
            "spoofed, client-xff",
        ),
        case(false, b"", "", CLIENT[0], ""),
        // Behind a proxy that speaks the PROXY protocol, to a server that does not: what was sent counts.
        case(true, v1, "", "198.51.100.9", "client-proxy"),
        case(true, v1, &twice, "198.51.100.9", "spoofed, client-proxy"),
        case(
            true,
            b"PROXY TCP6 2001:db8::9 2001:db8::1 40000 80\r\n",
            "",
            "2001:db8::9",
            "client-proxy",
        ),
        case(
            true,
            &v2(1, 0x11, &tlv),
            forged,
            "198.51.100.9",
            "spoofed, client-proxy",
        ),
        case(true, &v2(0, 0, b""), "", CLIENT[1], ""),
        case(
            false,
            v1,
            "X-Forwarded-For: 6.6.6.6\r\n",
            "198.51.100.9",
            "client-proxy",
        ),
    ]
}

#[test]
fn what_nginx_reads_about_the_client_is_ours() {
    if lab::skip::no_lab("what_nginx_reads_about_the_client_is_ours") {
        return;
    }
    let plane = DataPlane::new(Options::default()).unwrap();
    let nginx = Nginx::plain_analyser(&plane.analyser, "plain", plane.vpc.directory()).unwrap();
    let web = plane.web().unwrap();

    // Underscores in names are ignored by default; on port 81 nginx takes `x_real_ip` for `X-Real-IP`.
    for (pass, port) in [(0, 80), (1, 81)] {
        let rebuilder = plane.rebuild(port, &["--trust", CLIENT[0]]).unwrap();
        for (number, case) in cases().iter().enumerate() {
            let text: Vec<u8> = {
                let number = format!("{}", 100 * pass + number);
                let at = case.bytes.windows(3).position(|w| w == b"{n}").unwrap();
                let (before, behind) = case.bytes.split_at(at);
                [before, number.as_bytes(), &behind[3..]].concat()
            };
            let server = web.servers[usize::from(case.ipv6)];
            let mut connection = Connection::open(&plane.client, server).unwrap();
            // A server that knows no PROXY protocol answers 400 and closes.
            connection.send(&text).unwrap();
            let _ = connection.finish();
        }
        let log = wait_for("all at the analyser", Duration::from_secs(20), || {
            let log = nginx.access_log()?;
            let of_pass = (pass + 1) * cases().len();
            Ok((log.len() >= of_pass).then_some(log))
        })
        .unwrap();
        for (number, case) in cases().iter().enumerate() {
            let target = format!("/case/{}", 100 * pass + number);
            let lines: Vec<_> = log.iter().filter(|it| it.target() == target).collect();
            assert_eq!(lines.len(), 1, "{target}");
            let line = lines[0];
            let original = format!("{} 80", web.servers[usize::from(case.ipv6)].ip());
            assert_eq!(
                (
                    line.real_ip.as_str(),
                    line.original.as_str(),
                    line.flags.as_str(),
                    line.status
                ),
                (case.real_ip, original.as_str(), case.flags, 200),
                "port {port}: {}",
                case.bytes.escape_ascii()
            );
        }
        rebuilder.drained().unwrap();
    }
}
