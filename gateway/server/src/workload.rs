//! What the gateway is known by in its mesh: a certificate, its key and the mesh's authorities, in files that the mesh's
//! agent writes and replaces.
//!
//! The files are read again and again rather than watched: they are three, and agents replace them in many ways. Files
//! that do not fit together, as while they are being replaced, are left alone until they do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fieldgate_config::Workload;
use fieldgate_core::ir::{Certificate, PemBundle};
use fieldgate_wire::tls;

/// Where Istio's proxy finds them.
const ISTIO: &str = "/var/run/secrets/workload-spiffe-credentials";
/// How often they are read.
const AGAIN: Duration = Duration::from_secs(1);
/// A file larger than this, in bytes, is none of these.
const LARGEST: u64 = 1024 * 1024;

/// The directory: the one given, else Istio's if it is there.
pub fn directory(given: Option<PathBuf>) -> Option<PathBuf> {
    given.or_else(|| Some(PathBuf::from(ISTIO)).filter(|path| path.is_dir()))
}

/// Reads a directory: `cert-chain.pem`, `key.pem`, and `root-cert.pem` or `ca.pem`.
pub fn read(directory: &Path) -> Result<Workload, String> {
    let (chain, key) = (file(directory, "cert-chain.pem")?, file(directory, "key.pem")?);
    let roots = file(directory, "root-cert.pem").or_else(|why| file(directory, "ca.pem").map_err(|_| why))?;
    let origin: Arc<str> = format!("the workload certificate in {}", directory.display()).into();
    tls::Certificate::from_pem(&chain, &key).map_err(|error| format!("{origin}: {error}"))?;
    tls::ClientTls::new(tls::Verification::Roots(&roots))
        .build()
        .map_err(|error| format!("{origin}: {error}"))?;
    Ok(Workload {
        certificate: Arc::new(Certificate {
            origin: origin.clone(),
            chain_pem: chain.into(),
            key_pem: key.into(),
        }),
        roots: Arc::new(PemBundle { origin, pem: roots.into() }),
    })
}

/// Reads a directory until the process ends, and tells what changes.
pub async fn follow(directory: PathBuf, mut known: Option<Workload>, mut tell: impl FnMut(Workload)) {
    let mut trouble: Option<String> = None;
    loop {
        tokio::time::sleep(AGAIN).await;
        let path = directory.clone();
        let found = tokio::task::spawn_blocking(move || read(&path)).await;
        match found.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(workload) => {
                trouble = None;
                if known.as_ref() != Some(&workload) {
                    known = Some(workload.clone());
                    tell(workload);
                }
            }
            Err(why) => {
                if trouble.as_ref() != Some(&why) {
                    let stays = if known.is_some() { "; the one before stays in use" } else { "" };
                    tracing::warn!("{why}{stays}");
                    trouble = Some(why);
                }
            }
        }
    }
}

fn file(directory: &Path, name: &str) -> Result<Vec<u8>, String> {
    let path = directory.join(name);
    let at = |error: std::io::Error| format!("{}: {error}", path.display());
    if std::fs::metadata(&path).map_err(at)?.len() > LARGEST {
        return Err(format!("{}: it is larger than {LARGEST} bytes", path.display()));
    }
    std::fs::read(&path).map_err(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, roots: &str) {
        let made = rcgen::generate_simple_self_signed(["gateway.example".to_owned()]).unwrap();
        std::fs::write(directory.join("cert-chain.pem"), made.cert.pem()).unwrap();
        std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(directory.join(roots), made.cert.pem()).unwrap();
    }

    #[test]
    fn files_have_to_fit_together() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert!(read(path).unwrap_err().contains("cert-chain.pem"));
        write(path, "ca.pem");
        let first = read(path).unwrap();
        write(path, "root-cert.pem");
        assert_ne!(read(path).unwrap(), first);
        let other = rcgen::generate_simple_self_signed(["gateway.example".to_owned()]).unwrap();
        std::fs::write(path.join("key.pem"), other.signing_key.serialize_pem()).unwrap();
        let why = read(path).unwrap_err();
        assert!(why.contains("the workload certificate in") && !why.contains("BEGIN"), "{why}");
    }

    #[tokio::test]
    async fn a_rotation_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "ca.pem");
        let known = read(directory.path()).unwrap();
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let following = follow(directory.path().to_owned(), Some(known), move |workload| {
            let _ = told.send(workload);
        });
        let following = tokio::spawn(following);
        write(directory.path(), "ca.pem");
        let now = read(directory.path()).unwrap();
        assert_eq!(heard.recv().await, Some(now));
        assert!(heard.try_recv().is_err());
        following.abort();
    }
}
