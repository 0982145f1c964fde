//! Writes the seeds made by hand, `seeds/*/hand-*`. The others were found by the fuzzer.
//!
//!     cargo run -p rebuilder-fuzz --example seeds

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use etherparse::PacketBuilder;
use flate2::Compression;
use flate2::write::GzEncoder;

/// What clients send, and what they should not.
const HTTP: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\nGET /c HTTP/1.0\r\n\r\n",
    b"\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET http://h/p?q HTTP/1.1\r\nHost: h\r\nConnection: TE, close\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50\r\n\r\ncut",
    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n3;a=\"b\"\r\nabc\r\n0\r\nA: b\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabcGET /x HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcdGET /x HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
    b"GET / HTTP/1.1\nHost: h\nA : b\n c\n\nGET /y HTTP/1.1\r\n\r\n",
    b"GET /a b HTTP/1.1\r\nA: \0\r\nB: c\rd\r\nno colon\r\n\r\n",
    b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n\x16\x03\x01\0\x05hello",
    b"CONNECT h:443 HTTP/1.1\r\n\r\nCONNECT h:444 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
    b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\nGET /next HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET / HTTP/1.1\r\nX-Real-IP: 1.2.3.4\r\nx_server_addr: 5\r\nX-Mirror-Flags\r\n\r\n",
    b"GET / HTTP/1.1\r\nX-Forwarded-For: 203.0.113.9, 10.0.0.1\r\nX-Forwarded-For:\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /only-a-line\r\n",
    b"SIP/2.0 200 OK\r\n\r\n",
];

const PROXY: &[&[u8]] = &[
    b"PROXY TCP4 203.0.113.9 10.0.0.2 4000 80\r\n",
    b"PROXY TCP6 2001:db8::9 2001:db8::2 4000 80\r\n",
    b"PROXY UNKNOWN ffff:: ffff:: 1 2\r\n",
    b"PROXY TCP4 203.0.113.9 10.0.0.2 4000 65536\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\x0a\0\0\x02\x0f\xa0\0\x50",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\xcb\0\x71\x09\x0a\0\0\x02\x0f\xa0\0\x50\x04\0\x04abcd",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x02\x0f\xa0\0\x50",
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\x02ab",
];

const CHUNKED: &[&[u8]] = &[
    b"5\r\nhello\r\n0\r\n\r\n",
    b"A\r\n0123456789\r\n00005;a=b\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n",
    b"5 \r\nhello\n0\n\n",
    b"ffffffffffffffff\r\n",
    b"5\r\nhelloX",
    b"3\r\nabc\r\n2\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"0\r\nContent-Length: 9\r\n\r\nGET / HTTP/1.1\r\n\r\n",
];

const ANSWERS: &[&[u8]] = &[
    b"\0HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"\0HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"\0HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n",
    b"\0HTTP/1.0 502 Bad Gateway\r\nServer: awselb/2.0\r\n\r\nuntil the end",
    b"\x01HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\n",
    b"\x02HTTP/1.1 200 OK\r\n\r\ntunnel",
    b"\0HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    b"\0HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nContent-Length: 3\r\n\r\n",
    b"\0HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
];

const SEARCH: &[&[u8]] = &[
    b"the end of a body\nGET /found HTTP/1.1\r\nHost: h\r\n\r\n",
    b"aaaaPOST\nPOST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc\nGET /y HTTP/1.1\r\n\r\n",
    b"GET \nGET / HTTP/1.\nGET / HTTP/1.1\r\n\r\n",
];

const TEXTS: &[&[u8]] = &[
    b"64M",
    b"1000",
    b"0",
    b"16384G",
    b"500ms",
    b"10s",
    b"2m",
    b"soon",
    b"10.0.0.0/8",
    b"::/0",
    b"2001:db8::/32",
    b"::ffff:10.0.0.1/96",
    b"10.0.0.0/33",
    b"http://waf.internal:8080/",
    b"https://[2001:db8::1]",
    b"http://h/path",
    b"http://u@h",
    b"http://:1",
];

const CLIENTS: &[&[u8]] = &[
    b"\x01203.0.113.9, 10.0.0.1\nX-Forwarded-For: 192.0.2.1",
    b"\x01[2001:db8::9]:443 ,, unknown",
    b"\0\x03\x03\x06\0\0\0\x01\x01\x0e\x01\x02\x02\0",
];

fn frame(payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(40_000, 80, 1, 1_000)
        .write(&mut out, payload)
        .map_err(io::Error::other)?;
    Ok(out)
}

fn pcap(big: bool, nanoseconds: bool, link: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    let word = |n: u32| {
        if big {
            n.to_be_bytes()
        } else {
            n.to_le_bytes()
        }
    };
    let half = |n: u16| {
        if big {
            n.to_be_bytes()
        } else {
            n.to_le_bytes()
        }
    };
    let mut out = word(if nanoseconds {
        0xa1b2_3c4d
    } else {
        0xa1b2_c3d4
    })
    .to_vec();
    out.extend([half(2), half(4)].concat());
    out.extend([word(0), word(0), word(262_144), word(link)].concat());
    for frame in frames {
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        out.extend([word(1_700_000_000), word(7), word(len), word(len)].concat());
        out.extend(frame);
    }
    out
}

fn pcapng(frames: &[Vec<u8>]) -> Vec<u8> {
    let block = |kind: u32, body: &[u8]| {
        let padded = body.len().next_multiple_of(4);
        let total = u32::try_from(padded + 12).unwrap_or(u32::MAX).to_le_bytes();
        let mut out = kind.to_le_bytes().to_vec();
        out.extend(total);
        out.extend(body);
        out.resize(8 + padded, 0);
        out.extend(total);
        out
    };
    let section = [
        &0x1a2b_3c4d_u32.to_le_bytes()[..],
        &[1, 0, 0, 0],
        &[0xff; 8],
    ]
    .concat();
    let mut out = block(0x0a0d_0d0a, &section);
    // Ethernet, with a resolution of nanoseconds.
    out.extend(block(
        1,
        &[1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0],
    ));
    for frame in frames {
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX).to_le_bytes();
        let head = [[0; 4], [0, 0, 0x97, 0x17], [1, 0, 0, 0], len, len].concat();
        out.extend(block(6, &[&head[..], frame].concat()));
        out.extend(block(3, &[&len[..], frame].concat()));
    }
    out
}

/// The script of a frame with a long payload: family, addresses, ports, numbers, flags, options, length, payload.
fn long_frame(family: u8) -> Vec<u8> {
    let mut script = vec![0xff, family, 1, 2, 0x40, 0x9c, 80, 0];
    script.extend([1, 0, 0, 0, 2, 0, 0, 0, 0x18, 0, 255]);
    script.extend(1_400u16.to_le_bytes());
    script.extend((0..1_400u16).map(|i| i.to_le_bytes()[0].wrapping_mul(7)));
    script
}

fn write(target: &str, seeds: &[Vec<u8>]) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target);
    fs::create_dir_all(&folder)?;
    for (n, seed) in seeds.iter().enumerate() {
        fs::write(folder.join(format!("hand-{n:02}")), seed)?;
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let owned = |list: &[&[u8]]| -> Vec<Vec<u8>> { list.iter().map(|s| s.to_vec()).collect() };
    for (target, seeds) in [
        ("http", HTTP),
        ("head", HTTP),
        ("proxy", PROXY),
        ("chunked", CHUNKED),
        ("search", SEARCH),
        ("text", TEXTS),
        ("client", CLIENTS),
    ] {
        write(target, &owned(seeds))?;
    }
    let wrap = |vni: u8, frame: &[u8]| [&[8, 0, 0, 0, 0, 0, vni, 0][..], frame].concat();
    let get = frame(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")?;
    let post = frame(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nok")?;
    let raw = |link: u8, frame: &[u8]| [&[link][..], frame].concat();
    // A length in a line that is longer than what is kept of lines.
    let long = [
        &b"\0HTTP/1.1 200 OK\r\nContent-Length: "[..],
        &[b'0'; 600],
        b"5\r\n\r\nhello",
    ]
    .concat();
    let mut answers = owned(ANSWERS);
    answers.push(long);
    write("answer", &answers)?;
    write(
        "frame",
        &[
            raw(0, &get),
            raw(2, &get[14..]),
            raw(3, &get[14..]),
            raw(1, &[&[2, 0, 0, 0][..], &get[14..]].concat()),
            raw(7, &wrap(1, &get)),
            // Frames that are built: IPv4 and IPv6, bare and wrapped.
            vec![0xff; 60],
            [&[0xff, 0][..], &[6; 90]].concat(),
            [&[0xff, 1][..], &[9; 90]].concat(),
            long_frame(0),
            long_frame(1),
        ],
    )?;
    write(
        "vxlan",
        &[wrap(1, &get), wrap(2, &wrap(1, &get)), vec![8, 0, 0, 0]],
    )?;
    let both = [get, post];
    let plain = pcap(false, false, 1, &both);
    let mut zip = GzEncoder::new(Vec::new(), Compression::best());
    zip.write_all(&plain)?;
    write(
        "capture",
        &[
            plain.clone(),
            pcap(true, true, 1, &both),
            pcap(false, true, 101, &[both[0][14..].to_vec()]),
            pcapng(&both),
            zip.finish()?,
            plain[..plain.len() - 3].to_vec(),
        ],
    )?;
    // Any bytes: a block of one packet that says more than it has. Built: a number of packets, then each one's kind,
    // length, time, length on the wire and room; then damage.
    let built = |damage: &[u8]| -> Vec<u8> {
        let packets = (0..5).flat_map(|n| [n * 43, 60 + n, 7, 0, 0, 0, 9, 0, 0, 0, n, n]);
        [&[1, 5][..], &packets.collect::<Vec<_>>(), damage].concat()
    };
    let words = [
        1_u32, 48, 1, 9, 48, 0, 0, 0, 0, 0, 0, 0, 64, 7, 9, 16, 16, 1,
    ];
    let raw_block = words.iter().flat_map(|word| word.to_ne_bytes());
    let raw_block = raw_block.chain([64, 0, 64, 0]).chain([0; 60]);
    write(
        "ring",
        &[
            [0].into_iter().chain(raw_block).collect(),
            built(&[]),
            // Of the first packet (words 12 to 17 of the block) the offset to the next and the bytes kept; of the block the
            // number of packets.
            built(&[12, 0, 0, 3, 16, 0, 12, 0, 0, 3, 0, 1]),
            built(&[15, 0, 0, 2, 0, 3, 0, 0, 0, 200]),
        ],
    )?;
    // Scripts: a mode, and steps that the fuzzer takes on from.
    let script = |mode: u8, step: &[u8]| [&[mode][..], &step.repeat(12)].concat();
    write(
        "fragments",
        &[
            script(1, &[10, 0, 0, 2]),
            script(1, &[12, 7, 0, 1, 3]),
            script(0, &[10, 3, 0, 1, 9, 2]),
        ],
    )?;
    write(
        "stream",
        &[
            script(1, &[10, 4, 1, 50, 0, 40]),
            script(0, &[11, 4, 1, 7, 0, 1, 90, 1]),
            script(0, &[9, 0, 1, 7, 1, 5, 90, 0, 3]),
        ],
    )?;
    write(
        "pipeline",
        &[
            script(1, &[0, 15, 90, 0]),
            script(0, &[1, 15, 40, 3]),
            script(2, &[0, 14, 60, 2, 40, 0, 7]),
            script(4, &[1, 16, 200, 12, 9]),
        ],
    )?;
    write(
        "http_built",
        &[
            script(3, &[1, 2, 0, 3]),
            script(7, &[0, 1, 4, 40, 0]),
            script(0, &[2]),
        ],
    )
}
