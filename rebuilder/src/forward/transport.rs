//! A nonblocking byte stream to the analyser: TCP, or TLS over it. Every call returns at once; `WouldBlock` means that
//! the next readiness event will tell.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::event::Source;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ClientConnection;
use socket2::SockRef;

use super::tls::Connector;

/// See the module.
#[derive(Debug)]
pub(super) struct Transport {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Transport {
    /// Begins to connect; [`Transport::establish`] tells when that is done.
    ///
    /// # Errors
    /// What the kernel or rustls says at once.
    pub(super) fn open(
        address: SocketAddr,
        tls: Option<&Connector>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let tls = match tls {
            Some(connector) => Some(Box::new(connector.session().map_err(io::Error::other)?)),
            None => None,
        };
        let mut stream = TcpStream::connect(address)?;
        // Batches are made here: waiting for more would only delay the last segment of one.
        stream.set_nodelay(true)?;
        stream.register(registry, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { stream, tls })
    }

    /// Goes on connecting: `true` when requests can be written.
    ///
    /// # Errors
    /// Why there will be no connection.
    pub(super) fn establish(&mut self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
            Err(error) => return Err(error),
        }
        let Some(tls) = &mut self.tls else {
            return Ok(true);
        };
        while tls.is_handshaking() {
            let moved = if tls.wants_write() {
                tls.write_tls(&mut self.stream)
            } else {
                read_tls(tls, &mut self.stream)
            };
            match moved {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Writes the beginning of `slices`; says how many bytes of them are taken care of.
    ///
    /// # Errors
    /// `WouldBlock`, or why the connection is broken.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.stream.write_vectored(slices);
        };
        let taken = tls.writer().write_vectored(slices)?;
        match self.flush() {
            Ok(true) => Ok(taken),
            // rustls holds a bounded buffer: when it took nothing, only the socket can help.
            Ok(false) if taken == 0 => Err(io::ErrorKind::WouldBlock.into()),
            Ok(false) => Ok(taken),
            Err(error) => Err(error),
        }
    }

    /// Whether [`Transport::flush`] has something to do.
    pub(super) fn wants_flush(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Moves buffered TLS records to the socket: `true` when none is left.
    ///
    /// # Errors
    /// Why the connection is broken.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                match tls.write_tls(&mut self.stream) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(true)
    }

    /// Reads; 0 at the end. Says too whether nothing is left, so that what comes next raises an event: a read that leaves
    /// room in the buffer shows it (epoll(7), question 9), and spares the call that would be told `WouldBlock`.
    ///
    /// # Errors
    /// `WouldBlock`, or why the connection is broken.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        let Some(tls) = &mut self.tls else {
            let read = self.stream.read(buffer)?;
            return Ok((read, read < buffer.len()));
        };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A close without close_notify. Each answer's own framing says whether it is whole.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok((0, false));
                }
                // rustls may hold more, and the socket too.
                read => return Ok((read?, false)),
            }
            read_tls(tls, &mut self.stream)?;
        }
    }

    /// Ends our side; the answer can still come. What is buffered must have been flushed.
    ///
    /// # Errors
    /// Why the connection is broken.
    pub(super) fn shut_write(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            if !self.flush()? {
                // The alert stays behind in the buffer: the FIN below says the same.
                tracing::trace!("no room for close_notify");
            }
        }
        self.stream.shutdown(Shutdown::Write)
    }

    /// No more events; the connection is closed.
    ///
    /// With `abort` it is reset where the peer has all that was written: who closes first keeps the port in `TIME_WAIT`
    /// for a minute, and some hundred connections a second for one request each would use up all ports.
    pub(super) fn close(mut self, registry: &Registry, abort: bool) {
        if abort && self.unacknowledged() == Some(0) {
            // Where it fails the connection is closed as usual.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
        // It fails only for a socket that epoll does not know, and then there is nothing to undo.
        let _ = self.stream.deregister(registry);
    }

    /// Bytes that were written and that the peer's kernel has not acknowledged.
    fn unacknowledged(&self) -> Option<libc::c_int> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open, and TIOCOUTQ (tcp(7): SIOCOUTQ) writes one int, to where there is one.
        let result =
            unsafe { libc::ioctl(self.stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        (result == 0).then_some(bytes)
    }
}

/// Takes TLS records from the socket. 0 at the end, which rustls then reports to its reader.
fn read_tls(tls: &mut ClientConnection, stream: &mut TcpStream) -> io::Result<usize> {
    let read = tls.read_tls(stream)?;
    if let Err(error) = tls.process_new_packets() {
        // The alert that says why; whether it still gets out does not matter.
        let _ = tls.write_tls(stream);
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    Ok(read)
}
