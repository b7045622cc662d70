//! What the gateway's trust domain is called: of `run`, `check` and `explain`, which are to read policies alike.

use clap::Args;
use fieldgate_config::translate::TrustDomains;

#[derive(Args)]
pub(super) struct TrustDomainArgs {
    /// The gateway's trust domain. `cluster.local` in a policy means it, whatever it is called.
    #[arg(long, value_name = "NAME", env = "FIELDGATE_TRUST_DOMAIN", default_value = "cluster.local", value_parser = name)]
    trust_domain: String,
    /// What else the trust domain was or is called: an identity of any of these is one of all. May be repeated.
    #[arg(long = "trust-domain-alias", value_name = "NAME", value_parser = name)]
    aliases: Vec<String>,
}

impl TrustDomainArgs {
    pub(super) fn names(&self) -> TrustDomains {
        TrustDomains::new(&self.trust_domain, &self.aliases)
    }
}

/// SPIFFE ID section 2.1: lower case letters, digits, dots, dashes and underscores, at most 255 of them.
fn name(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    if text.is_empty() || text.len() > 255 || !text.bytes().all(fits) {
        return Err("a trust domain is of lower case letters, digits, `.`, `-` and `_`".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spiffe_trust_domains() {
        for good in ["cluster.local", "a-b_c.9"] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        for bad in ["", "A", "a/b", "spiffe://a", "*", &"a".repeat(256)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
