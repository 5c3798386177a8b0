//! Authorities and certificates, as files under the names that NBD programs look for.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// An authority.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
pub struct Signed {
    certificate: String,
    key: String,
}

fn named(names: &[&str], common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = named(&[], name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, mut params: CertificateParams, purpose: ExtendedKeyUsagePurpose) -> Signed {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Signed { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A certificate of a server with these names and addresses.
    pub fn server(&self, names: &[&str]) -> Signed {
        self.sign(named(names, "server"), ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// One that was valid until years ago.
    #[allow(dead_code, reason = "two test programs share this file")]
    pub fn expired_server(&self, names: &[&str]) -> Signed {
        let mut params = named(names, "server");
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        self.sign(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A certificate of a client.
    pub fn client(&self, name: &str) -> Signed {
        self.sign(named(&[], name), ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Writes a directory with this authority, and with certificates for `server` and `client`.
    pub fn directory(&self, parent: &Path, name: &str, certificates: &[(&str, &Signed)]) -> PathBuf {
        let directory = parent.join(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("ca-cert.pem"), self.0.pem()).unwrap();
        for (of, signed) in certificates {
            std::fs::write(directory.join(format!("{of}-cert.pem")), &signed.certificate).unwrap();
            std::fs::write(directory.join(format!("{of}-key.pem")), &signed.key).unwrap();
        }
        directory
    }
}
