//! Which system calls the process may make (seccomp, as a filter that the kernel runs).
//!
//! A list of what a gateway does: sockets, files, memory, threads, clocks, signals to itself. All else is answered with
//! EPERM: starting programs, other processes, mounts, modules, keys, tracing, io_uring, namespaces. Calls without a
//! condition on their arguments are remembered by the kernel in a bitmap and cost nothing; those on a request's path must
//! stay among them.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter, sock_filter,
};

use super::Mode;

/// Puts the filter on this thread and those that it starts.
pub(super) fn restrict(mode: Mode) -> Result<(), String> {
    let program = program(mode)?;
    apply_filter(&program).map_err(|error| format!("the kernel takes no filter: {error}"))
}

fn program(mode: Mode) -> Result<BpfProgram, String> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => TargetArch::x86_64,
        "aarch64" => TargetArch::aarch64,
        other => return Err(format!("there is no list of system calls for {other}")),
    };
    let refused = match mode {
        Mode::Enforce => SeccompAction::Errno(libc::EPERM as u32),
        _ => SeccompAction::Log,
    };
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new())).collect();
    rules.extend(conditional().map_err(|error| error.to_string())?);
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch);
    let filter: BpfProgram =
        filter.and_then(TryInto::try_into).map_err(|error: seccompiler::BackendError| error.to_string())?;
    Ok(no_clone3().into_iter().chain(filter).collect())
}

/// `clone3` has its flags in memory, where a filter cannot look. Without it (ENOSYS) the C library uses `clone`.
fn no_clone3() -> [sock_filter; 3] {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const RETURN_ERRNO: u32 = 0x0005_0000;
    // Of `struct seccomp_data`, whose first word is the number of the call.
    let load = sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: 0 };
    let is_it = sock_filter { code: JUMP_EQUAL, jt: 0, jf: 1, k: libc::SYS_clone3 as u32 };
    let refuse = sock_filter { code: RETURN, jt: 0, jf: 0, k: RETURN_ERRNO | libc::ENOSYS as u32 };
    [load, is_it, refuse]
}

/// Calls of which some forms are refused.
fn conditional() -> Result<BTreeMap<c_long, Vec<SeccompRule>>, seccompiler::BackendError> {
    let is = |argument, value: u64| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
        SeccompRule::new(vec![condition])
    };
    let has = |argument, mask: u64, value: u64| {
        let op = SeccompCmpOp::MaskedEq(mask);
        SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?])
    };
    let any = |argument, values: &[u64]| {
        values.iter().map(|value| is(argument, *value)).collect::<Result<Vec<_>, _>>()
    };
    let thread = libc::CLONE_THREAD as u64;
    let executable = libc::PROT_EXEC as u64;
    Ok(BTreeMap::from([
        // Threads, not processes.
        (libc::SYS_clone, vec![has(0, thread, thread)?]),
        // Memory never becomes code.
        (libc::SYS_mmap, vec![has(2, executable, 0)?]),
        (libc::SYS_mprotect, vec![has(2, executable, 0)?]),
        // No packets, no netlink.
        (
            libc::SYS_socket,
            any(0, &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6].map(|family| family as u64))?,
        ),
        (libc::SYS_socketpair, vec![is(0, libc::AF_UNIX as u64)?]),
        // A panic that cannot unwind ends this process, and no call ends another.
        (libc::SYS_tgkill, vec![is(0, u64::from(std::process::id()))?]),
        (libc::SYS_prlimit64, vec![is(0, 0)?]),
        // Names of threads and of memory.
        (
            libc::SYS_prctl,
            any(0, &[libc::PR_SET_NAME as u64, libc::PR_GET_NAME as u64, libc::PR_SET_VMA as u64])?,
        ),
        (libc::SYS_ioctl, any(1, &[libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS])?),
    ]))
}

/// Calls that every architecture has.
const ALLOWED: &[c_long] = &[
    // Connections.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Bytes.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_lseek,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Files: which, is landlock's matter and the file system's.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mremap,
    libc::SYS_munlock,
    libc::SYS_munmap,
    // Threads and signals.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    // Who and when.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Older forms, which newer architectures never had.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_getdents,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];

#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::thread;

    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::io::Errno;

    use super::*;

    /// On a thread of its own: a filter is a thread's, and cannot be taken off again.
    fn restricted<T: Send + 'static>(mode: Mode, then: impl FnOnce() -> T + Send + 'static) -> T {
        let inside = move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            restrict(mode).unwrap();
            then()
        };
        thread::spawn(inside).join().unwrap()
    }

    #[test]
    fn what_a_gateway_does_goes_on() {
        restricted(Mode::Enforce, || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.set_nonblocking(true).unwrap();
            UdpSocket::bind("127.0.0.1:0").unwrap();
            UnixStream::pair().unwrap();
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("a"), "x").unwrap();
            std::fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
            // Threads inherit the filter and can be started under it, for all that clone3 is not there.
            let within =
                thread::Builder::new().name("named".into()).spawn(|| memfd_create("x", MemfdFlags::CLOEXEC));
            assert_eq!(within.unwrap().join().unwrap().err(), Some(Errno::PERM));
        });
    }

    #[test]
    fn what_a_gateway_never_does_is_refused() {
        restricted(Mode::Enforce, || {
            let started = Command::new("/proc/self/exe").arg("--help").output();
            assert_eq!(started.unwrap_err().raw_os_error(), Some(libc::EPERM));
            assert_eq!(memfd_create("x", MemfdFlags::CLOEXEC).err(), Some(Errno::PERM));
            let netlink =
                rustix::net::socket(rustix::net::AddressFamily::NETLINK, rustix::net::SocketType::RAW, None);
            assert_eq!(netlink.err(), Some(Errno::PERM));
            assert_eq!(
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::CONT),
                Err(Errno::PERM)
            );
            assert_eq!(
                rustix::process::getpriority_user(rustix::process::Uid::ROOT).err(),
                Some(Errno::PERM)
            );
        });
    }

    #[test]
    fn logging_refuses_nothing() {
        restricted(Mode::Log, || drop(memfd_create("x", MemfdFlags::CLOEXEC).unwrap()));
    }
}
