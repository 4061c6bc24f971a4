//! The names in a caller's certificate. That its signatures hold is checked before, by TLS; this only reads.

use std::net::SocketAddr;

use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::{DirectoryString, GeneralName};

use super::peer::Remote;

/// The most names that count, and the longest: what is beyond is no name that anybody gave a person or a program.
const MAX_NAMES: usize = 64;
const MAX_NAME_BYTES: usize = 512;

impl Remote {
    /// Who has this certificate, if it can be read.
    pub(crate) fn of(certificate: &[u8], address: SocketAddr) -> Option<Self> {
        let certificate = Certificate::from_der(certificate).ok()?;
        let certificate = certificate.tbs_certificate();
        let subject = certificate.subject().iter();
        let common = subject
            .filter(|it| it.oid == COMMON_NAME)
            .filter_map(|it| DirectoryString::try_from(&it.value).ok())
            .map(String::from);
        let alternative = certificate.get_extension::<SubjectAltName>().ok()?;
        let alternative = alternative.map_or(Vec::new(), |(_, names)| names.0);
        let alternative = alternative.into_iter().filter_map(|it| match it {
            GeneralName::DnsName(name) | GeneralName::UniformResourceIdentifier(name) => {
                Some(name.to_string())
            }
            _ => None,
        });
        let mut names: Vec<String> = Vec::new();
        for name in common.chain(alternative) {
            let fits = !name.is_empty() && name.len() <= MAX_NAME_BYTES;
            if fits && names.len() < MAX_NAMES && !names.contains(&name) {
                names.push(name);
            }
        }
        Some(Self {
            names,
            address,
            expires: certificate.validity().not_after.to_system_time(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use rcgen::{CertificateParams, DnType, KeyPair, SanType, date_time_ymd};

    use super::*;

    #[test]
    fn names_are_those_of_the_subject_and_its_alternatives() {
        let mut params = CertificateParams::new(vec!["host.example".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "ci runner");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "not me");
        let uri = "spiffe://example/ci".try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        let address = [127, 0, 0, 1].into();
        params.subject_alt_names.push(SanType::IpAddress(address));
        params.not_after = date_time_ymd(2100, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let address = ([127, 0, 0, 1], 1).into();
        let remote = Remote::of(certificate.der(), address).unwrap();
        let names = ["ci runner", "host.example", "spiffe://example/ci"];
        assert_eq!(remote.names, names);
        let year_2100 = SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800);
        assert_eq!(remote.expires, year_2100);
        assert!(Remote::of(&certificate.der()[1..], address).is_none());
    }
}
