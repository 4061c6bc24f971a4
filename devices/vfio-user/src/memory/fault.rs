//! What happens when the client shrinks a file that is mapped here.
//!
//! Touching a page that has no file behind it raises SIGBUS, which ends the process unless somebody handles it. Around each
//! copy the thread says which mapping it touches; the handler puts empty pages where that mapping has lost its file, and
//! notes from where on it did so. The copy runs to its end, and who made it looks at the note. A SIGBUS anywhere else goes to
//! whoever was to have it before.

#![expect(
    unsafe_code,
    reason = "a signal handler is installed, and maps pages over what a mapping has lost"
)]

use std::{
    mem::MaybeUninit,
    ptr::{null, null_mut},
    sync::{
        OnceLock,
        atomic::{AtomicPtr, AtomicUsize, Ordering, compiler_fence},
    },
};

use nix::{errno::Errno, libc};

thread_local! {
    /// The mapping that this thread touches now. It has no destructor, so that the handler can reach it at any time.
    static TOUCHED: AtomicPtr<Window> = const { AtomicPtr::new(null_mut()) };
}

/// Where a mapping lies, and how much of it is still there.
#[derive(Debug)]
pub(super) struct Window {
    start: usize,
    end: usize,
    page_bytes: usize,
    protection: libc::c_int,
    /// Bytes from the start that still have the file behind them.
    intact_bytes: AtomicUsize,
}

impl Window {
    /// A whole mapping: both its ends are multiples of `page_bytes`, which is a power of two.
    pub(super) fn new(
        start: usize,
        len: usize,
        page_bytes: usize,
        protection: libc::c_int,
    ) -> Self {
        Self {
            start,
            end: start + len,
            page_bytes,
            protection,
            intact_bytes: AtomicUsize::new(len),
        }
    }

    /// Does `work`, which may touch the mapping whatever has become of its file.
    pub(super) fn touch<T>(&self, work: impl FnOnce() -> T) -> T {
        /// Ends the window when the work panics, too.
        struct End;
        impl Drop for End {
            fn drop(&mut self) {
                compiler_fence(Ordering::SeqCst);
                TOUCHED.with(|touched| touched.store(null_mut(), Ordering::Relaxed));
            }
        }
        let window = std::ptr::from_ref(self).cast_mut();
        TOUCHED.with(|touched| touched.store(window, Ordering::Relaxed));
        // The handler runs on this thread: it is enough that the compiler keeps the order.
        compiler_fence(Ordering::SeqCst);
        let _end = End;
        work()
    }

    /// How many bytes from the start still have the file behind them, as far as anybody has noticed.
    pub(super) fn intact_bytes(&self) -> usize {
        self.intact_bytes.load(Ordering::Relaxed)
    }

    /// Puts empty pages from `address` on, if it lies in the mapping. Called by the handler: system calls and atomics only.
    fn cover(&self, address: usize) -> bool {
        if !(self.start..self.end).contains(&address) {
            return false;
        }
        let from = address & !(self.page_bytes - 1);
        // Where so much memory can't be promised, a page at a time will do: the copy comes back for the next.
        if !self.put_empty_pages(from, self.end)
            && !self.put_empty_pages(from, from + self.page_bytes)
        {
            return false;
        }
        self.intact_bytes
            .fetch_min(from - self.start, Ordering::Relaxed);
        true
    }

    fn put_empty_pages(&self, from: usize, to: usize) -> bool {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the pages belong to the mapping of this window, which is only ever copied to and from, and which its
        // owner unmaps whole.
        let mapped = unsafe {
            libc::mmap(
                from as *mut libc::c_void,
                to - from,
                self.protection,
                flags,
                -1,
                0,
            )
        };
        mapped != libc::MAP_FAILED
    }
}

/// What SIGBUS did before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler, once per process.
///
/// # Errors
/// What sigaction says.
pub(super) fn install() -> Result<(), Errno> {
    static INSTALLED: OnceLock<Result<(), Errno>> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: no new action, and room for the old one.
        Errno::result(unsafe { libc::sigaction(libc::SIGBUS, null(), previous.as_mut_ptr()) })?;
        // SAFETY: zeroes are a valid sigaction, and the call has filled it in.
        PREVIOUS.get_or_init(|| unsafe { previous.assume_init() });
        // SAFETY: zeroes are a valid sigaction: no flags and an empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does nothing that a handler may not.
        Errno::result(unsafe { libc::sigaction(libc::SIGBUS, &action, null_mut()) }).map(drop)
    })
}

extern "C" fn on_bus_error(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let errno = Errno::last_raw();
    let window = TOUCHED.with(|touched| touched.load(Ordering::Relaxed));
    // SAFETY: the kernel passes a valid `info`; it has an address, since a code above 0 means a fault.
    let address = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr() as usize) };
    // SAFETY: this thread is inside `Window::touch`, which borrows the window for as long as the pointer is set.
    let window = unsafe { window.as_ref() };
    if !address
        .zip(window)
        .is_some_and(|(address, window)| window.cover(address))
    {
        pass_on(signal, info, context, address.is_some());
    }
    Errno::set_raw(errno);
}

/// Does what SIGBUS did before this handler was there.
fn pass_on(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    is_fault: bool,
) {
    let (action, flags) = PREVIOUS.get().map_or((libc::SIG_DFL, 0), |previous| {
        (previous.sa_sigaction, previous.sa_flags)
    });
    match action {
        // The kernel lets nobody ignore a fault.
        libc::SIG_IGN if !is_fault => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: zeroes are a valid sigaction, and mean the default. The instruction that faulted does so again, or the
            // signal that is raised comes when the handler has returned.
            unsafe {
                let default: libc::sigaction = MaybeUninit::zeroed().assume_init();
                libc::sigaction(signal, &default, null_mut());
                if !is_fault {
                    libc::raise(signal);
                }
            }
        }
        handler if flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: who installed this address with SA_SIGINFO promised a function of this type.
            let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: who installed this address without SA_SIGINFO promised a function of this type.
            let handler =
                unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}
