//! Sending requests: the rebuilder's forwarder beside hyper's connection and hyper-util's pool, each to the same sink on
//! this machine.
//!
//! Counted is the processor time of the thread that sends, user and system. The sink is a process of its own, so that
//! what it costs is nobody's; on the loopback device the sender still pays for the way of its bytes into the sink's
//! socket.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{self, Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::http::uri::Authority;
use hyper::{Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lab::cpu::{Cost, Reading};
use rebuilder::forward::{Addresses, ForwardOptions, Forwarder};
use rebuilder::http::{Extractor, HttpOptions, Request};
use rebuilder::stream::{Chunk, DirectionId, Endpoints};
use rebuilder::telemetry::{Counter, RequestOutcome, WorkerCounters};
use rebuilder::time::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::table::Row;

/// Each subject is run so often, all of them in turn; the median counts.
const RUNS: usize = 5;
/// Requests of one run where many are in flight on a connection.
const PIPELINED: usize = 200_000;
/// Requests of one run where each waits for the answer to the one before.
const ONE_BY_ONE: usize = 40_000;
/// Connections of each subject that has several.
const CONNECTIONS: usize = 4;
/// Requests in flight on one.
const PIPELINE: usize = 16;
/// How long a run may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is sent: the size of a browser's request that has no cookies.
const REQUEST: &str = "GET /catalogue/items?page=3&sort=price HTTP/1.1\r\n\
    Host: shop.example\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Referer: https://shop.example/catalogue\r\n\
    Connection: keep-alive\r\n\r\n";

/// What is answered: the fields of a small answer of nginx.
const ANSWER: &str = "HTTP/1.1 200 OK\r\n\
    Server: nginx/1.22.1\r\n\
    Date: Tue, 24 Nov 2026 16:00:00 GMT\r\n\
    Content-Type: application/octet-stream\r\n\
    Content-Length: 3\r\n\
    Connection: keep-alive\r\n\r\n\
    ok\n";

/// One way to send requests.
struct Subject {
    name: &'static str,
    requests: usize,
    run: fn(SocketAddr, usize) -> anyhow::Result<Cost>,
}

/// The rebuilder's, and the others.
const SUBJECTS: [Subject; 6] = [
    Subject {
        name: "egress, 4 connections, 16 in flight on each",
        requests: PIPELINED,
        run: |to, n| rebuilder(to, n, CONNECTIONS, PIPELINE),
    },
    Subject {
        name: "egress, 4 connections, --pipeline 1",
        requests: ONE_BY_ONE,
        run: |to, n| rebuilder(to, n, CONNECTIONS, 1),
    },
    Subject {
        name: "egress, 1 connection, --pipeline 1",
        requests: ONE_BY_ONE,
        run: |to, n| rebuilder(to, n, 1, 1),
    },
    Subject {
        name: "hyper-util's pool, 64 requests at a time",
        requests: ONE_BY_ONE,
        run: |to, n| pool(to, n, CONNECTIONS * PIPELINE),
    },
    Subject {
        name: "hyper-util's pool, 4 requests at a time",
        requests: ONE_BY_ONE,
        run: |to, n| pool(to, n, CONNECTIONS),
    },
    Subject {
        name: "hyper, 1 connection",
        requests: ONE_BY_ONE,
        run: connection,
    },
];

/// Which subject is compared to which others, by their places.
const COMPARED: [(usize, &[usize]); 3] = [(0, &[3, 4]), (1, &[5]), (2, &[5])];

/// Measures all of them.
pub(crate) fn run() -> anyhow::Result<Vec<Row>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("sink");
    let sink = Sink::start(command)?;
    let mut costs = [const { Vec::new() }; SUBJECTS.len()];
    for _ in 0..RUNS {
        for (subject, costs) in SUBJECTS.iter().zip(&mut costs) {
            let cost = (subject.run)(sink.address, subject.requests).context(subject.name)?;
            costs.push(cost);
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    for (subject, costs) in SUBJECTS.iter().zip(&costs) {
        let mut times: Vec<Duration> = costs.iter().map(Cost::cpu).collect();
        times.sort_unstable();
        let median = times[times.len() / 2];
        let note = format!("{:.0} % of it the kernel's", 100.0 * in_kernel(costs));
        rows.push(Row::new(subject.name, median, 0, subject.requests).noting(note));
    }
    for (ours, others) in COMPARED {
        let each = |row: &Row| row.request.map_or(0.0, |time| time.as_secs_f64());
        let notes = others.iter().map(|&other| {
            let ratio = each(&rows[ours]) / each(&rows[other]);
            format!("{ratio:.2} × {}", SUBJECTS[other].name)
        });
        let notes: Vec<String> = notes.collect();
        rows[ours].note = format!("{}; {}", rows[ours].note, notes.join(", "));
    }
    Ok(rows)
}

/// Which share of some runs the kernel took: of all together, because one alone has few ticks.
fn in_kernel(costs: &[Cost]) -> f64 {
    let system: Duration = costs.iter().map(|cost| cost.system).sum();
    let all: Duration = costs.iter().map(Cost::cpu).sum();
    system.as_secs_f64() / all.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// [`REQUEST`] as the rebuilder reads it from a connection.
fn captured() -> anyhow::Result<Request<'static>> {
    let mut extractor = Extractor::new(HttpOptions::default());
    let mut requests = Vec::new();
    let ends = Endpoints {
        vni: None,
        src: "192.0.2.10:40000".parse()?,
        dst: "10.1.2.3:80".parse()?,
    };
    for chunk in [
        Chunk::Open { midstream: false },
        Chunk::Data {
            bytes: REQUEST.as_bytes(),
            ts: Timestamp(1),
            segment_start: true,
            conflict: false,
        },
    ] {
        extractor.chunk(DirectionId::new(1, 1), &ends, chunk, &mut |request| {
            requests.push(request.into_owned());
        });
    }
    requests
        .pop()
        .context("the rebuilder finds no request in what is to be sent")
}

/// What a worker does with its requests, as fast as the sink takes them.
fn rebuilder(
    to: SocketAddr,
    requests: usize,
    connections: usize,
    pipeline: usize,
) -> anyhow::Result<Cost> {
    let request = captured()?;
    let counters = Arc::new(WorkerCounters::default());
    let options = ForwardOptions {
        addresses: Arc::new(Addresses::new(vec![to])),
        connections,
        pipeline,
        ..ForwardOptions::default()
    };
    let mut forwarder = Forwarder::new(options, Arc::clone(&counters))?;
    // As many wait as are in flight.
    let window = 2 * connections * pipeline;
    let begun = Reading::of_this_thread();
    let end = Instant::now() + PATIENCE;
    let mut submitted = 0;
    loop {
        while submitted < requests && forwarder.in_flight() < window {
            forwarder.submit(&request);
            submitted += 1;
        }
        if submitted == requests && forwarder.idle() {
            break;
        }
        let now = Instant::now();
        ensure!(
            now < end,
            "{} of {requests} are not answered",
            forwarder.in_flight()
        );
        forwarder.poll(Duration::from_millis(100), now);
    }
    let cost = Reading::of_this_thread().since(&begun);
    let delivered = counters.requests_of(RequestOutcome::Delivered2xx);
    ensure!(
        delivered == requests as u64,
        "only {delivered} of {requests} are delivered"
    );
    let connects = counters.counter(Counter::Connects);
    ensure!(connects == connections as u64, "{connects} connections");
    Ok(cost)
}

/// A runtime on this thread.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// The parts of [`REQUEST`], of which a request is a copy: nobody pays for making them.
fn parts(uri: Uri) -> anyhow::Result<hyper::http::request::Parts> {
    let mut request = hyper::Request::builder().uri(uri);
    for line in REQUEST
        .split("\r\n")
        .skip(1)
        .filter(|line| !line.is_empty())
    {
        let (name, value) = line.split_once(": ").context("a header without a colon")?;
        request = request.header(name, value);
    }
    Ok(request.body(())?.into_parts().0)
}

/// Where [`REQUEST`] goes to.
fn target() -> &'static str {
    REQUEST.split(' ').nth(1).unwrap_or("/")
}

/// Reads an answer to its end.
async fn finish(response: Response<Incoming>) -> anyhow::Result<()> {
    ensure!(response.status() == 200, "answered {}", response.status());
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(())
}

/// hyper-util's client, so many requests at a time, one on each of its connections.
fn pool(to: SocketAddr, requests: usize, at_a_time: usize) -> anyhow::Result<Cost> {
    let authority: Authority = to.to_string().parse()?;
    let uri = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(target())
        .build()?;
    let parts = parts(uri)?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let begun = Reading::of_this_thread();
    runtime()?.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..at_a_time {
            let (client, parts) = (client.clone(), parts.clone());
            tasks.spawn(async move {
                for _ in 0..requests / at_a_time {
                    let request = hyper::Request::from_parts(parts.clone(), Empty::new());
                    finish(client.request(request).await?).await?;
                }
                anyhow::Ok(())
            });
        }
        let all = async {
            while let Some(task) = tasks.join_next().await {
                task??;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, all).await?
    })?;
    Ok(Reading::of_this_thread().since(&begun))
}

/// One connection of hyper's, one request after the other.
fn connection(to: SocketAddr, requests: usize) -> anyhow::Result<Cost> {
    let parts = parts(target().parse()?)?;
    let begun = Reading::of_this_thread();
    runtime()?.block_on(async {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let all = async {
            for _ in 0..requests {
                let request = hyper::Request::from_parts(parts.clone(), Empty::<Bytes>::new());
                finish(sender.send_request(request).await?).await?;
                sender.ready().await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, all).await?
    })?;
    Ok(Reading::of_this_thread().since(&begun))
}

/// The sink's process; ends with this value.
pub(crate) struct Sink {
    process: Child,
    pub(crate) address: SocketAddr,
}

impl Sink {
    /// By a command that runs [`sink`].
    pub(crate) fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the sink")?;
        let mut line = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let address = line.trim().parse().context("the sink says no address")?;
        Ok(Self { process, address })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The sink itself: one thread that waits for all its connections at once, as an analyser's worker does. Answers
/// whatever ends like a head with [`ANSWER`], until its input ends.
pub(crate) fn sink() -> anyhow::Result<()> {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        process::exit(0);
    });
    runtime()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(answer(stream));
        }
    })
}

/// Answers on one connection, all that a read brings with one write.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    let answers = ANSWER.repeat(buffer.len() / 4);
    // Bytes of the empty line that have been seen.
    let mut seen = 0;
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        let mut heads = 0;
        for &byte in buffer.get(..n).unwrap_or_default() {
            seen = match (seen, byte) {
                (0 | 2, b'\r') | (1 | 3, b'\n') => seen + 1,
                (_, b'\r') => 1,
                _ => 0,
            };
            if seen == 4 {
                heads += 1;
                seen = 0;
            }
        }
        let reply = answers.get(..heads * ANSWER.len()).unwrap_or_default();
        stream.write_all(reply.as_bytes()).await?;
    }
}
