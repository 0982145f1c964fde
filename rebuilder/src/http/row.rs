//! A request as one line of `inspect --json`.

use std::fmt::Write as _;
use std::io;

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};
use sha2::{Digest, Sha256};

use super::{Flags, Request};

/// Bytes as text: those from 0x80 up stand as the code point of the same number, so nothing is lost.
struct Latin1<'a>(&'a [u8]);

impl Serialize for Latin1<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) if text.is_ascii() => serializer.serialize_str(text),
            _ => {
                serializer.serialize_str(&self.0.iter().map(|b| char::from(*b)).collect::<String>())
            }
        }
    }
}

struct Headers<'a>(&'a Request<'a>);

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.headers.len()))?;
        for header in &self.0.headers {
            let name = Latin1(self.0.bytes(&header.name));
            let value = header
                .value
                .as_ref()
                .map(|range| Latin1(self.0.bytes(range)));
            list.serialize_element(&(name, value))?;
        }
        list.end()
    }
}

/// The closed list of flags, in the order of the design.
struct Names(Flags);

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.names())
    }
}

/// The fields in the order of the contract.
#[derive(Serialize)]
struct Row<'a> {
    ts: f64,
    vni: Option<u32>,
    client: String,
    server: String,
    origin: String,
    method: Latin1<'a>,
    target: Latin1<'a>,
    version: String,
    headers: Headers<'a>,
    body_len: u64,
    raw_len: usize,
    raw_sha256: String,
    flags: Names,
}

/// Writes the object of one request and a line feed.
///
/// # Errors
/// Those of `out`.
pub fn write_json(req: &Request, out: &mut impl io::Write) -> io::Result<()> {
    let mut raw_sha256 = String::with_capacity(64);
    for byte in Sha256::digest(&req.raw) {
        // Writing to a String cannot fail.
        let _ = write!(raw_sha256, "{byte:02x}");
    }
    let (major, minor) = req.version;
    let row = Row {
        ts: req.ts.as_secs_f64(),
        vni: req.endpoints.vni.map(|vni| vni.0),
        client: req.endpoints.src.to_string(),
        server: req.endpoints.dst.to_string(),
        origin: req.origin.to_string(),
        method: Latin1(req.bytes(&req.method)),
        target: Latin1(req.bytes(&req.target)),
        version: format!("{major}.{minor}"),
        headers: Headers(req),
        body_len: req.body_len,
        raw_len: req.raw.len(),
        raw_sha256,
        flags: Names(req.flags),
    };
    serde_json::to_writer(&mut *out, &row)?;
    out.write_all(b"\n")
}
