//! TLS to an agent on another host: both sides show a certificate, and what is wrong with either is told with the flag
//! that mends it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tokio::{io::AsyncBufReadExt, net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, AlertDescription as Alert, CertificateError, ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
        version::TLS13,
    },
};

use crate::{endpoint::Endpoint, error::Error};

/// How long the agent may take to begin. It says something at once if it takes our certificate; a proxy may not.
const GREETING: Duration = Duration::from_secs(1);

/// Flags of the certificates, for https:// endpoints.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of https:// endpoints")]
pub(crate) struct Tls {
    /// The roots by which the agent's certificate is checked, PEM
    #[arg(long = "tls-ca", global = true, value_name = "FILE")]
    #[arg(env = "VFU_TLS_CA", hide_env_values = true)]
    ca: Option<PathBuf>,
    /// Your certificate with the chain to its root, PEM
    #[arg(long = "tls-cert", global = true, value_name = "FILE")]
    #[arg(env = "VFU_TLS_CERT", hide_env_values = true)]
    cert: Option<PathBuf>,
    /// The key of that certificate, PEM
    #[arg(long = "tls-key", global = true, value_name = "FILE")]
    #[arg(env = "VFU_TLS_KEY", hide_env_values = true)]
    key: Option<PathBuf>,
    /// The name in the agent's certificate, where it is not the endpoint's host
    #[arg(long = "tls-server-name", global = true, value_name = "NAME")]
    #[arg(env = "VFU_TLS_SERVER_NAME", hide_env_values = true)]
    server_name: Option<String>,
}

impl Tls {
    /// What is in the files, as TLS has it.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        let ca = self.ca.as_deref().ok_or_else(|| {
            Error::Usage(
                "an https:// endpoint takes --tls-ca, the roots of the agent's certificate".into(),
            )
        })?;
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root).map_err(|error| wrong(ca, &error))?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| Error::Usage(format!("TLS 1.3: {error}")))?
            .with_root_certificates(roots);
        let mut config = match (&self.cert, &self.key) {
            (None, None) => config.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let secret = PrivateKeyDer::from_pem_slice(&read(key)?);
                let secret = secret.map_err(|error| wrong(key, &error))?;
                let chain = certificates(cert)?;
                config
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| {
                        let (cert, key) = (cert.display(), key.display());
                        Error::Usage(format!("{cert} with {key}: {error}"))
                    })?
            }
            (Some(_), None) => return Err(Error::Usage("--tls-cert takes --tls-key, too".into())),
            (None, Some(_)) => return Err(Error::Usage("--tls-key takes --tls-cert, too".into())),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// Shows our certificate, checks the agent's, and waits until it has taken ours: with TLS 1.3 it says so, or not,
    /// after the handshake.
    pub(crate) async fn handshake(
        &self,
        config: Arc<ClientConfig>,
        stream: TcpStream,
        endpoint: &Endpoint,
        host: &str,
    ) -> Result<TlsStream<TcpStream>, Error> {
        let name = self.server_name.as_deref().unwrap_or(host);
        let server = ServerName::try_from(name.to_owned());
        let server = server.map_err(|_| {
            let why = "is no name of a host; give one with --tls-server-name";
            Error::Usage(format!("{name:?} {why}"))
        })?;
        let failed = |error: std::io::Error| {
            let inner = error.get_ref().and_then(|it| it.downcast_ref());
            let endpoint = endpoint.clone();
            match inner.map(|error| self.explain(name, error)) {
                Some(why) => Error::Untrusted { endpoint, why },
                None => Error::Broken {
                    endpoint,
                    why: error.to_string(),
                },
            }
        };
        let connected = TlsConnector::from(config).connect(server, stream).await;
        let mut stream = connected.map_err(failed)?;
        match timeout(GREETING, stream.fill_buf()).await {
            Ok(Ok([])) => Err(Error::Broken {
                endpoint: endpoint.clone(),
                why: "closed after the handshake".into(),
            }),
            Ok(Err(error)) => Err(failed(error)),
            Ok(Ok(_)) | Err(_) => Ok(stream),
        }
    }

    fn explain(&self, name: &str, error: &rustls::Error) -> String {
        use CertificateError::{
            Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
            NotValidYetContext, UnknownIssuer,
        };
        let ca = self.ca.as_deref().unwrap_or(Path::new("")).display();
        match error {
            rustls::Error::InvalidCertificate(error) => match error {
                Expired | ExpiredContext { .. } => "the agent's certificate has expired".into(),
                NotValidYet | NotValidYetContext { .. } => {
                    "the agent's certificate is not valid yet; is this host's clock right?".into()
                }
                UnknownIssuer => format!(
                    "the agent's certificate comes from none of the roots in {ca}; name its root with --tls-ca"
                ),
                NotValidForName | NotValidForNameContext { .. } => format!(
                    "the agent's certificate is not for {name}; name one that it is for with --tls-server-name"
                ),
                error => format!("the agent's certificate is not good: {error}"),
            },
            rustls::Error::AlertReceived(alert) => {
                let what = match (&self.cert, alert) {
                    (None, Alert::CertificateRequired) => {
                        return "the agent wants your certificate; give it with --tls-cert and --tls-key".into();
                    }
                    (Some(cert), Alert::CertificateExpired) => {
                        format!("your certificate {} has expired", cert.display())
                    }
                    (
                        Some(cert),
                        Alert::UnknownCA | Alert::DecryptError | Alert::BadCertificate,
                    ) => {
                        format!(
                            "your certificate {} comes from no root that the agent knows (api.tcp.client_ca)",
                            cert.display()
                        )
                    }
                    (_, alert) => format!("the agent ended the handshake: {alert:?}"),
                };
                format!("{what}; give another with --tls-cert and --tls-key")
            }
            rustls::Error::InvalidMessage(_) => "what listens there does not speak TLS".into(),
            error => format!("TLS: {error}"),
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(path, &"no certificate in PEM")),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(path, &error)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

fn wrong(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Usage(format!("{}: {why}", path.display()))
}
