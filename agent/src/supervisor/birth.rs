//! How a process comes into the world: in its session, with its limits, and in its cgroup from its first instruction on.
//!
//! The kernel puts a child into a cgroup as it makes it (clone3), which the standard library can't ask for. To move a
//! process later is slow: the kernel waits until all processors have seen that nobody forks meanwhile, which takes longer
//! than all the rest of a device's creation.
#![expect(
    unsafe_code,
    reason = "clone3, and what a child may do between it and exec, have no safe interface"
)]

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::ptr;

use nix::fcntl::OFlag;
use nix::sys::resource::setrlimit;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::pipe2;

use crate::limits::Resources;
use crate::systemd;

/// What is to be run, and how.
#[derive(Debug)]
pub(super) struct Birth<'a> {
    pub(super) program: &'a Path,
    pub(super) arguments: &'a [&'a OsStr],
    /// Standard output and standard error; there is nothing on standard input.
    pub(super) output: BorrowedFd<'a>,
    /// Open under their numbers beside stdio.
    pub(super) inherited: &'a [BorrowedFd<'a>],
    pub(super) limits: Resources,
    /// The directory of the cgroup, unless it is to be that of the agent.
    pub(super) cgroup: Option<BorrowedFd<'a>>,
}

/// A child that nobody has waited for.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: i32,
}

/// In `clone_args`; the constant of this name in libc is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// All that the child needs, made before it is: it must not allocate.
struct Plan<'a> {
    program: &'a CStr,
    arguments: &'a [*const libc::c_char],
    environment: &'a [*const libc::c_char],
    null: RawFd,
    output: RawFd,
    inherited: &'a [RawFd],
    limits: Resources,
    failure: RawFd,
}

/// Whether the kernel, and what stands between it and us, lets a child be made in a cgroup.
pub(super) fn has_clone3() -> bool {
    // SAFETY: no arguments at all: the call fails, and how tells whether there is one.
    let answer =
        unsafe { libc::syscall(libc::SYS_clone3, ptr::null::<libc::clone_args>(), 0_usize) };
    answer < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}

/// Makes the child and returns when it runs its program, with its pidfd; or the reason why it does not.
pub(super) fn spawn(birth: &Birth<'_>) -> io::Result<(Child, OwnedFd)> {
    let program = CString::new(birth.program.as_os_str().as_bytes())?;
    let arguments = birth.arguments.iter().map(|it| CString::new(it.as_bytes()));
    let arguments: Vec<_> = std::iter::once(Ok(program.clone()))
        .chain(arguments)
        .collect::<Result<_, _>>()?;
    let environment: Vec<_> = systemd::environment_of_others()
        .map(|(name, value)| {
            let mut text = name.into_vec();
            text.push(b'=');
            text.extend_from_slice(value.as_bytes());
            CString::new(text)
        })
        .collect::<Result<_, _>>()?;
    let null = File::open("/dev/null")?;
    let (told, failure) = pipe2(OFlag::O_CLOEXEC)?;
    let inherited: Vec<_> = birth.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let plan = Plan {
        program: &program,
        arguments: &pointers(&arguments),
        environment: &pointers(&environment),
        null: null.as_raw_fd(),
        output: birth.output.as_raw_fd(),
        inherited: &inherited,
        limits: birth.limits,
        failure: failure.as_raw_fd(),
    };

    // A handler of ours must not run in the child, where it would speak for the agent.
    let blocked = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    // SAFETY: the child calls `become_program` alone, which does nothing that another thread could have locked.
    let made = unsafe { clone(birth.cgroup) };
    if let Ok(None) = made {
        become_program(&plan);
    }
    blocked.thread_set_mask()?;
    let (child, pidfd) = made?.ok_or(io::ErrorKind::Other)?;

    drop(failure);
    let mut errno = [0; size_of::<i32>()];
    // It ends when the program is run, which closes the other end, or has been told why it is not.
    match File::from(told).read_exact(&mut errno) {
        Ok(()) => {
            wait(&child)?;
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
        Err(_) => Ok((child, pidfd)),
    }
}

/// How the child ended. Waits for it.
pub(super) fn wait(child: &Child) -> io::Result<ExitStatus> {
    let mut status = 0;
    // SAFETY: a plain number, and a pointer to a number that lives longer than the call. The child is ours and has not
    // been waited for, so that the pid is its own.
    match unsafe { libc::waitpid(child.pid, &raw mut status, 0) } {
        pid if pid == child.pid => Ok(ExitStatus::from_raw(status)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    let texts = texts.iter().map(|text| text.as_ptr());
    texts.chain([ptr::null()]).collect()
}

/// Makes a child as fork does: `None` in the child. Its descriptor is known before it could end.
///
/// # Safety
///
/// The child may do only what is async-signal-safe, until it runs a program or ends.
unsafe fn clone(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<(Child, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    let pid = match cgroup {
        Some(cgroup) => {
            // SAFETY: a structure of plain numbers, all of which may be zero.
            let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
            arguments.flags = (libc::CLONE_PIDFD as u64) | CLONE_INTO_CGROUP;
            arguments.pidfd = (&raw mut pidfd) as u64;
            arguments.exit_signal = libc::SIGCHLD as u64;
            arguments.cgroup = cgroup.as_raw_fd() as u64;
            // SAFETY: both pointers are to what lives here; without CLONE_VM the child has copies of all memory.
            unsafe {
                libc::syscall(
                    libc::SYS_clone3,
                    &raw mut arguments,
                    size_of_val(&arguments),
                )
            }
        }
        None => {
            let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
            let stack = ptr::null_mut::<libc::c_void>();
            // SAFETY: as above; the third argument is where CLONE_PIDFD has its answer, and the others are not used.
            unsafe { libc::syscall(libc::SYS_clone, flags, stack, &raw mut pidfd, 0, 0) }
        }
    };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some((Child { pid }, pidfd)))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// The child: does what is left to do, and runs the program; or says why not, and ends.
fn become_program(plan: &Plan<'_>) -> ! {
    let error = prepare(plan).map_or_else(
        |error| error,
        |()| {
            // SAFETY: all three are what execve takes: texts that end in zero, and lists of such that end in null.
            unsafe {
                libc::execve(
                    plan.program.as_ptr(),
                    plan.arguments.as_ptr(),
                    plan.environment.as_ptr(),
                );
            }
            nix::errno::Errno::last()
        },
    );
    let errno = (error as i32).to_ne_bytes();
    // SAFETY: a descriptor and a buffer that live here; then the end, without anything of the agent's being run.
    unsafe {
        libc::write(plan.failure, errno.as_ptr().cast(), errno.len());
        libc::_exit(127);
    }
}

/// Plain system calls alone.
fn prepare(plan: &Plan<'_>) -> Result<(), nix::errno::Errno> {
    use nix::errno::Errno;

    nix::unistd::setsid()?;
    for (from, to) in [(plan.null, 0), (plan.output, 1), (plan.output, 2)] {
        // SAFETY: plain numbers; what was open under them is the agent's stdio, of which this is a copy.
        Errno::result(unsafe { libc::dup2(from, to) })?;
    }
    for number in plan.inherited {
        // SAFETY: plain numbers.
        Errno::result(unsafe { libc::fcntl(*number, libc::F_SETFD, 0) })?;
    }
    for (resource, limit) in plan.limits.0 {
        if let Some(limit) = limit {
            setrlimit(resource, limit, limit)?;
        }
    }
    // SAFETY: texts and numbers. Rust ignores SIGPIPE, and what is ignored stays so in the program.
    unsafe {
        Errno::result(libc::chdir(c"/".as_ptr()))?;
        if libc::signal(libc::SIGPIPE, libc::SIG_DFL) == libc::SIG_ERR {
            return Err(Errno::last());
        }
    }
    SigSet::empty().thread_set_mask()
}
