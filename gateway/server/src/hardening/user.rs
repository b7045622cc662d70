//! Becomes an unprivileged user, and keeps nothing of root but the right to bind low ports.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::Path;
use std::str::FromStr;

use nix::unistd::{Gid, Group, Uid, User as Account, geteuid, initgroups, setgid, setgroups, setuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities,
};

use super::Control;

/// All that a gateway needs of root: ports below 1024, now and after every change of the configuration.
const KEPT: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// `NAME`, `NAME:GROUP`, or numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: String,
    group: Option<String>,
}

struct Ids {
    uid: Uid,
    gid: Gid,
    /// For the groups that the user is in; `None` for one that is a number only.
    name: Option<CString>,
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
        if name.is_empty() || group == Some("") {
            return Err("write NAME or NAME:GROUP".to_owned());
        }
        Ok(Self { name: name.to_owned(), group: group.map(str::to_owned) })
    }
}

impl User {
    /// Becomes this user for good. Files in `appended` are created before, and given to the user, so that they can be
    /// opened again later. To be called before there are other threads: each has its own capabilities.
    pub(super) fn assume(&self, appended: &[&Path]) -> Result<(), String> {
        let ids = self.ids()?;
        if !geteuid().is_root() {
            if geteuid() == ids.uid {
                return Ok(());
            }
            return Err(format!(
                "--user {} needs root, and this process runs as user {} (hint: leave --user out)",
                self.name,
                geteuid()
            ));
        }
        if ids.uid.is_root() {
            return Err("--user root is no unprivileged user (hint: --user nobody, or one of its own)".into());
        }
        for path in appended {
            give(path, &ids)?;
        }
        ids.assume().map_err(|error| format!("cannot become user {}: {error}", self.name))?;
        tracing::info!(user = self.name, uid = ids.uid.as_raw(), "privileges dropped");
        Ok(())
    }

    fn ids(&self) -> Result<Ids, String> {
        let unknown = |what: &str, name: &str| format!("--user: there is no {what} {name:?} on this system");
        let account = match self.name.parse() {
            Ok(uid) => Account::from_uid(Uid::from_raw(uid)),
            Err(_) => Account::from_name(&self.name),
        };
        let account = account.map_err(|error| format!("--user {}: {error}", self.name))?;
        let number = self.name.parse().ok().map(Uid::from_raw);
        let uid = account.as_ref().map(|a| a.uid).or(number).ok_or_else(|| unknown("user", &self.name))?;
        let gid = match &self.group {
            Some(group) => match group.parse() {
                Ok(gid) => Gid::from_raw(gid),
                Err(_) => Group::from_name(group)
                    .map_err(|error| format!("--user {}:{group}: {error}", self.name))?
                    .map(|found| found.gid)
                    .ok_or_else(|| unknown("group", group))?,
            },
            // A number without an account: the group of the same number, as container images do.
            None => account.as_ref().map_or(Gid::from_raw(uid.as_raw()), |a| a.gid),
        };
        let name = account.and_then(|account| CString::new(account.name).ok());
        Ok(Ids { uid, gid, name })
    }
}

impl Ids {
    fn assume(&self) -> std::io::Result<()> {
        let had = capabilities(None)?;
        for capability in (CapabilitySet::all() & !KEPT).iter() {
            // One that the kernel does not know cannot be lost.
            let _ = remove_capability_from_bounding_set(capability);
        }
        set_keep_capabilities(true)?;
        match &self.name {
            Some(name) => initgroups(name, self.gid)?,
            None => setgroups(&[self.gid])?,
        }
        setgid(self.gid)?;
        setuid(self.uid)?;
        keep(had.permitted)?;
        // What cannot be undone was done: it must not be possible to become root again.
        if setuid(Uid::from_raw(0)).is_ok() {
            return Err(std::io::Error::other("root could be had back"));
        }
        Ok(())
    }
}

/// Whether this process is nobody special, after taking from it what is no matter of a gateway.
pub(super) fn check_unprivileged() -> Control {
    const NAME: &str = "unprivileged";
    if geteuid().is_root() {
        return Control::missing(
            NAME,
            "the process runs as root (hint: --user nobody, or a user of its own)",
        );
    }
    let kept = match capabilities(None).map_err(Into::into).and_then(|had| keep(had.permitted)) {
        Ok(kept) => kept,
        Err(error) => return Control::missing(NAME, format!("capabilities cannot be dropped: {error}")),
    };
    let with = if kept.is_empty() { "no capability" } else { "CAP_NET_BIND_SERVICE only" };
    Control::active(NAME, format!("user {} with {with}", geteuid()))
}

/// Keeps the one capability, if it was there.
fn keep(permitted: CapabilitySet) -> std::io::Result<CapabilitySet> {
    let kept = permitted & KEPT;
    // Fails on kernels without ambient capabilities, which then are not there.
    let _ = clear_ambient_capability_set();
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    Ok(kept)
}

fn give(path: &Path, ids: &Ids) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot prepare {} for --user: {error}", path.display());
    // A device or a pipe is used as it is.
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Ok(());
    }
    // No link is followed: in a directory that others can write, it could give them any file of the system.
    let file =
        OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path);
    let file = file.map_err(failed)?;
    fchown(&file, Some(ids.uid.as_raw()), Some(ids.gid.as_raw())).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_by_name_and_number() {
        let of =
            |text: &str| text.parse::<User>().unwrap().ids().map(|ids| (ids.uid.as_raw(), ids.gid.as_raw()));
        assert_eq!(of("0"), Ok((0, 0)));
        assert_eq!(of("root:4242"), Ok((0, 4242)));
        assert_eq!(of("4000000"), Ok((4_000_000, 4_000_000)));
        assert!(of("no-such-user").unwrap_err().contains("no user \"no-such-user\""));
        assert!(of("root:no-such-group").unwrap_err().contains("no-such-group"));
        assert!("".parse::<User>().is_err() && "a:".parse::<User>().is_err());
    }
}
