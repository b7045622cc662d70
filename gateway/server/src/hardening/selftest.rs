//! Tries, once and from inside, what must be refused now. Each try is harmless where it succeeds.

use std::fs::File;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use super::{Control, Mode};

/// Readable for everybody wherever there is a `/proc`, and no matter of a gateway.
const FILE: &str = "/proc/version";

/// Whether a file that is not named is refused.
pub(super) fn files(restricted: Result<(), String>) -> Control {
    const NAME: &str = "landlock";
    if let Err(missing) = restricted {
        return Control::missing(NAME, missing);
    }
    match File::open(FILE) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            Control::active(NAME, format!("tried: open {FILE}: EACCES"))
        }
        Err(error) => Control::active(NAME, format!("in force; {FILE} says nothing: {error}")),
        Ok(_) => Control::missing(
            NAME,
            format!("tried: {FILE} can be read (hint: is --config a directory of the system?)"),
        ),
    }
}

/// Whether system calls that are not listed are refused.
pub(super) fn calls(mode: Mode, restricted: Result<(), String>) -> Control {
    const NAME: &str = "seccomp";
    if let Err(missing) = restricted {
        return Control::missing(NAME, missing);
    }
    if mode == Mode::Log {
        return Control::missing(
            NAME,
            "nothing is refused with --hardening=log; the kernel's audit log has what would be",
        );
    }
    let memory = memfd_create("selftest", MemfdFlags::CLOEXEC).err();
    let program = Command::new("/proc/self/exe").arg("--version").stdout(Stdio::null()).spawn();
    let program = match program {
        Err(error) => error.raw_os_error(),
        Ok(mut child) => {
            let _ = child.wait();
            None
        }
    };
    if memory == Some(Errno::PERM) && program == Some(libc::EPERM) {
        return Control::active(NAME, "tried: memfd_create: EPERM, starting a program: EPERM");
    }
    Control::missing(NAME, format!("tried: memfd_create: {memory:?}, starting a program: {program:?}"))
}
