//! Options of `fieldgate run` for who may ask its admin server.

use std::path::PathBuf;

use clap::Args;

use crate::admin::{Options, Rule, TlsFiles};

#[derive(Args)]
pub(super) struct AdminArgs {
    /// The admin server's certificate (PEM): it speaks TLS then, and only with clients that show a certificate too.
    #[arg(long, value_name = "FILE", requires_all = ["admin_tls_key", "admin_client_ca"])]
    admin_tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "admin_tls_cert")]
    admin_tls_key: Option<PathBuf>,
    /// The authorities (PEM) that sign its clients' certificates.
    #[arg(long, value_name = "FILE", requires = "admin_tls_cert")]
    admin_client_ca: Option<PathBuf>,
    /// Who may do what, by the names in a certificate: `read=*`, `operate=spiffe://corp/ns/ops/*`, `DNS:name`, `CN=name`.
    /// Without any, whoever has a certificate may read.
    #[arg(long, value_name = "ROLE=NAME", value_delimiter = ',', value_parser = str::parse::<Rule>, requires = "admin_tls_cert")]
    admin_role: Vec<Rule>,
    /// Let everybody who reaches an admin server without TLS read what it shows.
    #[arg(long, conflicts_with = "admin_tls_cert")]
    admin_plaintext: bool,
}

impl AdminArgs {
    pub(super) fn options(self) -> Options {
        let tls = match (self.admin_tls_cert, self.admin_tls_key, self.admin_client_ca) {
            (Some(certificate), Some(key), Some(client_ca)) => Some(TlsFiles { certificate, key, client_ca }),
            _ => None,
        };
        Options { tls, roles: self.admin_role, plaintext: self.admin_plaintext }
    }
}
