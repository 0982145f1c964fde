//! The requests of the demo: ordinary ones, and attacks.

use std::net::SocketAddr;
use std::path::Path;

use lab::client::{Connection, body_file, curl};
use lab::network::Host;

/// The name in every `Host` header; the core rule set dislikes addresses there.
const HOST: &str = "Host: shop.example";

/// One thing that a client does.
pub(crate) struct Shot {
    pub(crate) what: &'static str,
    pub(crate) hostile: bool,
    how: How,
    /// The requests that it puts on the wire, in order.
    pub(crate) wire: Vec<Wire>,
}

/// A request as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wire {
    pub(crate) method: &'static str,
    pub(crate) target: String,
}

enum How {
    /// Arguments for curl; each item of `wire` is a target behind them, fetched over one connection.
    Curl(Vec<String>),
    /// Bytes on a bare connection, for what curl refuses to send.
    Raw(Vec<u8>),
}

impl Shot {
    /// Does it.
    ///
    /// # Errors
    /// Where the instance does not answer at all. Which answer it gives is the instance's business.
    pub(crate) fn fire(&self, client: &Host, server: SocketAddr) -> anyhow::Result<()> {
        match &self.how {
            How::Curl(arguments) => {
                let mut all: Vec<&str> = vec!["-H", HOST, "--path-as-is", "--globoff"];
                all.extend(arguments.iter().map(String::as_str));
                // curl takes one place for the output of each URL.
                let urls: Vec<String> = self
                    .wire
                    .iter()
                    .map(|wire| format!("http://{server}{}", wire.target))
                    .collect();
                for (index, url) in urls.iter().enumerate() {
                    if index > 0 {
                        all.extend(["--output", "/dev/null"]);
                    }
                    all.push(url);
                }
                if self.wire.len() > 1 {
                    all.extend(["--write-out", ""]);
                    let mut command = client.namespace.command("curl");
                    command
                        .args([
                            "--silent",
                            "--show-error",
                            "--output",
                            "/dev/null",
                            "--max-time",
                            "30",
                        ])
                        .args(all);
                    lab::process::run(&mut command)?;
                } else {
                    curl(client, &all)?;
                }
            }
            How::Raw(bytes) => {
                let mut connection = Connection::open(client, server)?;
                connection.send(bytes)?;
                connection.finish()?;
            }
        }
        Ok(())
    }
}

/// Everything that is sent to one instance. `round` makes the targets unique; a large body is put into `directory`.
///
/// # Errors
/// Where that cannot be written.
pub(crate) fn volley(round: usize, directory: &Path) -> anyhow::Result<Vec<Shot>> {
    let mut next = 0;
    let mut target = move |rest: &str| {
        next += 1;
        format!("/{round}-{next}{rest}")
    };
    let mut shots = Vec::new();
    let mut by_curl = |what, hostile, method, targets: Vec<String>, arguments: &[&str]| {
        shots.push(Shot {
            what,
            hostile,
            how: How::Curl(
                arguments
                    .iter()
                    .map(|&argument| argument.to_owned())
                    .collect(),
            ),
            wire: targets
                .into_iter()
                .map(|target| Wire { method, target })
                .collect(),
        });
    };
    by_curl("a page", false, "GET", vec![target("/index.html")], &[]);
    by_curl(
        "a search",
        false,
        "GET",
        vec![target("/search?q=blue+shoes&page=2")],
        &[],
    );
    let keep_alive = (0..5).map(|_| target("/picture.png")).collect();
    by_curl(
        "five pictures over one connection",
        false,
        "GET",
        keep_alive,
        &[],
    );
    by_curl(
        "a form",
        false,
        "POST",
        vec![target("/order")],
        &["--data", "item=42&colour=blue"],
    );
    let json = [
        "-H",
        "Content-Type: application/json",
        "--data",
        r#"{"item": 42, "gift": true}"#,
    ];
    by_curl("JSON", false, "POST", vec![target("/api/cart")], &json);
    // A file, because a command line holds no more than 128 KiB in one argument.
    let large = body_file(directory, "upload", "well-made ".repeat(20_000).as_bytes())?;
    let chunked = [
        "-H",
        "Transfer-Encoding: chunked",
        "--data-binary",
        large.as_str(),
    ];
    by_curl(
        "200 kB in chunks",
        false,
        "POST",
        vec![target("/upload")],
        &chunked,
    );

    by_curl(
        "SQL injection in the query",
        true,
        "GET",
        vec![target("/item?id=1%27%20OR%20%271%27=%271")],
        &[],
    );
    let union = [
        "--data",
        "user=x' UNION SELECT login,password FROM users-- -",
    ];
    by_curl(
        "SQL injection in a form",
        true,
        "POST",
        vec![target("/login")],
        &union,
    );
    by_curl(
        "script in the query",
        true,
        "GET",
        vec![target("/hello?name=%3Cscript%3Ealert(1)%3C/script%3E")],
        &[],
    );
    let script = [
        "-H",
        "Content-Type: application/json",
        "--data",
        r#"{"comment": "<img src=x onerror=alert(1)>"}"#,
    ];
    by_curl(
        "script in JSON",
        true,
        "POST",
        vec![target("/api/comment")],
        &script,
    );
    by_curl(
        "traversal in the query",
        true,
        "GET",
        vec![target("/show?file=../../../../etc/passwd")],
        &[],
    );
    by_curl(
        "traversal above the root",
        true,
        "GET",
        vec![target("/../../../etc/passwd")],
        &[],
    );
    by_curl(
        "a shell command in the query",
        true,
        "GET",
        vec![target("/ping?host=1.1.1.1;cat%20/etc/passwd")],
        &[],
    );

    // The instance takes 16 MB, the analyser's nginx 2 MB.
    let huge = body_file(directory, "huge", "well-made ".repeat(300_000).as_bytes())?;
    by_curl(
        "an upload that is larger than the analyser takes",
        true,
        "POST",
        vec![target("/upload")],
        &["--data-binary", huge.as_str()],
    );

    let (outer, inner) = (target("/search"), target("/admin"));
    let hidden = format!("GET {inner} HTTP/1.1\r\n{HOST}\r\n\r\n");
    let body = format!("0\r\n\r\n{hidden}");
    shots.push(Shot {
        what: "a smuggled request (Content-Length and Transfer-Encoding)",
        hostile: true,
        how: How::Raw(
            format!(
                "POST {outer} HTTP/1.1\r\n{HOST}\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n{body}",
                body.len()
            )
            .into_bytes(),
        ),
        wire: vec![Wire { method: "POST", target: outer }, Wire { method: "GET", target: inner }],
    });
    let odd = target("/search");
    shots.push(Shot {
        what: "an unknown Transfer-Encoding",
        hostile: true,
        how: How::Raw(
            format!("POST {odd} HTTP/1.1\r\n{HOST}\r\nTransfer-Encoding: xchunked\r\nContent-Length: 3\r\n\r\nabc")
                .into_bytes(),
        ),
        wire: vec![Wire { method: "POST", target: odd }],
    });
    Ok(shots)
}
