//! Clients of the instances: curl, wrk, and a bare connection for what neither would send.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use socket2::{Domain, SockRef, Socket, Type};

use crate::network::Host;
use crate::process;
use crate::sys;

/// How long a client waits for an instance.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs curl with these arguments and gives the status of the answer. The answer's body is thrown away.
///
/// # Errors
/// Where no answer came.
pub fn curl(client: &Host, arguments: &[&str]) -> anyhow::Result<u16> {
    let mut command = client.namespace.command("curl");
    command.args([
        "--silent",
        "--show-error",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
    ]);
    command.args(["--max-time", "30"]).args(arguments);
    let status = process::run(&mut command)?;
    status
        .trim()
        .parse()
        .with_context(|| format!("curl: status {status:?}"))
}

/// Runs wrk for `seconds` with these many connections, and gives the number of answers it counted.
///
/// # Errors
/// Where wrk fails or its report holds no count.
pub fn wrk(client: &Host, url: &str, connections: u32, seconds: u32) -> anyhow::Result<u64> {
    let mut command = client.namespace.command("wrk");
    command.args([
        "-t1",
        &format!("-c{connections}"),
        &format!("-d{seconds}s"),
        url,
    ]);
    let report = process::run(&mut command)?;
    let count = report
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    count.with_context(|| format!("wrk: no count in {report}"))
}

/// A bare TCP connection.
#[derive(Debug)]
pub struct Connection(TcpStream);

impl Connection {
    /// Opens one from `client`.
    ///
    /// # Errors
    /// Where the server does not accept it.
    pub fn open(client: &Host, server: SocketAddr) -> anyhow::Result<Self> {
        let stream = client
            .namespace
            .run(|| TcpStream::connect_timeout(&server, PATIENCE))?
            .with_context(|| server.to_string())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Opens one from the address `local`, whose port must be free. For a thread that is in the client's namespace.
    ///
    /// # Errors
    /// Where the port is taken or the server does not accept.
    pub fn from_address(local: SocketAddr, server: SocketAddr) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
        socket
            .bind(&local.into())
            .with_context(|| local.to_string())?;
        socket
            .connect_timeout(&server.into(), PATIENCE)
            .with_context(|| server.to_string())?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Bytes that fit into one segment now.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn segment_size(&self) -> io::Result<usize> {
        let mss = SockRef::from(&self.0).tcp_mss()?;
        usize::try_from(mss).map_err(io::Error::other)
    }

    /// Sends these bytes.
    ///
    /// # Errors
    /// Where the server has closed.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Waits until the peer has everything that was sent, so that what is sent next shares no segment with it.
    ///
    /// # Errors
    /// Where it has not after ten seconds.
    pub fn acknowledged(&self) -> anyhow::Result<()> {
        process::wait_for("all is acknowledged", PATIENCE, || {
            Ok((sys::unacknowledged(&self.0)? == 0).then_some(()))
        })
    }

    /// Reads `count` answers that have a Content-Length, and gives their statuses.
    ///
    /// # Errors
    /// Where the connection ends before, or an answer is not of that kind.
    pub fn answers(&mut self, count: usize) -> anyhow::Result<Vec<u16>> {
        let mut statuses = Vec::new();
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 * 1024];
        while statuses.len() < count {
            match answer(&bytes)? {
                Some((status, length)) => {
                    statuses.push(status);
                    bytes.drain(..length);
                }
                None => match self.0.read(&mut buffer)? {
                    0 => bail!(
                        "the server closed after {} of {count} answers",
                        statuses.len()
                    ),
                    length => bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
                },
            }
        }
        Ok(statuses)
    }

    /// Ends the writing side and reads everything until the server closes, too.
    ///
    /// # Errors
    /// Where it does not.
    pub fn finish(mut self) -> io::Result<Vec<u8>> {
        self.0.shutdown(std::net::Shutdown::Write)?;
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// The status and the whole length of the answer at the beginning of `bytes`, once it is there.
fn answer(bytes: &[u8]) -> anyhow::Result<Option<(u16, usize)>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("no status")?;
    let length: usize = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .context("an answer without Content-Length")?;
    let whole = end + 4 + length;
    Ok((bytes.len() >= whole).then_some((status, whole)))
}

/// Writes a file that curl can send (`--data-binary @FILE`).
///
/// # Errors
/// What the file system says.
pub fn body_file(directory: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<String> {
    let path = directory.join(name);
    std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    Ok(format!("@{}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\nHTTP/1.1 4";
        assert_eq!(answer(text).unwrap(), Some((200, 41)));
        assert_eq!(answer(&text[..40]).unwrap(), None);
        assert_eq!(answer(&text[..20]).unwrap(), None);
    }
}
