//! `inspect --json`, held against objects written by hand from the contract and a digest from `sha256sum`.

use super::*;
use crate::decode::Vni;
use crate::http::write_json;

fn row(request: &Request) -> String {
    let mut out = Vec::new();
    write_json(request, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_row_has_the_fields_of_the_contract_in_their_order() {
    let outcome = one(
        "\r\nPOST /a HTTP/1.1\r\nHost: x\r\nx-real-ip: 1\r\nnone\r\nContent-Length: 3\r\n\r\nabc",
    );
    let mut request = outcome.only().clone();
    request.ts = Timestamp(1_700_000_000_123_456_000);
    request.endpoints.vni = Some(Vni(42));
    let expected = concat!(
        r#"{"ts":1700000000.123456,"vni":42,"client":"192.0.2.7:40000","server":"10.0.0.2:80","origin":"192.0.2.7","#,
        r#""method":"POST","target":"/a","version":"1.1","#,
        r#""headers":[["Host","x"],["x-real-ip","1"],["none",null],["Content-Length","3"]],"#,
        r#""body_len":3,"raw_len":73,"#,
        r#""raw_sha256":"RAW","flags":["disputed","spoofed"]}"#,
        "\n"
    );
    // printf '\r\nPOST /a HTTP/1.1\r\n...abc' | sha256sum
    let expected = expected.replace("RAW", DIGEST);
    assert_eq!(row(&request), expected);
}

const DIGEST: &str = "72bb3d916722164f78d463e29cabe405db5623243116a27bc1560209ae5af322";

#[test]
fn bytes_above_ascii_stand_as_the_code_point_of_the_same_number() {
    let outcome = one(b"GET /\xc3\xa9\xff HTTP/1.1\r\nA: \x00\x80\"\r\n\r\n");
    let value: serde_json::Value = serde_json::from_str(&row(outcome.only())).unwrap();
    assert_eq!(value["target"], "/\u{c3}\u{a9}\u{ff}");
    assert_eq!(value["headers"][0][1], "\0\u{80}\"");
}

#[test]
fn ipv6_and_bare_packets_are_written_as_the_contract_says() {
    let outcome = one("GET / HTTP/1.0\r\n\r\n");
    let mut request = outcome.only().clone();
    request.endpoints.src = "[2001:db8::1]:5000".parse().unwrap();
    request.origin = "2001:db8::1".parse().unwrap();
    request.flags = Flags::all();
    let value: serde_json::Value = serde_json::from_str(&row(&request)).unwrap();
    assert_eq!(value["client"], "[2001:db8::1]:5000");
    assert_eq!(value["origin"], "2001:db8::1");
    assert_eq!(value["vni"], serde_json::Value::Null);
    assert_eq!(value["version"], "1.0");
    let flags = "midstream truncated aborted resynced ambiguous disputed spoofed hop";
    let expected: Vec<&str> = flags.split(' ').collect();
    assert_eq!(value["flags"], serde_json::json!(expected));
}
