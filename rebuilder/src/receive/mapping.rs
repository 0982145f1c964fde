//! Files in memory, and what is done where a part of one goes away: the signal SIGBUS comes to whoever reads a page that
//! the file does not have any more, or that the disk does not give.
//!
//! [`on_bus_error`] puts zeros there and writes down that it did, so that whoever reads must ask [`Mapping::lost`] whether
//! what was read was the file. It knows the mappings of this process from [`PLACES`].

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst, compiler_fence};

use libc::{c_int, c_void, siginfo_t};

/// Bytes of a file, mapped read-only.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    place: &'static Place,
}

// SAFETY: the mapping belongs to the process, not to a thread; it is read only.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from `from` on, a multiple of [`page`], and has all of them brought in that can be, so
    /// that none costs a page fault later.
    ///
    /// # Errors
    /// What the kernel says: not every file can be mapped. `ResourceBusy` where there are [`MOST`] mappings.
    pub(super) fn new(file: &File, from: u64, len: usize) -> io::Result<Self> {
        if !handler_stands() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
        // SAFETY: a new mapping at a place that the kernel chooses, so over nothing that is in use.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                file.as_raw_fd(),
                from,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // Exposed, for the handler has nothing but an address.
        let first = start.as_ptr().expose_provenance();
        let Some(place) = Place::take(first, first + len.next_multiple_of(page())) else {
            // SAFETY: exactly what was mapped above, and nobody has a reference into it.
            unsafe { libc::munmap(start.as_ptr().cast(), len) };
            return Err(io::ErrorKind::ResourceBusy.into());
        };
        Ok(Self { start, len, place })
    }

    /// The bytes: those of the file only where [`Mapping::lost`], asked behind reading them, says nothing else.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: within the mapping, which lives as long as `self`; any byte is a `u8`. Nothing in this process writes
        // there but `on_bus_error`, and that only where reading would have ended the process. Others may write to the
        // file or shorten it meanwhile, which Rust's memory model does not allow and no lock prevents. It is borne, as
        // every program bears it that reads mapped files: what is read is bytes, never pointers, and a length or place
        // found in them is held against this slice's own length before it is used; so what changes meanwhile is read
        // as a damaged file.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// From where on there are zeros instead of the file, if from anywhere.
    pub(super) fn lost(&self) -> Option<usize> {
        // What was read before stays before.
        compiler_fence(SeqCst);
        let lost = self.place.lost.load(SeqCst);
        (lost != NOTHING).then(|| lost - self.start.addr().get())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First: what stands at these addresses later is not ours.
        self.place.give_back();
        // SAFETY: exactly what `new` mapped, and nobody has a reference into it any more. It cannot fail for that.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Bytes of a page.
pub(super) fn page() -> usize {
    // SAFETY: no pointers; a handler may call it too (signal-safety(7)).
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

/// How many mappings there may be at once.
pub(super) const MOST: usize = 32;

/// Of this process: a handler can ask for no memory and wait for no lock.
static PLACES: [Place; MOST] = [const { Place::free() }; MOST];

/// No address.
const NOTHING: usize = usize::MAX;

/// Where a mapping stands.
///
/// The handler runs in a thread that reads a mapping of its own, which therefore stays as it is for as long; but the
/// other places change meanwhile. Each access is `SeqCst`, so all of them are in one order. `from` and `to` are written
/// only while `turn` is even, and `turn` never comes back to what it was: two equal odd ones around them mean that they belong together.
#[derive(Debug)]
struct Place {
    taken: AtomicBool,
    /// Odd while there is a mapping.
    turn: AtomicUsize,
    from: AtomicUsize,
    to: AtomicUsize,
    /// From where on zeros were put, or [`NOTHING`].
    lost: AtomicUsize,
}

impl Place {
    const fn free() -> Self {
        Self {
            taken: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
            from: AtomicUsize::new(0),
            to: AtomicUsize::new(0),
            lost: AtomicUsize::new(NOTHING),
        }
    }

    /// A place that is free, for a mapping of these addresses.
    fn take(from: usize, to: usize) -> Option<&'static Self> {
        let place = PLACES.iter().find(|p| !p.taken.swap(true, SeqCst))?;
        place.from.store(from, SeqCst);
        place.to.store(to, SeqCst);
        place.lost.store(NOTHING, SeqCst);
        place.turn.fetch_add(1, SeqCst);
        Some(place)
    }

    /// The mapping is there no longer.
    fn give_back(&self) {
        self.turn.fetch_add(1, SeqCst);
        self.taken.store(false, SeqCst);
    }

    /// Puts zeros from the page of `at` to the end of the mapping; `false` where it is not this one's.
    fn cover(&self, at: usize) -> bool {
        let turn = self.turn.load(SeqCst);
        let (from, to) = (self.from.load(SeqCst), self.to.load(SeqCst));
        let sound = turn & 1 == 1 && self.turn.load(SeqCst) == turn;
        if !sound || at < from || at >= to {
            return false;
        }
        let first = at & !page().wrapping_sub(1);
        self.lost.fetch_min(first, SeqCst);
        // SAFETY: over pages of a mapping of ours and nothing else: whoever reads it is interrupted here and holds it.
        // They were readable bytes before as they are now. mmap is a plain system call, and safe in a handler on Linux.
        let zeros = unsafe {
            libc::mmap(
                ptr::with_exposed_provenance_mut(first),
                to.wrapping_sub(first),
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        zeros != libc::MAP_FAILED
    }
}

/// What was done about SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Whether [`on_bus_error`] is there; puts it there the first time.
fn handler_stands() -> bool {
    static STANDS: OnceLock<bool> = OnceLock::new();
    *STANDS.get_or_init(|| {
        // SAFETY: all bytes zero is a sigaction: the default action, no flags, an empty mask.
        let (mut before, mut ours): (libc::sigaction, libc::sigaction) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        // SAFETY: `before` is writable for a sigaction; nothing is changed.
        if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) } != 0 {
            return false;
        }
        // The handler must find it from the first signal on.
        BEFORE.get_or_init(|| before);
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_bus_error;
        ours.sa_sigaction = handler as *const () as usize;
        // On the stack that Rust's threads have for signals, where there is one.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler is of the kind that SA_SIGINFO says, and does only what a handler may.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) == 0 }
    })
}

/// Puts zeros where a page of a mapping of ours is gone. Any other SIGBUS goes to whoever had it before.
extern "C" fn on_bus_error(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel gives a siginfo with each signal. It holds an address where a fault was the cause.
    let (code, at) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    if code == libc::BUS_ADRERR && PLACES.iter().any(|place| place.cover(at)) {
        return;
    }
    if let Some(before) = BEFORE.get() {
        // SAFETY: what the kernel gave as the action that stood. What faulted faults again, and comes to it.
        unsafe { libc::sigaction(signal, ptr::from_ref(before), ptr::null_mut()) };
    }
    // A process sent it (kill(2)), so nothing brings it again.
    if code <= 0 {
        // SAFETY: no pointers; the signal waits until this handler has returned.
        unsafe { libc::raise(signal) };
    }
}
