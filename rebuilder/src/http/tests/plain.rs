//! Which heads are found and split in one pass. That the full path takes them too, and alike, is a property (in
//! `properties`).

use super::super::plain::plain;

#[test]
fn a_browsers_head_takes_the_fast_path() {
    let head = "GET /shop/35?page=7 HTTP/1.1\r\n\
        Host: shop.example.com\r\n\
        User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
        Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
        Cookie: name=J\u{fc}rgen\r\n\r\n";
    let (parts, len) = plain(format!("{head}body").as_bytes()).unwrap();
    assert_eq!(len, head.len());
    assert_eq!(&head[parts.target], "/shop/35?page=7");
    let hosts = parts.headers.iter().map(|h| &head[h.name.clone()]);
    let names = ["Host", "User-Agent", "Accept", "Cookie"];
    assert!(hosts.eq(names));
}

#[test]
fn what_a_reader_may_take_otherwise_does_not_take_the_fast_path() {
    let head = |line: &str, field: &str| format!("{line}\r\n{field}\r\nHost: example.com\r\n\r\n");
    assert!(plain(head("GET / HTTP/1.0", "a: b c").as_bytes()).is_some());
    for line in [
        "",
        "\r\nGET / HTTP/1.1",
        "get / HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET / x HTTP/1.1",
        "GET  HTTP/1.1",
        "GET /\u{fc} HTTP/1.1",
        "GET /\u{7f} HTTP/1.1",
        "GET /\t HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / HTTP/2.0",
        "GET / HTTP/1.10",
        "GET / http/1.1",
        "GET\t/ HTTP/1.1",
        "GET /",
        "HTTP/1.1 200 OK",
        "GET / HTTP/1.1\r",
    ] {
        assert_eq!(plain(head(line, "a: b c").as_bytes()), None, "{line:?}");
    }
    for field in [
        "a",
        ": b",
        "a : b",
        " a: b",
        "a\r\n b: c",
        "a: b\r\n c",
        "a:\u{0}b",
        "a: b\u{0}",
        "a: b\rc",
        "a: b\nc: d",
        "a: \u{7f}",
        "a: b\r",
        "a\u{fc}: b",
        "a(b: c",
    ] {
        assert_eq!(
            plain(head("GET / HTTP/1.1", field).as_bytes()),
            None,
            "{field:?}"
        );
    }
}
