//! llhttp's own test texts (MIT), read by llhttp in strict mode: what it accepts we give alike, what it refuses is never
//! given as undisputed. They lie beside the checkout, so the test is skipped, and says so, where they are absent.

use std::path::PathBuf;

use serde_json::Value;

use super::super::Framing;
use super::*;

/// The cases that differ, by title: the contract of `inspect` ("a request line is TOKEN SP TARGET SP `HTTP/`d.d") gives
/// them no row, while llhttp reads RTSP and ICE and takes a line without version for HTTP/0.9.
const NO_ROW: [&str; 4] = [
    "SOURCE request with ICE",
    "OPTIONS request with RTSP",
    "ANNOUNCE request with RTSP",
    "No HTTP version",
];

/// One message of llhttp's event log; what the spans cover, taken from the input.
#[derive(Debug, Default)]
struct Message {
    method: Vec<u8>,
    url: Vec<u8>,
    headers: Vec<(Vec<u8>, Vec<u8>)>,
    body: Vec<u8>,
    head: bool,
    complete: bool,
}

#[derive(Debug, Default)]
struct Log {
    messages: Vec<Message>,
    /// The message that was refused.
    refused: Option<usize>,
}

fn read_log(input: &[u8], log: &[String]) -> Log {
    let mut read = Log::default();
    for event in log {
        if event.starts_with("off=NULL finish=") {
            continue;
        }
        let mut words = event.split(' ');
        let off: usize = words
            .next()
            .unwrap()
            .strip_prefix("off=")
            .unwrap()
            .parse()
            .unwrap();
        let rest = event.split_once(' ').unwrap().1;
        if rest == "message begin" {
            read.messages.push(Message::default());
            continue;
        }
        let behind = read.messages.last().is_some_and(|m| m.complete);
        if let Some(code) = rest.strip_prefix("error code=") {
            // 21: paused by the test, 22 and 23: left for CONNECT, Upgrade or the preface of HTTP/2.
            let code = code.split(' ').next().unwrap();
            if !["21", "22", "23"].contains(&code) {
                read.refused = Some(read.messages.len() - usize::from(!behind));
            }
            continue;
        }
        let Some(message) = read.messages.last_mut() else {
            continue;
        };
        if let Some(span) = rest.strip_prefix("len=") {
            let len: usize = span.split(' ').next().unwrap().parse().unwrap();
            let bytes = &input[off..off + len];
            let kind = span
                .split("span[")
                .nth(1)
                .unwrap()
                .split(']')
                .next()
                .unwrap();
            match kind {
                "method" => message.method.extend(bytes),
                "url" => message.url.extend(bytes),
                "body" => message.body.extend(bytes),
                "header_field" if !message.head => {
                    message.headers.push((bytes.to_vec(), Vec::new()));
                }
                "header_value" if !message.head => {
                    message.headers.last_mut().unwrap().1.extend(bytes);
                }
                _ => {}
            }
        } else if rest.starts_with("headers complete") {
            message.head = true;
        } else if rest == "message complete" {
            message.complete = true;
        }
    }
    read
}

/// The body without chunk framing, taken out of `raw` by a reader of its own.
fn body(request: &Request) -> Vec<u8> {
    let mut rest = &request.raw[request.head_end..];
    if request.framing != Framing::Chunked {
        return rest.to_vec();
    }
    let mut body = Vec::new();
    while let Some(at) = rest.iter().position(|b| *b == b'\n') {
        let line = std::str::from_utf8(&rest[..at]).unwrap();
        let digits = line
            .trim_end_matches('\r')
            .split([';', ' '])
            .next()
            .unwrap();
        let size = usize::from_str_radix(digits, 16).unwrap();
        let data = &rest[at + 1..];
        body.extend(&data[..size.min(data.len())]);
        if size == 0 || data.len() < size + 2 {
            break;
        }
        rest = &data[size + 2..];
    }
    body
}

/// Two cases were cut wrongly out of llhttp's file: a text that ends in an empty line hid its end, so the cases behind it,
/// each with its log, stand in the same text. They are told apart again: texts with their logs.
fn told_apart(input: &str, log: Vec<String>) -> Vec<(String, Vec<String>)> {
    let mut cases = Vec::new();
    let mut rest = input;
    while let Some((text, behind)) = rest.split_once("\r\n```\r\n") {
        let (_, behind) = behind.split_once("```log\r\n").unwrap();
        let (own, behind) = behind.split_once("\r\n```\r\n").unwrap();
        // Lenient modes are not the strict reader: the last heading before a text says its mode.
        cases.push((
            format!("{text}\r\n"),
            own.split("\r\n").map(str::to_owned).collect(),
        ));
        let (heading, text) = behind.split_once("```http\r\n").unwrap();
        if heading.contains("lenient") {
            let (_, behind) = text.split_once("\r\n```\r\n").unwrap();
            let (_, behind) = behind.split_once("```http\r\n").unwrap();
            rest = behind;
        } else {
            rest = text;
        }
    }
    cases.push((rest.to_owned(), log));
    cases
}

/// What is wrong with a case, if anything.
fn difference(input: &[u8], log: &Log) -> Option<String> {
    let ours = one(input);
    for (n, message) in log.messages.iter().enumerate().filter(|(_, m)| m.complete) {
        let Some(request) = ours.requests.get(n) else {
            return Some(format!("request {n} is missing"));
        };
        let headers: Vec<(Vec<u8>, Vec<u8>)> = request
            .headers
            .iter()
            .map(|h| {
                let value = h.value.as_ref().map(|v| request.bytes(v));
                (
                    request.bytes(&h.name).to_vec(),
                    value.unwrap_or_default().to_vec(),
                )
            })
            .collect();
        // llhttp gives values with the blanks behind them.
        let theirs: Vec<(Vec<u8>, Vec<u8>)> = message
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), value.trim_ascii_end().to_vec()))
            .collect();
        let same = request.bytes(&request.method) == message.method
            && request.bytes(&request.target) == message.url
            && body(request) == message.body
            && request.body_len == message.body.len() as u64
            && headers == theirs;
        if !same {
            return Some(format!(
                "request {n} differs: {message:?}, ours {}",
                line(request)
            ));
        }
    }
    let refused = ours.requests.get(log.refused?)?;
    (!refused.flags.contains(Flags::DISPUTED)).then(|| {
        format!(
            "refused, but given as clear: {} {:?}",
            line(refused),
            refused.flags
        )
    })
}

#[test]
fn llhttp_and_we_agree_on_its_own_request_texts() {
    let shared = std::env::var_os("MIRRORFLEET_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    let path = shared.join("vectors/llhttp.json");
    let Ok(text) = std::fs::read(&path) else {
        eprintln!(
            "SKIPPED: {} is absent; set MIRRORFLEET_SHARED",
            path.display()
        );
        return;
    };
    let cases: Vec<Value> = serde_json::from_slice(&text).unwrap();
    let mut seen = 0;
    let mut skipped = 0;
    let mut accepted = 0;
    let mut wrong = Vec::new();
    for case in &cases {
        // The other types are answers, and modes that are more lenient than the strict reader.
        if !["request", "request-finish"]
            .map(Value::from)
            .contains(&case["meta"]["type"])
        {
            continue;
        }
        // There the caller, not llhttp, decides that a request with a length has no body.
        if case["meta"].get("skipBody").is_some() {
            skipped += 1;
            continue;
        }
        let title = case["title"].as_str().unwrap();
        let log = case["log"].as_array().unwrap();
        let log = log.iter().map(|e| e.as_str().unwrap().to_owned());
        // Despite its name the field holds the text; llhttp's offsets count its UTF-8 bytes.
        let text = case["input_latin1"].as_str().unwrap();
        for (text, log) in told_apart(text, log.collect()) {
            let input = text.as_bytes();
            let log = read_log(input, &log);
            seen += 1;
            accepted += usize::from(log.refused.is_none());
            match (difference(input, &log), NO_ROW.contains(&title)) {
                (Some(difference), false) => {
                    wrong.push(format!(
                        "{title}: {difference}\n    {}",
                        input.escape_ascii()
                    ));
                }
                (None, true) => wrong.push(format!("{title}: no longer an exception")),
                (Some(_), true) => assert_eq!(one(input).lines(), [""; 0], "{title}"),
                (None, false) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((seen, accepted, skipped), (136, 81, 1));
}
