//! How many files, and so connections, the process may have open, and which ones its options name.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::RunOptions;
use crate::admin::TlsFiles;
use crate::control::ApiWrite;
use crate::telemetry::access_log;
use crate::workload;
use crate::{audit, hardening};

/// Raises the soft limit to the hard one. The soft one is commonly 1,024, for programs that use `select`, and a gateway
/// reaches it with five hundred clients.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => tracing::debug!(?current, ?maximum, "limit of open files raised"),
        Err(error) => {
            tracing::warn!(%error, ?current, "the limit of open files cannot be raised (ulimit -n)");
        }
    }
}

/// The files that the options name, and what is done with them.
pub(super) fn places(options: &RunOptions) -> hardening::Places {
    let access_log = options.access_log.iter().filter_map(|log| match &log.target {
        access_log::Target::File(path) => Some(path.clone()),
        access_log::Target::Stdout => None,
    });
    let audit_log = options.audit_log.iter().filter_map(|target| match target {
        audit::Target::File(path) => Some(path.clone()),
        audit::Target::Stdout => None,
    });
    let admin_tls = options.admin_access.tls.iter().flat_map(TlsFiles::paths).cloned();
    hardening::Places {
        config: options.config.clone(),
        config_is_written: options.api_write != ApiWrite::Off,
        logs: access_log.chain(audit_log).collect(),
        replaced: [&options.pid_file, &options.upgrade_socket].into_iter().flatten().cloned().collect(),
        read: admin_tls.chain(workload::directory(options.workload_certificate.clone())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        raise_limit();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
    }
}
