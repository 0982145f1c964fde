//! Builds what a client might send: requests in a row, whole or damaged.

use crate::input::Input;

const METHODS: &[&str] = &[
    "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "M-SEARCH", "PRI", "get", "G", "PROPFIND",
];

const TARGETS: &[&str] = &[
    "/",
    "*",
    "/a%00?<x>",
    "http://h/p",
    "h:443",
    "/a b",
    "/\u{e9}",
    "//",
    "/GET / HTTP/1.1",
];

const VERSIONS: &[&str] = &["1.1", "1.1", "1.1", "1.0", "0.9", "2.0", "1.1 ", "9.9"];

const FIELDS: &[&str] = &[
    "Host: h",
    "Host: h\r\nHost: i",
    "host :h",
    "Connection: close",
    "Connection: keep-alive",
    "Connection: TE, close ,upgrade",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "X-Forwarded-For: 203.0.113.9, 10.0.0.1",
    "X-Forwarded-For:",
    "X-Real-IP: 1.2.3.4",
    "x_server_addr: 5.6.7.8",
    "X-Mirror-Flags: clear",
    "X-Server-Port",
    "Content-Length: 5",
    "Content-Length: 5, 5",
    "Content-Length: +5",
    "Content-Length: 99999999999999999999",
    "Content-Length: 1000000",
    "Content_Length: 5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, gzip",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding\t: chunked",
    "Transfer-Encoding: identity",
    "A: b\r\n c",
    " leading: fold",
    "no colon",
    ": no name",
    "A: \u{e9}\0",
    "A: b\rc",
    "User-Agent: ELB-HealthChecker/2.0",
];

const PREAMBLES: &[&[u8]] = &[
    b"",
    b"",
    b"",
    b"PROXY TCP4 203.0.113.9 10.0.0.2 4000 80\r\n",
    b"PROXY TCP6 2001:db8::9 2001:db8::2 4000 80\r\n",
    b"PROXY UNKNOWN\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\x0a\0\0\x02\x0f\xa0\0\x50",
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    b"\x16\x03\x01",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
];

/// Fragments that mean something to a parser.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b":",
    b"\0",
    b"\r\n\r\n",
    b" HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"Content-Length: 7\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"0\r\n\r\n",
    b"5;a=b\r\nhello\r\n",
    b"ffffffffffffffff\r\n",
];

/// Requests in a row, at most about `most` bytes.
pub(crate) fn build(input: &mut Input<'_>, most: usize) -> Vec<u8> {
    let mut out = input.pick(PREAMBLES).to_vec();
    for _ in 0..=input.below(5) {
        request(input, &mut out, most);
    }
    for _ in 0..input.below(4) {
        damage(input, &mut out);
    }
    out.truncate(most);
    out
}

/// One request with these bytes as its body, in order.
fn request(input: &mut Input<'_>, out: &mut Vec<u8>, most: usize) {
    let end = if input.below(8) == 0 { "\n" } else { "\r\n" };
    if input.below(8) == 0 {
        out.extend(b"\r\n");
    }
    let (method, target) = (input.pick(METHODS), input.pick(TARGETS));
    let version = input.pick(VERSIONS);
    out.extend(format!("{method} {target} HTTP/{version}{end}").bytes());
    for _ in 0..input.below(6) {
        out.extend(input.pick(FIELDS).bytes());
        out.extend(end.bytes());
    }
    if input.below(32) == 0 {
        // As long as heads may be, and a little more.
        let len = (usize::from(input.get::<u8>()) * 600).min(most);
        out.extend(b"Long: ");
        out.resize(out.len() + len, b'x');
        out.extend(end.bytes());
    }
    let len = input.len(3000);
    match input.below(4) {
        0 => {
            let body = input.bytes(len);
            out.extend(format!("Content-Length: {}{end}{end}", body.len()).bytes());
            out.extend(body);
        }
        1 => {
            out.extend(format!("Transfer-Encoding: chunked{end}{end}").bytes());
            for _ in 0..input.below(4) {
                let len = 1 + input.len(200);
                let mut data = input.bytes(len).to_vec();
                data.resize(len, b'.');
                let extension = input.pick(&["", ";a", ";a=\"b\"", " ", "; \u{e9}"]);
                out.extend(format!("{len:x}{extension}{end}").bytes());
                out.extend(data);
                out.extend(end.bytes());
            }
            let trailer = input.pick(&["", "A: b\r\n", "A\r\n", "Content-Length: 3\r\n"]);
            out.extend(format!("0{end}{trailer}{end}").bytes());
        }
        _ => out.extend(end.bytes()),
    }
}

fn damage(input: &mut Input<'_>, out: &mut Vec<u8>) {
    let at = usize::from(input.get::<u16>()) % (out.len() + 1);
    let len = usize::from(input.below(40));
    match input.below(5) {
        0 => {
            let byte = input.get();
            if let Some(place) = out.get_mut(at) {
                *place = byte;
            }
        }
        1 => {
            let word = input.pick(WORDS);
            out.splice(at..at, word.iter().copied());
        }
        2 => {
            let end = (at + len).min(out.len());
            out.drain(at..end);
        }
        3 => {
            let copy = out[at..(at + len).min(out.len())].to_vec();
            let to = usize::from(input.get::<u16>()) % (out.len() + 1);
            out.splice(to..to, copy);
        }
        _ => out.truncate(at),
    }
}
