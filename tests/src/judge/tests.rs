use super::*;

const ADDED: &str = "X-Forwarded-For: 10.0.0.1\r\nX-Real-IP: 10.0.0.1\r\nX-Server-Addr: 10.0.0.2\r\nX-Server-Port: 80\r\n";
const GET: &str = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST /2 HTTP/1.1\r\nContent-Length: 10\r\n\r\n0123456789";
const PUT: &str =
    "PUT /3 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\nxyz\r\n0\r\n\r\n";
const BAITED: &str =
    "POST /4 HTTP/1.1\r\nContent-Length: 40\r\n\r\nGET /smuggled/4/0 HTTP/1.1\r\n\r\n0123456789";

fn request(text: &str) -> Request {
    let (line, _) = text.split_once(" HTTP").unwrap();
    Request {
        id: line.rsplit('/').next().unwrap().parse().unwrap(),
        bytes: text.as_bytes().to_vec(),
        head: text.find("\r\n\r\n").unwrap() + 4,
        chunked: text.contains("chunked"),
        baits: text
            .find("GET /smuggled")
            .into_iter()
            .map(|at| at as u64)
            .collect(),
    }
}

/// What arrives of `text` with these flags.
fn arrived(text: &str, flags: &str) -> Taken {
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let flags = if flags.is_empty() {
        String::new()
    } else {
        format!("X-Mirror-Flags: {flags}\r\n")
    };
    Taken {
        connection: 0,
        head: format!("{head}\r\n{ADDED}{flags}\r\n").into_bytes(),
        body: body.as_bytes().to_vec(),
        broken: false,
    }
}

/// Judges one connection. A segment each request, but for `cuts`: request, and how many bytes of its end are missing.
fn verdict(texts: &[&str], syn: bool, cuts: &[(usize, usize)], taken: &[Taken]) -> Verdict {
    let (from, to) = (
        "10.0.0.1:1024".parse().unwrap(),
        "10.0.0.2:80".parse().unwrap(),
    );
    let (mut segments, mut at) = (Vec::new(), 0);
    for (index, text) in texts.iter().enumerate() {
        let length = u32::try_from(text.len()).unwrap();
        let missing = cuts
            .iter()
            .find(|(cut, _)| *cut == index)
            .map_or(0, |(_, missing)| *missing);
        segments.push((at, length, length - u32::try_from(missing).unwrap()));
        at += length;
    }
    let sent = Sent {
        from,
        to,
        requests: texts.iter().map(|text| request(text)).collect(),
        more: 0,
    };
    judge(&[sent], &Ledger::of(from, to, syn, &segments), taken)
}

fn faults(texts: &[&str], syn: bool, cuts: &[(usize, usize)], taken: &[Taken]) -> String {
    let verdict = verdict(texts, syn, cuts, taken);
    assert_eq!(verdict.fault_count, verdict.faults.len() as u64);
    verdict.faults.join("\n")
}

const ALL: [&str; 3] = [GET, POST, PUT];

fn all() -> Vec<Taken> {
    ALL.iter().map(|text| arrived(text, "")).collect()
}

#[test]
fn what_was_sent_is_exact() {
    let verdict = verdict(&ALL, true, &[], &all());
    assert_eq!(verdict.faults, Vec::<String>::new());
    assert_eq!(
        (verdict.requests, verdict.untouched, verdict.exact),
        (3, 3, 3)
    );
}

#[test]
fn a_changed_byte_a_double_a_missing_and_an_invented_request_are_faults() {
    for (index, place) in [(0, 20), (1, 9), (2, 30)] {
        let mut taken = all();
        taken[index].head[place] ^= 1;
        assert!(
            faults(&ALL, true, &[], &taken).contains("another head"),
            "{index}"
        );
    }
    let mut taken = all();
    taken[1].body[3] ^= 1;
    assert!(faults(&ALL, true, &[], &taken).contains("another body"));
    let mut taken = all();
    taken.push(arrived(GET, ""));
    assert!(faults(&ALL, true, &[], &taken).contains("doubled"));
    let mut taken = all();
    taken.remove(1);
    assert!(faults(&ALL, true, &[], &taken).contains("missing"));
    let mut taken = all();
    taken.push(arrived("GET /9 HTTP/1.1\r\n\r\n", ""));
    assert!(faults(&ALL, true, &[], &taken).contains("invented"));
    let mut taken = all();
    taken[0].broken = true;
    assert!(faults(&ALL, true, &[], &taken).contains("where it ends"));
}

#[test]
fn a_flag_without_a_cause_is_a_fault() {
    for flag in [
        "truncated",
        "midstream",
        "resynced",
        "disputed",
        "ambiguous",
        "aborted",
        "spoofed",
    ] {
        let mut taken = all();
        taken[1] = arrived(POST, flag);
        assert_ne!(faults(&ALL, true, &[], &taken), "", "{flag}");
    }
    let mut taken = all();
    taken[0].head = String::from_utf8(taken[0].head.clone())
        .unwrap()
        .replace("10.0.0.1\r\nX-S", "10.0.0.7\r\nX-S")
        .into();
    assert!(faults(&ALL, true, &[], &taken).contains("not from"));
}

#[test]
fn close_may_be_sent_as_keep_alive_where_hop_says_so() {
    let close = "GET /1 HTTP/1.1\r\nConnection: close\r\n\r\n";
    let kept = close.replace("close", "keep-alive");
    assert_eq!(faults(&[close], true, &[], &[arrived(&kept, "hop")]), "");
    assert_ne!(faults(&[close], true, &[], &[arrived(&kept, "")]), "");
}

#[test]
fn a_damaged_body_arrives_to_the_first_missing_byte_and_says_so() {
    let cuts = [(1, 4)];
    let short = POST.replace("Length: 10", "Length: 6").replace("6789", "");
    let mut taken = all();
    taken[1] = arrived(&short, "truncated");
    let verdict = verdict(&ALL, true, &cuts, &taken);
    assert_eq!(verdict.faults, Vec::<String>::new());
    assert_eq!(
        (
            verdict.touched,
            verdict.truncated,
            verdict.exact,
            verdict.missing_bytes
        ),
        (1, 1, 2, 4)
    );

    taken[1] = arrived(&short, "");
    assert!(faults(&ALL, true, &cuts, &taken).contains("not truncated"));
    taken[1] = arrived(
        &short
            .replace("Length: 6", "Length: 5")
            .replace("012345", "01234"),
        "truncated",
    );
    assert_ne!(faults(&ALL, true, &cuts, &taken), "");
    taken[1] = arrived(&short.replace("012345", "01234"), "truncated");
    assert_ne!(faults(&ALL, true, &cuts, &taken), "");
    // A byte that nobody captured.
    taken[1] = arrived(
        &POST.replace("Length: 10", "Length: 7").replace("789", ""),
        "truncated",
    );
    assert_ne!(faults(&ALL, true, &cuts, &taken), "");
    taken.remove(1);
    assert!(faults(&ALL, true, &cuts, &taken).contains("missing"));
}

#[test]
fn what_lies_behind_the_first_hole_of_a_body_is_skipped() {
    let (from, to) = (
        "10.0.0.1:1024".parse().unwrap(),
        "10.0.0.2:80".parse().unwrap(),
    );
    // The head and three bytes, a hole of two bytes, the other five.
    let head = u32::try_from(request(POST).head).unwrap();
    let segments = [(0, head + 3, head + 3), (head + 3, 2, 0), (head + 5, 5, 5)];
    let sent = [Sent {
        from,
        to,
        requests: vec![request(POST)],
        more: 0,
    }];
    let short = POST
        .replace("Length: 10", "Length: 3")
        .replace("3456789", "");
    let taken = [arrived(&short, "truncated")];
    let verdict = judge(&sent, &Ledger::of(from, to, true, &segments), &taken);
    assert_eq!(verdict.faults, Vec::<String>::new());
    assert_eq!((verdict.missing_bytes, verdict.skipped_bytes), (2, 5));
}

#[test]
fn a_damaged_chunked_body_ends_behind_its_last_whole_chunk() {
    let cuts = [(2, 8)];
    let short = PUT.replace("3\r\nxyz\r\n", "");
    let mut taken = all();
    taken[2] = arrived(&short, "truncated");
    assert_eq!(faults(&ALL, true, &cuts, &taken), "");
    taken[2] = arrived(&PUT.replace("3\r\nxyz\r\n", "2\r\nxy\r\n"), "truncated");
    assert_ne!(faults(&ALL, true, &cuts, &taken), "");
}

#[test]
fn behind_a_damaged_head_the_next_segment_with_a_request_line_is_resynced() {
    let cuts = [(0, 3)];
    let taken = [arrived(POST, "resynced"), arrived(PUT, "")];
    let verdict = verdict(&ALL, true, &cuts, &taken);
    assert_eq!(verdict.faults, Vec::<String>::new());
    assert_eq!((verdict.lost, verdict.resynced, verdict.exact), (1, 1, 2));
    assert_eq!(verdict.skipped_bytes, GET.len() as u64 - 3);

    let unsaid = [arrived(POST, ""), arrived(PUT, "")];
    assert!(faults(&ALL, true, &cuts, &unsaid).contains("resynced or not"));
    assert!(faults(&ALL, true, &cuts, &taken[1..]).contains("missing"));
    let whole = [arrived(GET, ""), arrived(POST, ""), arrived(PUT, "")];
    assert!(faults(&ALL, true, &cuts, &whole).contains("are not all in"));
}

#[test]
fn without_a_syn_everything_is_midstream() {
    let taken: Vec<Taken> = ALL.iter().map(|text| arrived(text, "midstream")).collect();
    assert_eq!(faults(&ALL, false, &[], &taken), "");
    assert_ne!(faults(&ALL, false, &[], &all()), "");
    assert_ne!(faults(&ALL, true, &[], &taken), "");
}

#[test]
fn a_line_in_a_body_may_only_become_a_request_where_the_framing_was_lost() {
    let texts = [GET, BAITED];
    let bait = arrived("GET /smuggled/4/0 HTTP/1.1\r\n\r\n", "resynced");
    let taken = [arrived(GET, ""), arrived(BAITED, ""), bait.clone()];
    assert!(faults(&texts, true, &[], &taken).contains("a body's line"));
    // A body that begins a segment, and whose head is lost.
    let head = request(BAITED).head;
    let (from, to) = (
        "10.0.0.1:1024".parse().unwrap(),
        "10.0.0.2:80".parse().unwrap(),
    );
    let length = |part: &str| u32::try_from(part.len()).unwrap();
    let (first, body) = (length(GET), length(&BAITED[head..]));
    let head = length(&BAITED[..head]);
    let ledger = Ledger::of(
        from,
        to,
        true,
        &[
            (0, first, first),
            (first, head, 0),
            (first + head, body, body),
        ],
    );
    let sent = [Sent {
        from,
        to,
        requests: texts.map(request).to_vec(),
        more: 0,
    }];
    let verdict = judge(&sent, &ledger, &[arrived(GET, ""), bait]);
    assert_eq!(verdict.faults, Vec::<String>::new());
    assert_eq!((verdict.in_bodies, verdict.lost, verdict.exact), (1, 1, 1));
    let unsaid = arrived("GET /smuggled/4/0 HTTP/1.1\r\n\r\n", "");
    assert_ne!(
        judge(&sent, &ledger, &[arrived(GET, ""), unsaid]).fault_count,
        0
    );
    let other = arrived("GET /smuggled/4/1 HTTP/1.1\r\n\r\n", "resynced");
    assert_ne!(
        judge(&sent, &ledger, &[arrived(GET, ""), other]).fault_count,
        0
    );
}
