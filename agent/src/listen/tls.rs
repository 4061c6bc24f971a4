//! TLS for callers from other hosts: both sides show a certificate, and files that change are read again.
//!
//! TLS 1.3 alone, and no resumption: a session that goes on from an earlier one would not have its caller's certificate
//! looked at again, by roots that may have changed since.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{
    NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier,
};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

use crate::chain::chain;
use crate::config::{Live, Tcp};

/// How often files are looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// The longest file that is read; all roots of a distribution have 250 KB.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// What is spoken within TLS.
const HTTP2: &[u8] = b"h2";

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{}: no {what} in PEM", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
        /// Why it is not.
        #[source]
        source: pem::Error,
    },
    /// A root can't be one.
    #[error("{}: a certificate that can't be a root", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// There is none that callers' certificates could be checked against.
    #[error("check certificates of callers")]
    Verifier(#[from] VerifierBuilderError),
    /// Certificate and key are not fit for each other, or for TLS.
    #[error("use {} with {}", certificate.display(), key.display())]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// The library can't.
    #[error("set up TLS 1.3")]
    Setup(#[source] rustls::Error),
    /// The address can't be had.
    #[error("listen on {address}, which is api.tcp.address")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Signals can't be had.
    #[error("watch SIGHUP")]
    Signal(#[source] io::Error),
}

/// The files that make a configuration of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_ca: PathBuf,
}

impl Files {
    /// Those of the agent's configuration, if it has TCP.
    pub(super) fn of(tcp: &Tcp) -> Option<Self> {
        Some(Self {
            certificate: tcp.certificate.clone()?,
            key: tcp.key.clone()?,
            client_ca: tcp.client_ca.clone()?,
        })
    }

    /// What is in them, as TLS has it.
    pub(super) fn load(&self) -> Result<ServerConfig, Error> {
        let Self {
            certificate,
            key,
            client_ca,
        } = self;
        let mut roots = RootCertStore::empty();
        for root in certificates(client_ca)? {
            roots.add(root).map_err(|source| Error::Root {
                path: client_ca.clone(),
                source,
            })?;
        }
        let chain = certificates(certificate)?;
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?);
        let secret = secret.map_err(|source| Error::Parse {
            path: key.clone(),
            what: "private key",
            source,
        })?;
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(Error::Setup)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, secret)
            .map_err(|source| Error::Pair {
                certificate: certificate.clone(),
                key: key.clone(),
                source,
            })?;
        config.alpn_protocols = vec![HTTP2.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// What changes when one of them does. Links are followed: secrets of Kubernetes change by a link.
    fn stamp(&self) -> [Option<Stamp>; 3] {
        [&self.certificate, &self.key, &self.client_ca].map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some(Stamp {
                file: (metadata.dev(), metadata.ino()),
                bytes: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            })
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Reads files again when they change.
#[derive(Debug)]
pub(super) struct Reloader {
    live: Live,
    files: Files,
    stamp: [Option<Stamp>; 3],
    sender: watch::Sender<Arc<ServerConfig>>,
    hangup: tokio::signal::unix::Signal,
}

impl Reloader {
    /// Reads files for the first time. What they make is in the receiver.
    pub(super) fn new(
        live: Live,
        files: Files,
    ) -> Result<(Self, watch::Receiver<Arc<ServerConfig>>), Error> {
        let stamp = files.stamp();
        let (sender, receiver) = watch::channel(Arc::new(files.load()?));
        let reloader = Self {
            live,
            files,
            stamp,
            sender,
            hangup: signal(SignalKind::hangup()).map_err(Error::Signal)?,
        };
        Ok((reloader, receiver))
    }

    /// Goes on until the agent ends. Connections that there are keep what they began with.
    pub(super) async fn run(mut self, mut ending: watch::Receiver<bool>) {
        let mut look = interval(INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_asked = tokio::select! {
                // An error means that the sender is gone, which is as good.
                _ = ending.wait_for(|it| *it) => return,
                _ = self.hangup.recv() => true,
                () = self.live.changed() => false,
                _ = look.tick() => false,
            };
            self.look(is_asked).await;
        }
    }

    /// Reads the files if they changed, or if it is asked to.
    async fn look(&mut self, is_asked: bool) {
        // Without files there would be no TCP, which takes a restart.
        let files = Files::of(&self.live.get().api.tcp).unwrap_or(self.files.clone());
        let is_asked = is_asked || files != self.files;
        let (named, before) = (files.clone(), self.stamp);
        let read = tokio::task::spawn_blocking(move || {
            // Before the files: what changes after it is seen the next time.
            let stamp = named.stamp();
            let loaded = (is_asked || stamp != before).then(|| named.load());
            (stamp, loaded)
        });
        // An error means that the runtime ends.
        let Ok((stamp, Some(loaded))) = read.await else {
            return;
        };
        self.stamp = stamp;
        self.files = files;
        match loaded {
            Ok(config) => {
                tracing::info!("certificates for TCP are read again");
                self.sender.send_replace(Arc::new(config));
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(error, "certificates for TCP stay as they were");
            }
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.and_then(|found| match found.is_empty() {
        true => Err(pem::Error::NoItemsFound),
        false => Ok(found),
    });
    found.map_err(|source| Error::Parse {
        path: path.to_owned(),
        what: "certificate",
        source,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || {
        let mut bytes = Vec::new();
        let file = File::open(path)?;
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pem(what: &str, der: &[u8]) -> String {
        let text = STANDARD.encode(der);
        format!("-----BEGIN {what}-----\n{text}\n-----END {what}-----\n")
    }

    /// A certificate and its key, in PEM.
    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let secret = pem("PRIVATE KEY", &key.serialize_der());
        (pem("CERTIFICATE", certificate.der()), secret)
    }

    fn files(directory: &Path) -> Files {
        let (certificate, key) = pair();
        let files = Files {
            certificate: directory.join("certificate"),
            key: directory.join("key"),
            client_ca: directory.join("ca"),
        };
        fs::write(&files.certificate, &certificate).unwrap();
        fs::write(&files.key, key).unwrap();
        fs::write(&files.client_ca, certificate).unwrap();
        files
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        files.load().unwrap();
        let refused = || chain(&files.load().unwrap_err());
        let certificate = files.certificate.display();
        let (_, other) = pair();
        fs::write(&files.key, other).unwrap();
        let error = refused();
        assert!(
            error.contains(&format!("use {certificate} with")),
            "{error}"
        );
        fs::write(&files.key, "").unwrap();
        let error = refused();
        assert!(error.contains("key: no private key in PEM"), "{error}");
        fs::write(&files.client_ca, "x").unwrap();
        let error = refused();
        assert!(error.contains("ca: no certificate in PEM"), "{error}");
        fs::remove_file(&files.client_ca).unwrap();
        let error = refused();
        let ca = files.client_ca.display();
        assert!(
            error.contains(&format!("read {ca}: No such file")),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_broken_file_changes_nothing_and_a_good_one_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let mut config = crate::config::Config::default();
        config.api.tcp = Tcp {
            address: Some(([127, 0, 0, 1], 0).into()),
            certificate: Some(files.certificate.clone()),
            key: Some(files.key.clone()),
            client_ca: Some(files.client_ca.clone()),
        };
        let (mut reloader, mut receiver) =
            Reloader::new(Live::fixed(config), files.clone()).unwrap();
        receiver.mark_unchanged();
        fs::write(&files.certificate, "broken").unwrap();
        reloader.look(false).await;
        assert!(!receiver.has_changed().unwrap());
        let (certificate, key) = pair();
        fs::write(&files.certificate, certificate).unwrap();
        reloader.look(false).await;
        assert!(!receiver.has_changed().unwrap(), "the key is another's");
        fs::write(&files.key, key).unwrap();
        reloader.look(false).await;
        assert!(receiver.has_changed().unwrap());
        receiver.mark_unchanged();
        reloader.look(false).await;
        assert!(!receiver.has_changed().unwrap(), "nothing changed");
        reloader.look(true).await;
        assert!(receiver.has_changed().unwrap(), "it was asked to");
    }
}
