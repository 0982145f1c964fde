//! What happens to mirrored copies between the interface and the rebuilder: they are reordered, duplicated, lost.
//!
//! This kernel has no netem, so a relay does it in user space, on the link between load balancer and rebuilder. It
//! takes whole frames from the kernel's real mirroring and hands them on with their outer headers. It is seeded, never
//! holds more than two windows of packets nor one of them longer than [`MAX_HOLD`], and keeps a [`Ledger`] of the
//! stream bytes that were sent and that got through, so that a test knows exactly which requests were touched.
//!
//! A relay that lost something itself would blame the rebuilder. So it counts: what came in, and its copies, were
//! either dropped on purpose or handed on, and neither its socket nor its devices dropped a frame; else
//! [`Relay::stop`] says that the run is void.
//!
//! ```text
//!  nlb ═══ in0 │ take ─▶ drop? copy? tag? ─▶ hold? ─▶ │ out0 ═══ nlb0 rebuilder
//!                 └────────▶ ledger
//! ```

mod copy;
mod ledger;
mod order;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::netns::Namespace;
use crate::network::{RELAY_IN, RELAY_OUT};
use crate::sys;

pub use ledger::{Flow, Ledger, Ranges};
pub use order::{Counts, MAX_HOLD, Perturber, Settings, WINDOW};

/// What may wait in the relay's socket: seconds of what two cores can send.
const RECEIVE_BUFFER: usize = 256 << 20;

/// How long a read waits, which bounds how much longer than [`MAX_HOLD`] a frame is held on a quiet link.
const TICK: Duration = Duration::from_millis(2);

/// The longest frame: the underlay's MTU and more.
const MAX_FRAME: usize = 16 << 10;

/// A running relay, with the namespace that it stands in.
#[derive(Debug)]
pub struct Relay {
    namespace: Namespace,
    stop: Arc<AtomicBool>,
    counts: Arc<Mutex<Counts>>,
    thread: Option<JoinHandle<io::Result<io::Result<End>>>>,
}

/// What is left of a relay.
#[derive(Debug)]
struct End {
    counts: Counts,
    ledger: Ledger,
    kernel_drops: u64,
}

impl Relay {
    /// Begins to hand on what comes in.
    ///
    /// # Errors
    /// Where the sockets cannot be made.
    pub fn start(namespace: Namespace, settings: Settings) -> anyhow::Result<Self> {
        let (from, to) = (namespace.index(RELAY_IN)?, namespace.index(RELAY_OUT)?);
        let (input, output) = namespace.run(|| {
            let input = sys::packet_socket(from, true, RECEIVE_BUFFER, TICK)?;
            Ok::<_, io::Error>((input, sys::packet_socket(to, false, 0, TICK)?))
        })??;
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Mutex::new(Counts::default()));
        let (its_stop, its_counts) = (Arc::clone(&stop), Arc::clone(&counts));
        let thread = namespace.spawn(move || {
            // Before all others, or a busy machine would hold frames longer than any network does.
            sys::run_first();
            carry(
                &input,
                &output,
                Perturber::new(settings),
                &its_stop,
                &its_counts,
            )
        })?;
        Ok(Self {
            namespace,
            stop,
            counts,
            thread: Some(thread),
        })
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it: what it holds is handed on. Its devices stay until it is dropped.
    ///
    /// # Errors
    /// Where anything was lost that it did not mean to lose; the run is void then.
    pub fn stop(&mut self) -> anyhow::Result<(Counts, Ledger)> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the relay is stopped")?;
        let Ok(end) = thread.join() else {
            bail!("the relay panicked");
        };
        let End {
            counts,
            ledger,
            kernel_drops,
        } = end?.context("the relay's sockets")?;
        let (input, output) = (
            self.namespace.counters(RELAY_IN)?,
            self.namespace.counters(RELAY_OUT)?,
        );
        let seen = format!(
            "void: {counts:?}; the kernel dropped {kernel_drops}; in {input:?}; out {output:?}"
        );
        if kernel_drops > 0
            || input.received_dropped > 0
            || output.sent_dropped > 0
            || input.received != counts.received
            || output.sent != counts.handed_on
            || counts.received + counts.duplicated != counts.dropped + counts.handed_on
            || counts.held > 0
        {
            bail!(seen);
        }
        if let Some(flow) = ledger.reused() {
            bail!(
                "void: the connection {flow} was opened twice, so that its bytes cannot be told apart"
            );
        }
        Ok((counts, ledger))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry(
    mut input: &File,
    mut output: &File,
    mut perturber: Perturber,
    stop: &AtomicBool,
    counts: &Mutex<Counts>,
) -> io::Result<End> {
    let mut buffer = vec![0; MAX_FRAME];
    let mut out: Vec<Vec<u8>> = Vec::new();
    loop {
        // Looked at before reading: what had come in by then is read to its end.
        let stopping = stop.load(Ordering::Relaxed);
        let quiet = match input.read(&mut buffer) {
            Ok(length) => {
                let frame = buffer.get(..length).unwrap_or_default().to_vec();
                perturber.take(frame, Instant::now(), &mut out);
                false
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
            Err(error) => return Err(error),
        };
        if quiet && stopping {
            perturber.finish(&mut out);
        } else {
            perturber.tick(Instant::now(), &mut out);
        }
        for frame in out.drain(..) {
            while let Err(error) = output.write(&frame) {
                // ENOBUFS: the device's queue is full, and the frame is still ours.
                if error.raw_os_error() != Some(libc::ENOBUFS) {
                    return Err(error);
                }
                std::thread::yield_now();
            }
        }
        *counts.lock().unwrap_or_else(PoisonError::into_inner) = perturber.counts();
        if quiet && stopping {
            let kernel_drops = u64::from(sys::packet_drops(input)?);
            let (counts, ledger) = perturber.into_parts();
            return Ok(End {
                counts,
                ledger,
                kernel_drops,
            });
        }
    }
}
