//! Where the agent is.

use std::{fmt, path::PathBuf, str::FromStr};

/// Where the agent listens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Endpoint {
    /// On a UNIX socket of this host.
    Unix(PathBuf),
    /// On a port of any host, for callers with certificates.
    Tcp {
        /// Name or address; that of IPv6 without brackets.
        host: String,
        /// The port.
        port: u16,
    },
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const RULE: &str = "must be unix:// and an absolute path, as unix:///run/vfu/agent.sock, or https://HOST:PORT";
        if let Some(address) = text.strip_prefix("https://") {
            let (host, port) = address.rsplit_once(':').ok_or(RULE)?;
            let inner = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
            let host = inner.unwrap_or(host).to_owned();
            let is_odd = host.is_empty() || host.contains(['/', '[', ']', '@']);
            let is_bare = inner.is_none() && host.contains(':');
            return match port.parse() {
                Ok(port) if !is_odd && !is_bare => Ok(Self::Tcp { host, port }),
                _ => Err(RULE.into()),
            };
        }
        let path = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"))
            .unwrap_or(text);
        if !path.starts_with('/') {
            return Err(RULE.into());
        }
        Ok(Self::Unix(path.into()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(formatter),
            Self::Tcp { host, port } if host.contains(':') => {
                write!(formatter, "https://[{host}]:{port}")
            }
            Self::Tcp { host, port } => write!(formatter, "https://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_absolute_paths_or_hosts_with_ports() {
        let parse = |text: &str| text.parse::<Endpoint>();
        let socket = Ok(Endpoint::Unix("/run/vfu/agent.sock".into()));
        assert_eq!(parse("unix:///run/vfu/agent.sock"), socket);
        assert_eq!(parse("unix:/run/vfu/agent.sock"), socket);
        assert_eq!(parse("/run/vfu/agent.sock"), socket);
        for (text, host) in [
            ("https://host.example:7717", "host.example"),
            ("https://192.0.2.1:7717", "192.0.2.1"),
            ("https://[2001:db8::1]:7717", "2001:db8::1"),
        ] {
            let (host, port) = (host.to_owned(), 7717);
            let endpoint = parse(text).unwrap();
            assert_eq!(endpoint, Endpoint::Tcp { host, port });
            assert_eq!(endpoint.to_string(), text);
        }
        for text in [
            "http://127.0.0.1:1",
            "https://host",
            "https://host:x",
            "https://:1",
            "https://2001:db8::1:7717",
            "https://host/path:1",
            "unix://agent.sock",
            "",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
