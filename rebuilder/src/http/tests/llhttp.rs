//! llhttp's own test texts (MIT), read by llhttp in strict mode: what it accepts we give alike, what it refuses is never
//! given as undisputed. They lie beside the checkout, so the test is skipped, and says so, where they are absent.

use std::path::PathBuf;

use serde_json::Value;

use super::*;

/// The cases that differ, by title, and why.
const EXCEPTIONS: &[(&str, &str)] = &[
    (
        "`keep-alive` / CRLF between requests, implicit `keep-alive`",
        "the text runs on into the next cases of llhttp's file, whose log it is given",
    ),
    (
        "`close` / CRLF between requests, explicit `close`",
        "the same",
    ),
    (
        "HTTP protocol and ANNOUNCE method",
        "any token is a method; llhttp keeps this one for RTSP",
    ),
    (
        "Invalid method",
        "any token is a method; llhttp has a list without MKCOLA",
    ),
    ("SOURCE request with ICE", "a request line ends in HTTP/d.d"),
    (
        "OPTIONS request with RTSP",
        "a request line ends in HTTP/d.d",
    ),
    (
        "ANNOUNCE request with RTSP",
        "a request line ends in HTTP/d.d",
    ),
    ("No HTTP version", "a request line ends in HTTP/d.d"),
];

/// One message of llhttp's event log; what the spans cover, taken from the input.
#[derive(Debug, Default)]
struct Message {
    method: Vec<u8>,
    url: Vec<u8>,
    headers: Vec<(Vec<u8>, Vec<u8>)>,
    body: u64,
    head: bool,
    complete: bool,
}

#[derive(Debug, Default)]
struct Log {
    messages: Vec<Message>,
    /// The message that was refused.
    refused: Option<usize>,
}

fn read_log(input: &[u8], log: &[Value]) -> Log {
    let mut read = Log::default();
    for event in log.iter().filter_map(Value::as_str) {
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
                "body" => message.body += len as u64,
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
            && request.body_len == message.body
            && headers == theirs;
        if !same {
            return Some(format!(
                "request {n} differs: {message:?}, ours {}",
                line(request)
            ));
        }
    }
    let refused = ours.requests.get(log.refused?)?;
    let doubtful = Flags::DISPUTED | Flags::TRUNCATED | Flags::ABORTED;
    (!refused.flags.intersects(doubtful))
        .then(|| format!("refused, but given as clear: {}", line(refused)))
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
    let mut accepted = 0;
    let mut wrong = Vec::new();
    for case in &cases {
        // Lenient modes and a body that the caller skips are not the strict reader.
        if case["meta"]["type"] != "request" || case["meta"].get("skipBody").is_some() {
            continue;
        }
        seen += 1;
        let title = case["title"].as_str().unwrap();
        // Despite its name the field holds the text; llhttp's offsets count its UTF-8 bytes.
        let input = case["input_latin1"].as_str().unwrap().as_bytes();
        let log = read_log(input, case["log"].as_array().unwrap());
        accepted += usize::from(log.refused.is_none());
        let known = EXCEPTIONS.iter().find(|(name, _)| *name == title);
        match (difference(input, &log), known) {
            (Some(text), None) => {
                wrong.push(format!("{title}: {text}\n    {}", input.escape_ascii()));
            }
            (None, Some(_)) => wrong.push(format!("{title}: no longer an exception")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((seen, accepted), (130, 77));
}
