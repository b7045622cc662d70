//! What is used for TLS and has its time: shown while it is good, and a problem before it is over.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// So long before something expires it is a problem.
const SOON: Duration = Duration::from_hours(14 * 24);

/// Something in use that has its time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry {
    /// Where it is from: `Secret default/shop-tls`.
    pub origin: Arc<str>,
    /// `certificate`, `authority` or `revocation_list`.
    pub kind: &'static str,
    /// Whose it is.
    pub subject: String,
    /// Seconds since 1970 when it expires.
    pub at: i64,
}

impl Expiry {
    /// Days from `now` on, rounded down; negative if its time is over.
    pub fn days(&self, now: SystemTime) -> i64 {
        self.left(now).div_euclid(24 * 3600)
    }

    fn left(&self, now: SystemTime) -> i64 {
        self.at - now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64
    }

    /// What is wrong with it at `now`, if it has not long to go. A served certificate that has expired is said elsewhere.
    pub(super) fn warning(&self, now: SystemTime) -> Option<String> {
        let left = self.left(now);
        let what = match self.kind {
            "certificate" => "the certificate",
            "authority" => "the authority",
            _ => "the revocation list",
        };
        let Self { origin, subject, .. } = self;
        if left < 0 {
            return (self.kind != "certificate").then(|| {
                format!(
                    "{origin}: {what} of {subject:?} expired {} ago; clients are refused for it",
                    span(-left)
                )
            });
        }
        (left < SOON.as_secs() as i64)
            .then(|| format!("{origin}: {what} of {subject:?} expires in {}", span(left)))
    }
}

/// Days, or hours below two days.
fn span(seconds: i64) -> String {
    let hours = seconds / 3600;
    if hours < 48 { format!("{hours} hours") } else { format!("{} days", hours / 24) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(kind: &'static str, days: i64) -> Option<String> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 1000);
        let at = (1000 + days) * 24 * 3600;
        Expiry { origin: "Secret a/b".into(), kind, subject: "CN=x".to_owned(), at }.warning(now)
    }

    #[test]
    fn it_is_said_two_weeks_before_and_after() {
        assert_eq!(warning("certificate", 14), None);
        assert_eq!(
            warning("certificate", 13).as_deref(),
            Some("Secret a/b: the certificate of \"CN=x\" expires in 13 days")
        );
        assert_eq!(
            warning("authority", 1).as_deref(),
            Some("Secret a/b: the authority of \"CN=x\" expires in 24 hours")
        );
        assert_eq!(warning("certificate", -1), None, "said where the certificate is read");
        assert_eq!(
            warning("revocation_list", -3).as_deref(),
            Some(
                "Secret a/b: the revocation list of \"CN=x\" expired 3 days ago; clients are refused for it"
            )
        );
    }
}
