//! A bare relay: what comes on a connection goes out on another one that it alone has, and back, unread.
//!
//! It is the floor under any proxy in user space, for comparison by `fieldgate-scenarios bench --peers floor`. It must
//! not learn anything of HTTP: it has no pool, no timer, no limit, and is not for use.

mod direction;
mod epoll;
mod sockets;
#[cfg(test)]
mod tests;
mod uring;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use direction::Moving;

/// Relays bytes between each connection and an upstream connection of its own, on one thread.
#[derive(Parser, Clone, Debug)]
#[command(version)]
struct Arguments {
    /// Where connections come in.
    #[arg(long)]
    listen: SocketAddr,
    /// Where they go.
    #[arg(long)]
    upstream: SocketAddr,
    /// How bytes are moved.
    #[arg(long, value_enum, default_value_t = Engine::Epoll)]
    engine: Engine,
    /// Bytes of a buffer: the most that one read takes.
    #[arg(long, default_value_t = 16 * 1024)]
    buffer: usize,
    /// Bytes that a pipe holds (splice).
    #[arg(long, default_value_t = 1024 * 1024)]
    pipe: usize,
    /// Buffers that the kernel may fill, a power of two (uring).
    #[arg(long, default_value_t = 512)]
    buffers: u16,
    /// Turn something on or off (uring).
    #[arg(long, value_enum, value_delimiter = ',')]
    uring: Vec<Uring>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    /// recv(2) and send(2), edge-triggered epoll.
    Epoll,
    /// The same; a read that fills its buffer is followed by splice(2) through a pipe, as long as much comes.
    Splice,
    /// io_uring: multishot accept and receive, buffers that the kernel chooses, one system call per batch.
    Uring,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Uring {
    /// A request per receive in place of one for all.
    SingleShot,
    /// Completions interrupt the thread, in place of waiting until it asks (DEFER_TASKRUN).
    NoDefer,
    /// Descriptors in place of registered files.
    NoFixedFiles,
    /// What is longer than 8 KiB is sent without a copy (SEND_ZC).
    ZeroCopy,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let listener = sockets::raise_limit().and_then(|_| sockets::listen(arguments.listen));
    match listener.and_then(|listener| relay(&arguments, &listener)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fieldgate-floor: {}: {error}", arguments.listen);
            ExitCode::FAILURE
        }
    }
}

fn relay(arguments: &Arguments, listener: &TcpListener) -> io::Result<()> {
    let moving = Moving { buffer: arguments.buffer, pipe: None };
    match arguments.engine {
        Engine::Epoll => epoll::relay(listener, arguments.upstream, moving),
        Engine::Splice => {
            epoll::relay(listener, arguments.upstream, Moving { pipe: Some(arguments.pipe), ..moving })
        }
        Engine::Uring => match uring::relay(listener, arguments) {
            Err(error) if is_forbidden(&error) => {
                eprintln!(
                    "fieldgate-floor: no io_uring here ({error}; sysctl kernel.io_uring_disabled or a seccomp profile \
                     may forbid it); it goes on with epoll"
                );
                epoll::relay(listener, arguments.upstream, moving)
            }
            result => result,
        },
    }
}

/// How a kernel or a seccomp profile says that there is no io_uring, or not all of what is asked of it.
fn is_forbidden(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    matches!(error.kind(), PermissionDenied | Unsupported | InvalidInput)
}
