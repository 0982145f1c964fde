//! `GET /healthz` and `GET /metrics`, on a thread of their own.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, oneshot};

use super::metrics::CONTENT_TYPE as OPENMETRICS;
use super::{Health, Metrics};

/// Connections served at once; further ones wait in the listen queue.
const CONNECTIONS_MAX: usize = 64;
/// A head larger than this is refused.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// For a head to arrive whole, and between two requests of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the admin endpoint listens.
#[derive(Clone, Debug)]
pub struct AdminOptions {
    /// `--admin`; default 0.0.0.0:9445. Port 0 takes a free one.
    pub listen: SocketAddr,
}

impl Default for AdminOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 9445)),
        }
    }
}

/// Why there is no admin endpoint. The message is one line and ends with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Another process listens there.
    #[error("--admin {0}: another process listens on this port; stop it, or choose another port")]
    InUse(SocketAddr),
    /// A port below 1024 without the capability.
    #[error("--admin {0}: not permitted; choose a port above 1023, or grant CAP_NET_BIND_SERVICE")]
    NotPermitted(SocketAddr),
    /// No interface of this machine has the address.
    #[error(
        "--admin {0}: no interface of this machine has this address; use one that it has, or 0.0.0.0"
    )]
    NoSuchAddress(SocketAddr),
    /// Anything else.
    #[error("--admin {0}: cannot listen: {1}; choose another address or port")]
    Listen(SocketAddr, #[source] io::Error),
    /// The thread or its runtime could not be made.
    #[error("cannot start the admin thread: {0}; check the limits on threads and open files")]
    Start(#[source] io::Error),
}

/// A bound admin endpoint: made early, so that a port in use is said before anything starts.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl AdminServer {
    /// Binds and listens; nothing is answered before [`AdminServer::start`].
    ///
    /// # Errors
    /// [`AdminError`], naming the address and the remedy.
    pub fn bind(options: &AdminOptions) -> Result<Self, AdminError> {
        let at = options.listen;
        let listen = || {
            let listener = TcpListener::bind(at)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        listen().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => AdminError::InUse(at),
            io::ErrorKind::PermissionDenied => AdminError::NotPermitted(at),
            io::ErrorKind::AddrNotAvailable => AdminError::NoSuchAddress(at),
            _ => AdminError::Listen(at, error),
        })
    }

    /// Where it listens: with port 0 asked for, the port that was given.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the handle is dropped, on one thread of its own.
    ///
    /// # Errors
    /// [`AdminError::Start`] when the thread cannot be made.
    pub fn start(
        self,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
    ) -> Result<AdminHandle, AdminError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(AdminError::Start)?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(self.listener).map_err(AdminError::Start)?
        };
        let (stop, stopped) = oneshot::channel::<Infallible>();
        let thread = std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, health, metrics) => {}
                        _ = stopped => {}
                    }
                });
            })
            .map_err(AdminError::Start)?;
        Ok(AdminHandle {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// Keeps the endpoint alive; dropping it ends the thread.
#[derive(Debug)]
pub struct AdminHandle {
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for AdminHandle {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there; here is nothing to add.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, health: Arc<Health>, metrics: Arc<Metrics>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed, so this loop ends only with the runtime.
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: waiting is all that helps, and a busy loop would not.
                tracing::warn!(%error, "admin endpoint cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (health, metrics) = (Arc::clone(&health), Arc::clone(&metrics));
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = respond(&request, &health, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "admin connection ended");
            }
            drop(slot);
        });
    }
}

fn respond(
    request: &Request<Incoming>,
    health: &Health,
    metrics: &Metrics,
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD\n".to_owned(),
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => {
            let status = health.status(Instant::now());
            let code = StatusCode::from_u16(status.http_status())
                .unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            plain(code, format!("{status}\n"))
        }
        "/metrics" => match metrics.encode() {
            Ok(text) => {
                let mut response = plain(StatusCode::OK, text);
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS));
                response
            }
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        _ => plain(
            StatusCode::NOT_FOUND,
            "there are /healthz and /metrics\n".to_owned(),
        ),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;
    use crate::telemetry::{PacketOutcome, WorkerCounters};

    fn loopback() -> AdminOptions {
        AdminOptions {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }

    fn ask(at: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(at).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(at: SocketAddr, path: &str) -> String {
        ask(
            at,
            &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        )
    }

    #[test]
    fn health_and_metrics_over_a_real_socket() {
        let server = AdminServer::bind(&loopback()).unwrap();
        let at = server.address();
        let health = Arc::new(Health::new(1, Instant::now()));
        let counters = Arc::new(WorkerCounters::default());
        counters.packets(PacketOutcome::NotIp, 42);
        assert!(counters.publish());
        let metrics = Arc::new(Metrics::new(vec![counters]));
        let handle = server.start(Arc::clone(&health), metrics).unwrap();

        let answer = get(at, "/healthz");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nstarting\n"), "{answer}");
        health.ready();
        let answer = get(at, "/healthz");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let answer = get(at, "/metrics");
        assert!(answer.contains(OPENMETRICS), "{answer}");
        assert!(
            answer.contains("rebuilder_packets_total{outcome=\"not_ip\"} 42\n"),
            "{answer}"
        );
        assert!(get(at, "/else").starts_with("HTTP/1.1 404 "));
        let answer = ask(
            at,
            "POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        );
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        health.drain();
        assert!(get(at, "/healthz").starts_with("HTTP/1.1 503 "));

        drop(handle);
        assert!(
            TcpStream::connect(at).is_err(),
            "nobody listens after the drop"
        );
    }

    #[test]
    fn a_port_in_use_is_one_line_with_the_port_and_the_remedy() {
        let first = AdminServer::bind(&loopback()).unwrap();
        let taken = first.address();
        let error = AdminServer::bind(&AdminOptions { listen: taken }).unwrap_err();
        let line = error.to_string();
        assert!(line.contains(&taken.to_string()), "{line}");
        assert!(line.contains("another process listens"), "{line}");
        assert!(!line.contains('\n'));
    }

    #[test]
    fn an_address_that_no_interface_has_is_said() {
        // 192.0.2.0/24 is for documentation (RFC 5737).
        let listen = SocketAddr::from(([192, 0, 2, 1], 0));
        let error = AdminServer::bind(&AdminOptions { listen }).unwrap_err();
        assert!(matches!(error, AdminError::NoSuchAddress(_)), "{error}");
    }
}
