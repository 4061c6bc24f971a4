//! Callers from other hosts: TCP with certificates on both sides.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use tests::agent::{Agent, programs};
use tests::command::{self, Output};

use super::audit;

const LIMIT: Duration = Duration::from_secs(60);
/// The agent looks at its files every five seconds.
const RELOAD_LIMIT: Duration = Duration::from_secs(30);
/// What a caller without a certificate gets at most: TLS's word that it is refused.
const ALERT_BYTES: usize = 64;

const RULES: &str = "
[[access]]
role = \"operator\"
certificate = \"spiffe://example/orchestrator\"

[[access]]
role = \"viewer\"
certificate = \"dashboard\"
";

/// One that signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self(issuer))
    }

    fn write(&self, path: &Path) -> Result<()> {
        Ok(fs::write(path, pem("CERTIFICATE", self.0.der()))?)
    }

    /// Signs a certificate and writes it to `{stem}.crt`, and its key to `{stem}.key`.
    fn issue(&self, stem: &Path, change: impl FnOnce(&mut CertificateParams)) -> Result<()> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = DistinguishedName::new();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.not_after = date_time_ymd(2100, 1, 1);
        change(&mut params);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        fs::write(
            stem.with_extension("key"),
            pem("PRIVATE KEY", &key.serialize_der()),
        )?;
        let text = pem("CERTIFICATE", certificate.der());
        Ok(fs::write(stem.with_extension("crt"), text)?)
    }

    fn issue_server(&self, stem: &Path) -> Result<()> {
        let address = [127, 0, 0, 1].into();
        self.issue(stem, |it| {
            it.subject_alt_names = vec![SanType::IpAddress(address)];
        })
    }

    fn issue_orchestrator(&self, stem: &Path) -> Result<()> {
        let uri = "spiffe://example/orchestrator".try_into()?;
        self.issue(stem, |it| it.subject_alt_names = vec![SanType::URI(uri)])
    }
}

fn pem(what: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    format!("-----BEGIN {what}-----\n{text}\n-----END {what}-----\n")
}

/// An agent that serves TCP.
struct Host {
    agent: Agent,
    authority: Authority,
    address: SocketAddr,
}

impl Host {
    fn start() -> Result<Self> {
        let authority = Authority::new("test root")?;
        let agent = Agent::start_with(|dir| {
            authority.write(&dir.join("ca.crt"))?;
            authority.issue_server(&dir.join("agent"))?;
            let dir = dir.display();
            Ok(format!(
                "[api.tcp]\naddress = \"127.0.0.1:0\"\ncertificate = \"{dir}/agent.crt\"\n\
                 key = \"{dir}/agent.key\"\nclient_ca = \"{dir}/ca.crt\"\n{RULES}"
            ))
        })?;
        let log = agent.dir().join("agent.log");
        let address = command::wait_for("the address of TCP", LIMIT, || {
            let log = fs::read_to_string(&log)?;
            let line = log
                .lines()
                .find(|it| it.contains("callers with certificates"));
            let address = line.and_then(|it| it.split_once("address="));
            Ok(address.map(|(_, it)| it.trim().parse()).transpose()?)
        })?;
        Ok(Self {
            agent,
            authority,
            address,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.agent.dir().join(name)
    }

    /// `vfuctl` over TCP, without a certificate of its own.
    fn command(&self, args: &str) -> Result<Command> {
        let mut command = Command::new(programs()?.join("vfuctl"));
        command
            .args(args.split_whitespace())
            .env("VFU_ENDPOINT", format!("https://{}", self.address))
            .env("VFU_TLS_CA", self.path("ca.crt"));
        Ok(command)
    }

    /// The same with the certificate `{name}.crt`.
    fn command_with(&self, name: &str, args: &str) -> Result<Command> {
        let mut command = self.command(args)?;
        command
            .env("VFU_TLS_CERT", self.path(&format!("{name}.crt")))
            .env("VFU_TLS_KEY", self.path(&format!("{name}.key")));
        Ok(command)
    }

    fn ctl(&self, name: &str, args: &str) -> Result<Output> {
        command::output(&mut self.command_with(name, args)?, LIMIT)
    }
}

/// A watch that goes on until it is dropped.
struct Watch(Child);

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_certificate_has_the_role_of_its_names() -> Result<()> {
    let host = Host::start()?;
    host.authority.issue_orchestrator(&host.path("operator"))?;
    host.authority.issue(&host.path("viewer"), |it| {
        it.distinguished_name.push(DnType::CommonName, "dashboard");
    })?;
    host.authority.issue(&host.path("stranger"), |it| {
        it.distinguished_name.push(DnType::CommonName, "stranger");
    })?;
    let created = host.ctl("operator", "create e1000 nic0 --net.null")?;
    assert!(created.status.success(), "{}", created.stderr);
    let line = audit(&host.agent, "CreateDevice")?.remove(0);
    let names = serde_json::json!(["spiffe://example/orchestrator"]);
    assert_eq!(line["caller"]["certificate"], names);
    assert_eq!(line["role"], "operator");
    let address = line["caller"]["address"].as_str().context("an address")?;
    assert!(address.starts_with("127.0.0.1:"), "{line}");

    let listed = host.ctl("viewer", "list -o name")?;
    assert!(listed.stdout.contains("nic0"), "{}", listed.stderr);
    let deleted = host.ctl("viewer", "delete nic0")?;
    assert_eq!(deleted.status.code(), Some(6), "{}", deleted.stderr);
    let words = "certificate dashboard from 127.0.0.1";
    assert!(deleted.stderr.contains(words), "{}", deleted.stderr);
    let listed = host.ctl("stranger", "list")?;
    assert_eq!(listed.status.code(), Some(6), "{}", listed.stderr);
    assert!(listed.stderr.contains("has no role"), "{}", listed.stderr);
    Ok(())
}

#[test]
fn who_has_no_good_certificate_is_told_what_is_wrong_with_it() -> Result<()> {
    let host = Host::start()?;
    let refused = |output: Output, words: &str| {
        assert_eq!(output.status.code(), Some(6), "{}", output.stderr);
        assert!(output.stderr.contains(words), "{}", output.stderr);
    };
    let none = command::output(&mut host.command("list")?, LIMIT)?;
    refused(none, "wants your certificate; give it with --tls-cert");

    host.authority.issue(&host.path("old"), |it| {
        it.not_before = date_time_ymd(2000, 1, 1);
        it.not_after = date_time_ymd(2001, 1, 1);
    })?;
    refused(host.ctl("old", "list")?, "old.crt has expired");

    let other = Authority::new("another root")?;
    other.issue_orchestrator(&host.path("foreign"))?;
    let words = "foreign.crt comes from no root that the agent knows";
    refused(host.ctl("foreign", "list")?, words);

    // The agent has to be the right one, too.
    host.authority.issue_orchestrator(&host.path("good"))?;
    other.write(&host.path("other.crt"))?;
    let mut command = host.command_with("good", "list")?;
    command.env("VFU_TLS_CA", host.path("other.crt"));
    let words = "the agent's certificate comes from none of the roots";
    refused(command::output(&mut command, LIMIT)?, words);
    let mut command = host.command_with("good", "list --tls-server-name elsewhere.example")?;
    let words = "is not for elsewhere.example";
    refused(command::output(&mut command, LIMIT)?, words);
    let good = host.ctl("good", "list")?;
    assert!(good.status.success(), "{}", good.stderr);
    Ok(())
}

#[test]
fn without_tls_there_is_no_answer() -> Result<()> {
    let host = Host::start()?;
    for text in [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(host.address)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(text.as_bytes())?;
        let mut answer = Vec::new();
        // That it is reset is as good an end.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < ALERT_BYTES, "{answer:?}");
        // 21 is an alert of TLS; there is nothing else.
        assert!(answer.first().is_none_or(|it| *it == 21), "{answer:?}");
    }
    Ok(())
}

#[test]
fn handshakes_that_do_not_go_on_keep_nobody_waiting() -> Result<()> {
    let host = Host::start()?;
    host.authority.issue_orchestrator(&host.path("good"))?;
    let silent = (0..100).map(|_| TcpStream::connect(host.address));
    let silent: Vec<_> = silent.collect::<Result<_, _>>()?;
    let listed = host.ctl("good", "list --timeout 8")?;
    assert!(listed.status.success(), "{}", listed.stderr);
    // More than there is room for: the oldest were closed.
    let mut oldest = silent.first().context("a connection")?;
    oldest.set_read_timeout(Some(LIMIT))?;
    assert_eq!(oldest.read(&mut [0; 1])?, 0);
    Ok(())
}

#[test]
fn certificates_that_change_are_read_again_and_connections_live_on() -> Result<()> {
    let host = Host::start()?;
    host.authority.issue_orchestrator(&host.path("before"))?;
    let mut command = host.command_with("before", "watch -o name")?;
    let mut watch = Watch(command.stdout(Stdio::piped()).spawn()?);
    let stdout = watch.0.stdout.take().context("a pipe")?;
    let log = || fs::read_to_string(host.path("agent.log"));

    fs::write(host.path("agent.crt"), "broken")?;
    let words = "certificates for TCP stay as they were";
    command::wait_for("that files are broken", RELOAD_LIMIT, || {
        Ok(log()?.contains(words).then_some(()))
    })?;
    let listed = host.ctl("before", "list")?;
    assert!(listed.status.success(), "{}", listed.stderr);

    let authority = Authority::new("the next root")?;
    authority.write(&host.path("ca.crt"))?;
    authority.issue_server(&host.path("agent"))?;
    authority.issue_orchestrator(&host.path("after"))?;
    let created = command::wait_for("that files are read again", RELOAD_LIMIT, || {
        let created = host.ctl("after", "create e1000 nic0 --net.null")?;
        Ok(created.status.success().then_some(created))
    });
    created.with_context(|| host.agent.log())?;
    let refused = host.ctl("before", "list")?;
    let words = "before.crt comes from no root";
    assert!(refused.stderr.contains(words), "{}", refused.stderr);
    // The watch began under the old root, and has what came of the new.
    for line in BufReader::new(stdout).lines() {
        if line?.contains("nic0") {
            return Ok(());
        }
    }
    bail!("the watch ended without the device");
}

#[test]
fn tcp_without_certificates_is_refused_by_the_names_of_its_keys() -> Result<()> {
    let mut command = Command::new(programs()?.join("vfu-agent"));
    command.args(["--check-config", "--set", "api.tcp.address=127.0.0.1:0"]);
    let output = command::output(&mut command, LIMIT)?;
    assert!(!output.status.success());
    for key in ["api.tcp.certificate", "api.tcp.key", "api.tcp.client_ca"] {
        assert!(output.stderr.contains(key), "{}", output.stderr);
    }
    Ok(())
}
