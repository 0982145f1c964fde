//! Against the real nginx: its access log is the list of what was delivered.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::*;
use RequestOutcome::*;

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn installed(program: &str, argument: &str) -> bool {
    let found = Command::new(program)
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

/// One nginx in the foreground, in a directory of its own; killed when dropped.
pub(super) struct Nginx {
    dir: tempfile::TempDir,
    front: u16,
    process: Child,
}

impl Nginx {
    /// `server` goes into the front server's block. It hands on to a second one, so that nginx reads each body and can
    /// log it.
    pub(super) fn start(listen: &str, server: &str) -> Option<Self> {
        if !installed("nginx", "-v") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (front, back) = (free_port(), free_port());
        let config = format!(
            "daemon off; master_process off; pid nginx.pid; error_log error.log warn;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n\
               log_format all escape=json '$request_method $request_uri $status $http_x_real_ip [$request_body]';\n\
               log_format ours escape=json '$status|$request_uri|$http_x_real_ip|$http_x_server_addr|$http_x_server_port'\n\
                 '|$http_x_mirror_flags|$http_connection|$http_x_forwarded_for';\n\
               client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u;\n\
               scgi_temp_path s; client_body_buffer_size 2m; access_log off;\n\
               server {{ listen 127.0.0.1:{back}; location / {{ return 200 ok; }} }}\n\
               server {{ listen 127.0.0.1:{front} {listen}; access_log access.log all; {server}\n\
                 location / {{ proxy_pass http://127.0.0.1:{back}; }} }}\n\
             }}\n"
        );
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let process = Self::spawn(dir.path());
        let mut nginx = Self {
            dir,
            front,
            process,
        };
        nginx.wait();
        Some(nginx)
    }

    fn spawn(dir: &Path) -> Child {
        Command::new("nginx")
            .arg("-p")
            .arg(dir)
            .arg("-c")
            .arg(dir.join("nginx.conf"))
            .arg("-e")
            .arg(dir.join("error.log"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn wait(&mut self) {
        for _ in 0..200 {
            if TcpStream::connect(self.address()).is_ok() {
                return;
            }
            let ended = self.process.try_wait().unwrap();
            let log = std::fs::read_to_string(self.dir.path().join("error.log"));
            assert!(ended.is_none(), "nginx ended: {log:?}");
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("nginx does not listen");
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn restart(&mut self) {
        self.process = Self::spawn(self.dir.path());
        self.wait();
    }

    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.front))
    }

    /// The access log's lines, sorted.
    fn log(&self) -> Vec<String> {
        let mut lines = self.lines("access.log");
        lines.sort();
        lines
    }

    /// The lines of a log.
    pub(super) fn lines(&self, name: &str) -> Vec<String> {
        // nginx writes a line when it has sent the answer, which may be a moment after we have read it.
        std::thread::sleep(Duration::from_millis(50));
        let log = std::fs::read_to_string(self.dir.path().join(name)).unwrap();
        log.lines().map(str::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The n-th of a mix of requests, and its line in nginx' log.
fn mixed(n: usize) -> (Request<'static>, String) {
    let target = format!("/r{n:04}?q=%27");
    match n % 4 {
        0 => (get(&target), format!("GET {target} 200 203.0.113.7 []")),
        1 => {
            let body = format!("body-{n}-").repeat(n % 50 + 1);
            let line = format!("POST {target} 200 203.0.113.7 [{body}]");
            (post(&target, body.as_bytes()), line)
        }
        2 => {
            let raw = format!(
                "PUT {target} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                 5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: 1\r\n\r\n"
            );
            let line = format!("PUT {target} 200 203.0.113.7 [hello!]");
            (captured(raw.as_bytes()), line)
        }
        _ => {
            let raw = format!("HEAD {target} HTTP/1.0\r\nHost: h\r\nConnection: close\r\n\r\n");
            let line = format!("HEAD {target} 200 203.0.113.7 []");
            (captured(raw.as_bytes()), line)
        }
    }
}

/// Submits `n` mixed requests; gives the sorted log lines that they must leave.
fn submit_mixed(worker: &mut Worker, from: usize, n: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for i in from..from + n {
        let (request, line) = mixed(i);
        worker.submit(&request);
        lines.push(line);
    }
    lines.sort();
    lines
}

#[test]
fn nginx_logs_exactly_what_was_submitted_though_it_closes_after_every_100() {
    let Some(nginx) = Nginx::start("", "keepalive_requests 100;") else {
        return;
    };
    let mut worker = Worker::new(nginx.address(), ForwardOptions::default());
    let lines = submit_mixed(&mut worker, 0, 500);
    worker.run_idle(10);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 500)]);
    assert_eq!(nginx.log(), lines);
    let connects = worker.count(Counter::Connects);
    assert!((5..=12).contains(&connects), "{connects}");
}

#[test]
fn a_body_that_nginx_refuses_with_413_and_a_close_takes_nobody_with_it() {
    let Some(nginx) = Nginx::start("", "client_max_body_size 10k;") else {
        return;
    };
    let mut worker = Worker::new(nginx.address(), ForwardOptions::default());
    let mut lines = submit_mixed(&mut worker, 0, 100);
    // One that nginx refuses below our own limit for sharing, so in the middle of a pipeline; and one above it.
    worker.submit(&post("/large", &vec![b'x'; 20_000]));
    worker.submit(&post("/larger", &vec![b'x'; 3 << 20]));
    lines.extend(submit_mixed(&mut worker, 100, 100));
    worker.run_idle(10);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 200), (Delivered4xx, 2)]);
    let log = nginx.log();
    let refused: Vec<&String> = log.iter().filter(|l| l.contains(" 413 ")).collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    let mut accepted: Vec<String> = log
        .iter()
        .filter(|l| !l.contains(" 413 "))
        .cloned()
        .collect();
    accepted.dedup();
    lines.sort();
    assert_eq!(accepted, lines);
}

#[test]
fn what_nginx_finds_malformed_is_delivered_in_quarantine_and_counted_4xx() {
    let Some(nginx) = Nginx::start("", "") else {
        return;
    };
    let mut worker = Worker::new(nginx.address(), ForwardOptions::default());
    let mut lines = submit_mixed(&mut worker, 0, 40);
    // What is disputed here may be sound for nginx.
    for i in 0..20 {
        worker.submit(&disputed(&format!("/sound-{i:02}")));
        lines.push(format!("GET /sound-{i:02} 200 203.0.113.7 []"));
    }
    lines.sort();
    for raw in [
        &b"POST /te-cl HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..],
        b"GET /nul HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
        b"POST /two HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    ] {
        worker.submit(&captured(raw));
    }
    worker.run_idle(10);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 60), (Delivered4xx, 3)]);
    assert_eq!(worker.count(Counter::Quarantined), 23);
    let log = nginx.log();
    assert_eq!(log.iter().filter(|l| l.contains(" 400 ")).count(), 3);
    let accepted: Vec<String> = log.into_iter().filter(|l| !l.contains(" 400 ")).collect();
    assert_eq!(accepted, lines);
}

#[test]
fn a_body_that_was_cut_is_whole_for_nginx_and_nobody_behind_it_waits() {
    let Some(nginx) = Nginx::start("", "") else {
        return;
    };
    let mut worker = Worker::new(nginx.address(), one_connection(ForwardOptions::default()));
    let mut lines = submit_mixed(&mut worker, 0, 20);
    for (raw, line) in [
        (
            "POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n0123456789",
            "POST /length 200 203.0.113.7 [0123456789]",
        ),
        (
            "POST /chunks HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n9\r\nwor",
            "POST /chunks 200 203.0.113.7 [hello]",
        ),
        (
            "POST /trailer HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Su",
            "POST /trailer 200 203.0.113.7 [hello]",
        ),
        (
            "POST /none HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST /none 200 203.0.113.7 []",
        ),
    ] {
        // The capture ends inside the body.
        let cut = extracted(raw.as_bytes(), End::Eof);
        assert_eq!(cut.len(), 1, "{raw}");
        assert!(cut[0].flags.contains(Flags::TRUNCATED), "{raw}");
        worker.submit(&cut[0]);
        lines.push(line.to_owned());
    }
    lines.extend(submit_mixed(&mut worker, 20, 20));
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 44)]);
    assert_eq!(worker.count(Counter::Resent), 0);
    assert_eq!(
        worker.count(Counter::Connects),
        1,
        "they shared one connection"
    );
    lines.sort();
    assert_eq!(nginx.log(), lines);
}

#[test]
fn an_analyser_killed_and_restarted_loses_nothing() {
    let Some(mut nginx) = Nginx::start("", "") else {
        return;
    };
    let mut worker = Worker::new(nginx.address(), ForwardOptions::default());
    let mut lines = submit_mixed(&mut worker, 0, 300);
    worker.run(5, |w| w.of(Delivered2xx) > 50);
    nginx.kill();
    lines.extend(submit_mixed(&mut worker, 300, 300));
    for _ in 0..40 {
        worker.step();
    }
    assert!(worker.forwarder.in_flight() > 250);
    nginx.restart();
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 600)]);
    lines.sort();
    // At least once, and nginx logs behind its answer: what it was at when killed may stand there twice, or be
    // answered and not stand there.
    let mut log = nginx.log();
    let all = log.len();
    log.dedup();
    let twice = (all - log.len()) as u64;
    assert!(twice <= worker.count(Counter::Resent), "{twice}");
    assert!(log.len() >= 600 - 4, "{}", log.len());
    assert!(log.iter().all(|line| lines.contains(line)));
}

/// A key and a certificate for analyser.test that vouches for itself. openssl's defaults would make it an authority,
/// which rustls does not take for a server's.
fn certificate(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    if !installed("openssl", "version") {
        return None;
    }
    let (key, cert, config) = (
        dir.join("key.pem"),
        dir.join("cert.pem"),
        dir.join("openssl.cnf"),
    );
    let text = "[req]\nprompt=no\ndistinguished_name=name\nx509_extensions=leaf\n[name]\nCN=analyser.test\n\
                [leaf]\nbasicConstraints=critical,CA:FALSE\nsubjectAltName=DNS:analyser.test\n";
    std::fs::write(&config, text).unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .arg("-config")
        .arg(&config)
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success(), "openssl req");
    Some((key, cert))
}

#[test]
fn over_tls_the_certificate_is_checked_and_requests_are_delivered() {
    let keys = tempfile::tempdir().unwrap();
    let Some((key, cert)) = certificate(keys.path()) else {
        return;
    };
    let server = format!(
        "ssl_certificate {}; ssl_certificate_key {}; keepalive_requests 100;",
        cert.display(),
        key.display()
    );
    let Some(nginx) = Nginx::start("ssl", &server) else {
        return;
    };
    let options = ForwardOptions {
        target: "https://analyser.test:1".parse().unwrap(),
        ca_file: Some(cert),
        ..ForwardOptions::default()
    };
    let mut worker = Worker::new(nginx.address(), options.clone());
    let mut lines = submit_mixed(&mut worker, 0, 300);
    worker.submit(&post("/large", &vec![b'x'; 900_000]));
    worker.submit(&disputed("/disputed"));
    worker.run_idle(10);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 302)]);
    lines.push(format!(
        "POST /large 200 203.0.113.7 [{}]",
        "x".repeat(900_000)
    ));
    lines.push("GET /disputed 200 203.0.113.7 []".to_owned());
    lines.sort();
    assert!(nginx.log() == lines);

    // Another name than the certificate's: nothing is sent, and no request is to blame.
    let options = ForwardOptions {
        target: "https://other.test:1".parse().unwrap(),
        ..options
    };
    let mut worker = Worker::new(nginx.address(), options);
    worker.submit(&get("/"));
    worker.run(5, |w| w.count(Counter::ConnectFailures) >= 2);
    assert_eq!(worker.forwarder.in_flight(), 1);
    assert_eq!(worker.count(Counter::ForwardedBytes), 0);
}
