//! Who asked for a change.

use std::fmt;
use std::net::SocketAddr;

use serde_json::{Value, json};

/// What somebody may do by the admin server. Who may operate may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look at everything that it shows.
    Read,
    /// Change what it can change.
    Operate,
}

impl Role {
    /// As flags and lines name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
        }
    }
}

/// Somebody, or something, that changes the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A client of the admin server.
    Client {
        /// What it may do.
        role: Role,
        /// From where.
        peer: SocketAddr,
        /// What its certificate says.
        identity: Option<String>,
        /// The user of a process on this machine.
        uid: Option<u32>,
    },
    /// Whoever can write the configuration's files.
    Files,
    /// Whoever may send this process a signal.
    Signal(&'static str),
    /// The next process, or this one.
    Process(&'static str),
}

impl Who {
    /// A client without a certificate.
    pub fn peer(role: Role, peer: SocketAddr) -> Self {
        Self::Client { role, peer, identity: None, uid: None }
    }

    /// The sender of a signal, which is not known.
    pub fn signal(name: &'static str) -> Self {
        Self::Signal(name)
    }

    pub(super) fn json(&self) -> Value {
        match self {
            Self::Client { role, peer, identity, uid } => {
                let mut value = json!({"role": role.as_str(), "peer": peer.to_string()});
                if let Some(identity) = identity {
                    value["identity"] = json!(identity);
                }
                if let Some(uid) = uid {
                    value["uid"] = json!(uid);
                }
                value
            }
            Self::Files => json!({"source": "files"}),
            Self::Signal(name) => json!({"signal": name}),
            Self::Process(what) => json!({"process": what}),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client { peer, identity, uid, .. } => {
                write!(f, "{peer}")?;
                if let Some(identity) = identity {
                    write!(f, " {identity}")?;
                }
                if let Some(uid) = uid {
                    write!(f, " (uid {uid})")?;
                }
                Ok(())
            }
            Self::Files => f.write_str("the configuration's files"),
            Self::Signal(name) => f.write_str(name),
            Self::Process(what) => f.write_str(what),
        }
    }
}
