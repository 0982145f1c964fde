//! curl and wrk, and what they send. Their bytes are known because every header is given to them; nginx's log says which
//! requests shared a connection, in which order.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use lab::client::body_file;
use lab::judge::{Request, Sent};
use lab::network::Host;
use lab::nginx::Entry;
use lab::process::run;
use lab::random::Random;
use lab::verbatim::Taken;

/// Requests by target, to be put into the order of nginx's log.
#[derive(Default)]
pub(crate) struct Known(BTreeMap<String, Request>);

impl Known {
    fn add(&mut self, target: String, head: &str, body: &[u8], id: &mut u64) {
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend_from_slice(body);
        let request = Request {
            id: *id,
            bytes,
            head: head.len(),
            chunked: false,
            baits: Vec::new(),
        };
        *id += 1;
        assert!(self.0.insert(target, request).is_none());
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Puts them into their connections. Each must be in the log.
    pub(crate) fn connections(mut self, log: &[Entry]) -> Vec<Sent> {
        let mut by_connection: BTreeMap<(&str, u16, &str), Vec<&Entry>> = BTreeMap::new();
        for entry in log {
            if self.0.contains_key(entry.target()) {
                let key = (entry.client.as_str(), entry.port, entry.server.as_str());
                by_connection.entry(key).or_default().push(entry);
            }
        }
        let sent = by_connection
            .into_iter()
            .map(|((client, port, server), mut entries)| {
                entries.sort_by_key(|entry| entry.number);
                let address = |text: &str| text.parse::<IpAddr>().unwrap();
                Sent {
                    from: SocketAddr::new(address(client), port),
                    to: SocketAddr::new(address(server), 80),
                    requests: entries
                        .iter()
                        .filter_map(|it| self.0.remove(it.target()))
                        .collect(),
                    more: 0,
                }
            })
            .collect();
        assert!(
            self.0.is_empty(),
            "nginx has not logged {:?}",
            self.0.keys()
        );
        sent
    }
}

fn host_of(server: SocketAddr) -> String {
    // Port 80 is the scheme's and not named.
    if server.is_ipv6() {
        format!("[{}]", server.ip())
    } else {
        server.ip().to_string()
    }
}

pub(crate) struct Curl<'a> {
    pub(crate) client: &'a Host,
    pub(crate) directory: &'a Path,
    pub(crate) servers: [SocketAddr; 4],
    /// The next local port.
    pub(crate) port: u16,
    pub(crate) id: u64,
    pub(crate) random: Random,
    pub(crate) known: Known,
}

impl Curl<'_> {
    /// One curl that gets `count` pages over one connection.
    pub(crate) fn gets(&mut self, count: usize) {
        let server = self.servers[self.random.below(4)];
        let host = host_of(server);
        let mut command = self.curl();
        for index in 0..count {
            let target = format!("/curl/{}?page={index}", self.id);
            let head = format!(
                "GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: lab\r\nAccept: */*\r\n\r\n"
            );
            if index > 0 {
                command.arg("--next");
            }
            self.options(&mut command);
            command.arg(format!("http://{host}{target}"));
            self.known.add(target, &head, b"", &mut self.id);
        }
        self.port += 1;
        run(&mut command).unwrap();
    }

    /// One curl that posts a file.
    pub(crate) fn post(&mut self, length: usize) {
        let server = self.servers[self.random.below(4)];
        let host = host_of(server);
        let body = self.random.bytes(length);
        let file = body_file(self.directory, "curl-body", &body).unwrap();
        let target = format!("/curl/{}", self.id);
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: lab\r\nAccept: */*\r\n\
             Content-Length: {length}\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n"
        );
        let mut command = self.curl();
        self.options(&mut command);
        command.args(["--header", "Expect:", "--data-binary", &file]);
        command.arg(format!("http://{host}{target}"));
        self.known.add(target, &head, &body, &mut self.id);
        self.port += 1;
        run(&mut command).unwrap();
    }

    fn curl(&self) -> Command {
        self.client.namespace.command("curl")
    }

    fn options(&self, command: &mut Command) {
        command.args(["--silent", "--show-error", "--fail", "--max-time", "60"]);
        command.args(["--output", "/dev/null", "--user-agent", "lab"]);
        // A second connection of the same curl would find its port taken.
        command.args(["--local-port", &self.port.to_string()]);
    }
}

/// wrk's requests differ in a number of eight digits.
pub(crate) struct Wrk {
    /// How many it has had.
    pub(crate) answers: u64,
    name: String,
    host: String,
    server: SocketAddr,
}

impl Wrk {
    fn target(&self, number: u64) -> String {
        format!("/wrk/{}/{number:08}", self.name)
    }

    fn bytes(&self, target: &str) -> String {
        format!(
            "GET {target} HTTP/1.1\r\nHost: {}\r\nUser-Agent: wrk\r\n\r\n",
            self.host
        )
    }

    /// Runs wrk until it has had `count` answers, for so many seconds at most.
    pub(crate) fn run(
        client: &Host,
        directory: &Path,
        name: &str,
        server: SocketAddr,
        count: u64,
        seconds: u32,
    ) -> Self {
        let mut it = Self {
            answers: 0,
            name: name.to_owned(),
            host: host_of(server),
            server,
        };
        let request = it
            .bytes(&it.target(0))
            .replace("00000000", "%08d")
            .replace("\r\n", "\\r\\n");
        let mut script = String::new();
        write!(
            script,
            "local n, answered = 0, 0\n\
             function request() n = n + 1; return string.format(\"{request}\", n) end\n\
             function response() answered = answered + 1; if answered >= {count} then wrk.thread:stop() end end\n"
        )
        .unwrap();
        let file = directory.join(format!("{name}.lua"));
        fs::write(&file, script).unwrap();
        let mut command = client.namespace.command("wrk");
        // It stops asking after `count` answers, but takes all of its time.
        command
            .args(["-t1", "-c8", &format!("-d{seconds}s"), "-s"])
            .arg(&file);
        command.arg(format!("http://{}/", it.host));
        let report = run(&mut command).unwrap();
        let answers = report
            .lines()
            .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
        it.answers = answers.unwrap_or_else(|| panic!("wrk: no count in {report}"));
        it
    }

    /// Its connections by nginx's log. At its end wrk closes connections on which it has asked once more; what nginx
    /// has not logged then may follow ([`Sent::more`]).
    pub(crate) fn connections(&self, log: &[Entry], id: &mut u64) -> Vec<Sent> {
        let prefix = format!("/wrk/{}/", self.name);
        let mut known = Known::default();
        for entry in log
            .iter()
            .filter(|entry| entry.target().starts_with(&prefix))
        {
            known.add(
                entry.target().to_owned(),
                &self.bytes(entry.target()),
                b"",
                id,
            );
        }
        let mut sent = known.connections(log);
        for connection in &mut sent {
            assert_eq!(connection.to, self.server);
            connection.more = self.bytes(&self.target(0)).len() as u64;
        }
        sent
    }

    /// Takes out what was asked last and never logged: at most one a connection, of exactly the right form.
    pub(crate) fn unlogged(&self, log: &[Entry], taken: &mut Vec<Taken>) -> usize {
        let logged: Vec<&str> = log.iter().map(Entry::target).collect();
        let before = taken.len();
        let prefix = format!("GET {}", self.target(0).trim_end_matches('0'));
        taken.retain(|it| {
            let head = String::from_utf8_lossy(&it.head);
            let Some(line) = head
                .starts_with(&prefix)
                .then(|| head.lines().next())
                .flatten()
            else {
                return true;
            };
            let target = line.split(' ').nth(1).unwrap_or_default();
            let of_form = self
                .bytes(target)
                .strip_suffix("\r\n")
                .is_some_and(|all| head.starts_with(all));
            !of_form || !it.body.is_empty() || logged.contains(&target)
        });
        before - taken.len()
    }
}
