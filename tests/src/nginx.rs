//! Real nginx: as the web server of an instance, and (in [`crate::analyser`]) as the analyser.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use crate::network::Host;
use crate::process::{Process, wait_for};

/// How long nginx may take to listen; loading the core rule set takes it a second.
const START: Duration = Duration::from_secs(30);

/// What an nginx is started with.
pub(crate) struct Configuration<'a> {
    /// `load_module` lines and the like.
    pub(crate) main: &'a str,
    /// The content of `http { … }`; it may use `access_log_here`, see [`Nginx::start`].
    pub(crate) http: &'a str,
}

/// A running nginx with an access log of its own.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    access_log: PathBuf,
}

/// One line of the access log.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Entry {
    /// When the answer was finished, in seconds since the epoch.
    pub at: f64,
    /// Number of the connection, unique in one nginx.
    pub connection: u64,
    /// Which request of its connection it is, from 1.
    #[serde(default)]
    pub number: u64,
    /// Who opened it.
    pub client: String,
    /// From which port.
    #[serde(default)]
    pub port: u16,
    /// To which of the server's addresses.
    #[serde(default)]
    pub server: String,
    /// The request line as it came.
    pub line: String,
    /// Status of the answer.
    pub status: u16,
    /// What nginx reads as `X-Real-IP`; empty where it reads none.
    #[serde(default)]
    pub real_ip: String,
    /// `X-Server-Addr`, a blank, `X-Server-Port`, in the same way.
    #[serde(default)]
    pub original: String,
    /// `X-Mirror-Flags`, in the same way.
    #[serde(default)]
    pub flags: String,
}

impl Entry {
    /// Everything before the first space of the request line.
    #[must_use]
    pub fn method(&self) -> &str {
        self.line
            .split_once(' ')
            .map_or(&self.line, |(method, _)| method)
    }

    /// Everything between the first and the last space of the request line.
    #[must_use]
    pub fn target(&self) -> &str {
        let rest = self.line.split_once(' ').map_or("", |(_, rest)| rest);
        rest.rsplit_once(' ').map_or(rest, |(target, _)| target)
    }
}

impl Nginx {
    /// A web server on port 80 of both families that reads every request whole and answers 200 to all.
    ///
    /// # Errors
    /// Where nginx does not start.
    pub fn web_server(host: &Host, name: &str, directory: &Path) -> anyhow::Result<Self> {
        let http = "client_max_body_size 64m; keepalive_requests 100000; keepalive_timeout 60s;\n\
                    server { listen 80; listen [::]:80; location / { return 200 \"ok\\n\"; } }";
        let listens = SocketAddr::from(([127, 0, 0, 1], 80));
        Self::start(
            host,
            name,
            directory,
            &Configuration { main: "", http },
            listens,
        )
    }

    /// An analyser that inspects nothing: port 80 as nginx is by default, port 81 with `underscores_in_headers on`.
    ///
    /// # Errors
    /// Where nginx does not start.
    pub fn plain_analyser(host: &Host, name: &str, directory: &Path) -> anyhow::Result<Self> {
        let http = "keepalive_requests 1000000; keepalive_timeout 600s;\n\
                    server { listen 80 backlog=4096; location / { return 200 \"ok\\n\"; } }\n\
                    server { listen 81; underscores_in_headers on; location / { return 200 \"ok\\n\"; } }";
        let listens = SocketAddr::from(([127, 0, 0, 1], 80));
        Self::start(
            host,
            name,
            directory,
            &Configuration { main: "", http },
            listens,
        )
    }

    /// An analyser that answers so many requests on a connection (nginx's default is 1,000), says that it closes behind
    /// those to `/close/…`, and closes on those to `/drop/…` without a word. Its log is short, because there may be
    /// millions of lines: [`Nginx::deliveries`].
    ///
    /// # Errors
    /// Where nginx does not start.
    pub fn closing_analyser(
        host: &Host,
        name: &str,
        directory: &Path,
        keepalive_requests: u32,
    ) -> anyhow::Result<Self> {
        let log = directory.join(name).join("deliveries.log");
        let http = format!(
            "log_format short '$connection $request_uri $http_x_real_ip $status'; access_log {} short;\n\
             keepalive_requests {keepalive_requests}; keepalive_timeout 600s;\n\
             server {{ listen 80 backlog=4096;\n\
             location / {{ return 200 \"ok\\n\"; }}\n\
             location /close/ {{ keepalive_timeout 0; return 200 \"ok\\n\"; }}\n\
             location /drop/ {{ return 444; }} }}",
            log.display()
        );
        let listens = SocketAddr::from(([127, 0, 0, 1], 80));
        let configuration = Configuration {
            main: "",
            http: &http,
        };
        let nginx = Self::start(host, name, directory, &configuration, listens)?;
        Ok(Self {
            access_log: log,
            ..nginx
        })
    }

    /// An analyser for many requests: its log has for each its target, its status, its `Content-Length` and
    /// `X-Mirror-Flags` or `-`: [`Nginx::deliveries`].
    ///
    /// # Errors
    /// Where nginx does not start.
    pub fn counting_analyser(host: &Host, name: &str, directory: &Path) -> anyhow::Result<Self> {
        let log = directory.join(name).join("deliveries.log");
        let http = format!(
            "map $http_x_mirror_flags $flags {{ '' '-'; default $http_x_mirror_flags; }}\n\
             log_format counts '$request_uri $status $content_length $flags'; access_log {} counts buffer=64k flush=1s;\n\
             keepalive_requests 1000000; keepalive_timeout 600s; client_max_body_size 64m;\n\
             server {{ listen 80 backlog=4096; location / {{ return 200 \"ok\\n\"; }} }}",
            log.display()
        );
        let listens = SocketAddr::from(([127, 0, 0, 1], 80));
        let configuration = Configuration {
            main: "",
            http: &http,
        };
        let nginx = Self::start(host, name, directory, &configuration, listens)?;
        Ok(Self {
            access_log: log,
            ..nginx
        })
    }

    /// What a [`Nginx::closing_analyser`] has logged: for each request its connection, target, `X-Real-IP` and status.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn deliveries(&self) -> anyhow::Result<impl Iterator<Item = io::Result<String>>> {
        let path = &self.access_log;
        let file = fs::File::open(path).with_context(|| path.display().to_string())?;
        // The check that it listens has no request.
        let request = |line: &io::Result<String>| line.as_ref().map_or(true, |l| l.contains('/'));
        Ok(BufReader::new(file).lines().filter(request))
    }

    /// Starts nginx in `DIRECTORY/NAME`, whose access log goes on where one of that name ended.
    pub(crate) fn start(
        host: &Host,
        name: &str,
        directory: &Path,
        configuration: &Configuration<'_>,
        listens: SocketAddr,
    ) -> anyhow::Result<Self> {
        let home = directory.join(name);
        fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
        let at = home.display();
        let mut text = String::new();
        write!(
            text,
            "{}\ndaemon off; worker_processes 1; user root; pid {at}/pid; error_log {at}/error.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n\
             log_format entry escape=json '{{\"at\":$msec,\"connection\":$connection,\"number\":$connection_requests,\
             \"client\":\"$remote_addr\",\"port\":$remote_port,\"server\":\"$server_addr\",\
             \"line\":\"$request\",\"status\":$status,\
             \"real_ip\":\"$http_x_real_ip\",\"original\":\"$http_x_server_addr $http_x_server_port\",\
             \"flags\":\"$http_x_mirror_flags\"}}';\n\
             access_log {at}/access.log entry;\n\
             client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
             uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
             {}\n}}\n",
            configuration.main, configuration.http
        )?;
        let file = home.join("nginx.conf");
        fs::write(&file, text)?;
        let mut command = host.namespace.command("nginx");
        // Before it has read its configuration nginx complains about /var/log/nginx to where -e says.
        command
            .arg("-p")
            .arg(&home)
            .arg("-e")
            .arg(home.join("error.log"))
            .arg("-c")
            .arg(&file);
        let mut process = Process::start(name, command, directory)?;
        wait_for(&format!("nginx {name} listens"), START, || {
            process
                .must_be_running()
                .with_context(|| crate::process::tail(&home.join("error.log"), 2000))?;
            let connected = host
                .namespace
                .run(|| TcpStream::connect_timeout(&listens, Duration::from_secs(1)))?;
            Ok(connected.is_ok().then_some(()))
        })?;
        Ok(Self {
            process,
            access_log: home.join("access.log"),
        })
    }

    /// The access log so far, in the order in which answers were finished. Connections without a request line
    /// (the check that it listens is one) are left out.
    ///
    /// # Errors
    /// Where the file cannot be read, or a line is not ours.
    pub fn access_log(&self) -> anyhow::Result<Vec<Entry>> {
        lines_of(&self.access_log)?
            .iter()
            .map(|line| serde_json::from_str(line).with_context(|| format!("access log: {line}")))
            .filter(|entry: &anyhow::Result<Entry>| {
                entry.as_ref().map_or(true, |entry| !entry.line.is_empty())
            })
            .collect()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The whole lines of a log that may be growing. Bytes that are not UTF-8 stand as the code point of the same number.
pub(crate) fn lines_of(path: &Path) -> anyhow::Result<Vec<String>> {
    let mut bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let whole = bytes
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |last| last + 1);
    bytes.truncate(whole);
    let text = String::from_utf8(bytes).unwrap_or_else(|not_utf8| {
        not_utf8
            .into_bytes()
            .iter()
            .map(|&byte| char::from(byte))
            .collect()
    });
    Ok(text.lines().map(ToOwned::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_with_spaces_is_all_between_the_first_and_the_last() {
        let entry = Entry {
            line: "GET /a b c HTTP/1.1".to_owned(),
            ..Entry::default()
        };
        assert_eq!((entry.method(), entry.target()), ("GET", "/a b c"));
    }
}
