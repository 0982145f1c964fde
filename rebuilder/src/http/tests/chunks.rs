//! Chunked bodies, byte by byte: what is to the letter, what two readers end differently, and what breaks the coding
//! (RFC 9112 §7.1, and the obfuscations that smuggling research uses, `TERM.EXT` and `EXT.TERM` of 2025 among them).

use super::*;

const NEXT: &str = "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";
const CHUNKED: &str = "POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";

/// The body is followed to its end and `abc` is its data; whether a strict reader refuses it.
#[track_caller]
fn chunks(body: &str, disputed: bool) {
    let outcome = one(format!("{CHUNKED}{body}{NEXT}"));
    assert_eq!(outcome.lines(), ["POST /p", "GET /next"], "{body:?}");
    assert_eq!(
        outcome.requests[0].raw,
        format!("{CHUNKED}{body}").as_bytes(),
        "{body:?}"
    );
    assert_eq!(outcome.requests[0].body_len, 3, "{body:?}");
    let flags = if disputed {
        Flags::DISPUTED
    } else {
        Flags::empty()
    };
    assert_eq!(outcome.flags(), [flags; 2], "{body:?}");
}

#[test]
fn chunk_sizes_and_extensions_to_the_letter_are_clear() {
    for body in [
        "3\r\nabc\r\n0\r\n\r\n",
        "003\r\nabc\r\n000\r\n\r\n",
        "0000000000000003\r\nabc\r\n0\r\n\r\n",
        "3;a\r\nabc\r\n0\r\n\r\n",
        "3;a=b;c;d=e\r\nabc\r\n0;x=y\r\n\r\n",
        "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nDigest: x\r\nExpires: \r\n\r\n",
    ] {
        chunks(body, false);
    }
}

#[test]
fn chunk_lines_and_extensions_that_two_readers_end_differently_are_disputed() {
    for body in [
        // A bare LF ends the line for some (TERM.EXT), and is a byte of the extension for others (EXT.TERM).
        "3\nabc\r\n0\r\n\r\n",
        "3;\nabc\r\n0\r\n\r\n",
        "3;a\nabc\r\n0\r\n\r\n",
        "3;a=\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0;\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "3\rx\r\nabc\r\n0\r\n\r\n",
        "3;\r\r\nabc\r\n0\r\n\r\n",
        // White space and empty or quoted parts.
        "3 \r\nabc\r\n0\r\n\r\n",
        "3\t\r\nabc\r\n0\r\n\r\n",
        "3 ;a\r\nabc\r\n0\r\n\r\n",
        "3; a\r\nabc\r\n0\r\n\r\n",
        "3;\r\nabc\r\n0\r\n\r\n",
        "3;;a\r\nabc\r\n0\r\n\r\n",
        "3;=b\r\nabc\r\n0\r\n\r\n",
        "3;a=\r\nabc\r\n0\r\n\r\n",
        "3;a=\"\r\nabc\r\n0\r\n\r\n",
        "3;a\0\r\nabc\r\n0\r\n\r\n",
        "3;\u{e4}\r\nabc\r\n0\r\n\r\n",
        // More digits than 64 bits have.
        "00000000000000003\r\nabc\r\n0\r\n\r\n",
        // The line end behind the data, and behind the zero chunk.
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\r\n0\n\r\n",
        "3\r\nabc\r\n0\r\n\n",
        "3\r\nabc\r\n0\r\n\r\r\n\r\n",
    ] {
        chunks(body, true);
    }
}

#[test]
fn trailers_that_frame_or_are_no_fields_are_disputed() {
    for trailer in [
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\n",
        "A: b\r\ncontent-length: 5\r\n",
        "Content_Length: 5\r\n",
        "Content-Length : 5\r\n",
        "no colon\r\n",
        "A: b\n",
        "A : b\r\n",
        " A: b\r\n",
        "A: b\r\n c\r\n",
        "A: b\0\r\n",
        ": b\r\n",
    ] {
        chunks(&format!("3\r\nabc\r\n0\r\n{trailer}\r\n"), true);
    }
    // Data that look like such a trailer are data, whole or cut.
    let data = "Content-Length: 5";
    let body = format!("{CHUNKED}12\r\n\n{data}\r\n0\r\n\r\n");
    assert_eq!(one(&body).flags(), [Flags::empty()]);
    assert_eq!(one(&body[..body.len() - 9]).flags(), [Flags::ABORTED]);
}

#[test]
fn a_bad_chunk_size_ends_the_request_with_its_last_whole_chunk_and_loses_the_framing() {
    let sound = format!("{CHUNKED}3\r\nabc\r\n");
    for bad in [
        "\r\n",
        "\n",
        " 3\r\n",
        "\t3\r\n",
        "+3\r\n",
        "-3\r\n",
        "0x3\r\n",
        "0X3\r\n",
        "3h\r\n",
        "3,\r\n",
        "x\r\n",
        ";a\r\n",
        "3_0\r\n",
        "3.\r\n",
        "\u{b}3\r\n",
        "3\0\r\n",
        "8000000000000000\r\n",
        "ffffffffffffffff\r\n",
        "10000000000000000\r\n",
        "100000000000000003\r\n",
    ] {
        let outcome = run(&[seg(format!("{sound}{bad}abc\r\n0\r\n\r\n")), seg(NEXT)]);
        assert_eq!(outcome.lines(), ["POST /p", "GET /next"], "{bad:?}");
        let request = &outcome.requests[0];
        assert_eq!(request.raw, sound.as_bytes(), "{bad:?}");
        assert_eq!(request.last_whole_chunk_end, sound.len(), "{bad:?}");
        assert_eq!(
            outcome.flags(),
            [
                Flags::TRUNCATED | Flags::DISPUTED,
                Flags::RESYNCED | Flags::DISPUTED
            ],
            "{bad:?}"
        );
    }
    // The largest size that a signed 64-bit counter holds is one.
    let outcome = one(format!("{sound}7fffffffffffffff\r\nabc"));
    assert_eq!(outcome.only().flags, Flags::ABORTED);
}

#[test]
fn data_that_are_not_followed_by_a_line_end_break_the_coding_at_that_byte() {
    for (behind, kept) in [
        ("0\r\n\r\n", 0),
        ("\rx", 0),
        ("x\r\n", 0),
        ("d\r\n0\r\n\r\n", 0),
    ] {
        let sound = format!("{CHUNKED}3\r\nabc");
        let outcome = run(&[seg(format!("{sound}{behind}")), seg(NEXT)]);
        assert_eq!(
            outcome.requests[0].raw.len(),
            sound.len() + kept,
            "{behind:?}"
        );
        assert_eq!(outcome.requests[0].last_whole_chunk_end, CHUNKED.len());
        assert_eq!(
            outcome.requests[0].flags,
            Flags::TRUNCATED | Flags::DISPUTED
        );
        assert_eq!(outcome.requests[1].flags, Flags::RESYNCED | Flags::DISPUTED);
    }
}
