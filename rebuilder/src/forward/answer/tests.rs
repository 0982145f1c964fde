//! Heads and bodies of answers, however they are cut.

use super::*;
use proptest::prelude::*;

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Head(u16),
    End(bool),
}

/// All events of `bytes` given in pieces of these sizes, for answers to these methods in turn.
fn events(bytes: &[u8], to: &[AnswerTo], cuts: &[usize]) -> Result<(Vec<Seen>, bool), AnswerError> {
    let mut reader = AnswerReader::default();
    let mut seen = Vec::new();
    let mut to = to.iter().copied();
    let mut now = to.next().unwrap_or(AnswerTo::Other);
    let mut sizes = cuts.iter().copied().cycle();
    let mut at = 0;
    while at < bytes.len() {
        let size = sizes.next().unwrap_or(usize::MAX).max(1);
        let piece = &bytes[at..bytes.len().min(at.saturating_add(size))];
        at += piece.len();
        let mut piece = piece;
        while !piece.is_empty() {
            let step = reader.read(piece, now)?;
            piece = &piece[step.used..];
            if let Some(head) = step.head {
                seen.push(Seen::Head(head.status));
            }
            if let Some(reusable) = step.end {
                seen.push(Seen::End(reusable));
                now = to.next().unwrap_or(AnswerTo::Other);
            }
        }
    }
    Ok((seen, reader.ends_at_close()))
}

fn whole(bytes: &[u8], to: &[AnswerTo]) -> Result<(Vec<Seen>, bool), AnswerError> {
    events(bytes, to, &[])
}

const PIPELINE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\n\r\nhello\
    HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: </a>\r\n\r\nHTTP/1.1 403 Forbidden\r\n\
    Transfer-Encoding: chunked\r\n\r\n4;x=y\r\nabcd\r\n00\r\nTrailer: 1\r\n\r\n\
    HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n\
    HTTP/1.1 204 No Content\r\n\r\n\
    HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n\
    HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n\
    HTTP/1.1 502\r\nConnection: close\r\nContent-Length: 1\r\n\r\n!";

const PIPELINE_TO: [AnswerTo; 3] = [AnswerTo::Other, AnswerTo::Other, AnswerTo::Head];

fn pipeline_events() -> Vec<Seen> {
    use Seen::{End, Head};
    vec![
        Head(200),
        End(true),
        Head(403),
        End(true),
        Head(200),
        End(true),
        Head(204),
        End(true),
        Head(304),
        End(true),
        Head(200),
        End(true),
        Head(502),
        End(false),
    ]
}

#[test]
fn each_answer_ends_where_rfc_9112_6_3_says() {
    assert_eq!(
        whole(PIPELINE, &PIPELINE_TO),
        Ok((pipeline_events(), false))
    );
}

#[test]
fn without_a_length_the_body_ends_at_the_close() {
    let (seen, open) = whole(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 500 no\r\n\r\n", &[]).unwrap();
    assert_eq!(seen, [Seen::Head(200)]);
    assert!(open);
    // A coding that is not chunked has no other end either, whatever a length says (RFC 9112 §6.3 item 4).
    let (seen, open) = whole(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\nabc",
        &[],
    )
    .unwrap();
    assert_eq!(seen, [Seen::Head(200)]);
    assert!(open);
}

#[test]
fn after_101_and_a_tunnel_nothing_may_follow() {
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(
        whole(switch, &[]).unwrap().0,
        [Seen::Head(101), Seen::End(false)]
    );
    let tunnel = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(
        whole(tunnel, &[AnswerTo::Connect]).unwrap().0,
        [Seen::Head(200), Seen::End(false)]
    );
    let refused = b"HTTP/1.1 405 No\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(
        whole(refused, &[AnswerTo::Connect]).unwrap().0,
        [Seen::Head(405), Seen::End(true)]
    );
}

#[test]
fn an_answer_with_two_ends_is_an_error() {
    for (answer, error) in [
        (
            &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"[..],
            AnswerError::BadLength,
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            AnswerError::BadLength,
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            AnswerError::BadLength,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            AnswerError::BadChunk,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
            AnswerError::BadChunk,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            AnswerError::BadChunk,
        ),
        (b"HTTP/2.0 200 OK\r\n\r\n", AnswerError::NotHttp),
        (b"HTTP/1.1 20 OK\r\n\r\n", AnswerError::NotHttp),
        (b"HTTP/1.1 2000 OK\r\n\r\n", AnswerError::NotHttp),
        (b"\x16\x03\x01\x00\n", AnswerError::NotHttp),
    ] {
        assert_eq!(whole(answer, &[]), Err(error), "{}", answer.escape_ascii());
    }
    let same = b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(
        whole(same, &[]).unwrap().0,
        [Seen::Head(200), Seen::End(true)]
    );
}

#[test]
fn a_balancer_s_own_answer_is_recognised() {
    let mut reader = AnswerReader::default();
    let answer = b"HTTP/1.1 463 \r\nserver: awselb/2.0\r\nContent-Length: 0\r\n\r\n";
    let head = reader.read(answer, AnswerTo::Other).unwrap().head.unwrap();
    assert_eq!((head.status, head.balancer), (463, true));
    let answer = b"HTTP/1.1 400 \r\nServer: nginx\r\nContent-Length: 0\r\n\r\n";
    let head = reader.read(answer, AnswerTo::Other).unwrap().head.unwrap();
    assert_eq!((head.status, head.balancer), (400, false));
}

#[test]
fn the_head_s_byte_cap_is_reached_and_memory_stays_bounded() {
    let mut reader = AnswerReader::default();
    reader
        .read(b"HTTP/1.1 200 OK\r\nX: ", AnswerTo::Other)
        .unwrap();
    let block = [b'a'; 4096];
    let mut error = None;
    for _ in 0..HEAD_BYTES_MAX / block.len() + 1 {
        if let Err(e) = reader.read(&block, AnswerTo::Other) {
            error = Some(e);
            break;
        }
        assert!(reader.line.capacity() <= 2 * LINE_BYTES_MAX);
    }
    assert_eq!(error, Some(AnswerError::HeadTooLong));
    // Interim answers count together.
    let endless = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(HEAD_BYTES_MAX / 20);
    assert_eq!(whole(&endless, &[]), Err(AnswerError::HeadTooLong));
    // But any number of whole answers, chunks and long lines below the cap pass.
    let long = [
        b"HTTP/1.1 200 OK\r\nSet-Cookie: ".to_vec(),
        vec![b'c'; HEAD_BYTES_MAX / 2],
        b"\r\nContent-Length: 0\r\n\r\n".to_vec(),
    ]
    .concat()
    .repeat(4);
    assert_eq!(whole(&long, &[]).unwrap().0.len(), 8);
    let chunks = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
        b"1\r\nx\r\n".repeat(HEAD_BYTES_MAX / 4),
        b"0\r\n\r\n".to_vec(),
    ]
    .concat();
    assert_eq!(whole(&chunks, &[]).unwrap().0.len(), 2);
}

/// The last head is remembered where it came in one piece, and in pieces it never is.
#[test]
fn a_head_that_is_remembered_says_what_it_says_when_it_is_read() {
    let heads = [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nServer: awselb/2.0\r\n\r\n",
        "HTTP/1.1 404 No\r\nContent-Length: 3\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: y\r\n\r\n",
    ];
    // Each behind each, itself included, to every kind of request.
    let mut bytes = Vec::new();
    let mut to = Vec::new();
    for first in heads {
        for second in heads {
            for head in [first, second, second] {
                bytes.extend_from_slice(head.as_bytes());
                let end = if head.contains("chunked") {
                    "abc\r\n0\r\n\r\n"
                } else {
                    "abc"
                };
                bytes.extend_from_slice(end.as_bytes());
                to.push(AnswerTo::Other);
            }
        }
    }
    let in_one = whole(&bytes, &to).unwrap();
    assert_eq!(in_one, events(&bytes, &to, &[1]).unwrap());
    assert_eq!(in_one.0.len(), 2 * to.len());
    // The same head has a body or none, or is the last.
    let head = heads[0].as_bytes();
    let mut reader = AnswerReader::default();
    let mut read = |to| reader.read(head, to).unwrap();
    let bodiless = read(AnswerTo::Head);
    assert_eq!((bodiless.used, bodiless.end), (head.len(), Some(true)));
    assert_eq!(read(AnswerTo::Head), bodiless);
    let tunnel = read(AnswerTo::Connect);
    assert_eq!((tunnel.head.unwrap().last, tunnel.end), (true, Some(false)));
}

#[test]
fn of_a_head_no_more_is_remembered_than_its_cap() {
    for (padding, kept) in [(0, true), (KNOWN_BYTES_MAX, false)] {
        let padding = "p".repeat(padding);
        let head = format!("HTTP/1.1 204 No\r\nX-P: {padding}\r\n\r\n");
        let mut reader = AnswerReader::default();
        reader.read(head.as_bytes(), AnswerTo::Other).unwrap();
        assert_eq!(reader.known == head.as_bytes(), kept);
        assert_eq!(reader.known.is_empty(), !kept);
    }
}

proptest! {
    #[test]
    fn any_split_gives_the_same_answers(cuts in prop::collection::vec(1_usize..40, 1..30)) {
        let got = events(PIPELINE, &PIPELINE_TO, &cuts).unwrap();
        prop_assert_eq!(got, (pipeline_events(), false));
    }

    #[test]
    fn no_bytes_panic_and_any_split_of_them_reads_alike(
        mut bytes in prop::collection::vec(any::<u8>(), 0..60),
        at in 0_usize..400,
        cuts in prop::collection::vec(1_usize..9, 1..9),
    ) {
        // Noise alone never gets past the status line: put it into a good exchange.
        let at = at.min(PIPELINE.len());
        let mut noisy = PIPELINE[..at].to_vec();
        noisy.append(&mut bytes);
        noisy.extend_from_slice(&PIPELINE[at..]);
        prop_assert_eq!(events(&noisy, &PIPELINE_TO, &cuts), whole(&noisy, &PIPELINE_TO));
    }
}
