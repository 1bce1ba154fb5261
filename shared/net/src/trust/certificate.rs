//! Certificates: how they are made, and what must hold of one that is shown to us.
//!
//! An authority's certificate is self-signed and serves as carrier of its key only. A node's
//! certificate is signed by that key, has the DNS name `<id>.shoal`, and the role as organizational
//! unit. Validity is 1970 to 9999 and is never looked at.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, PublicKeyData,
    SanType, SignatureAlgorithm, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use shoal_core::NodeId;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::prelude::FromDer;

use super::{AuthorityId, Identity, PublicKey, Role, TrustError};

/// Ours have about 400 bytes; nothing longer is parsed.
const CERTIFICATE_BYTES: usize = 4096;

/// What stands before the signature's own bytes: algorithm Ed25519, and a string of 512 bits. Compared
/// byte by byte, so that a certificate has one form only, however lenient the parser is.
const ED25519_SIGNATURE: [u8; 10] = [0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x41, 0];
const SIGNATURE_BYTES: usize = 64;

/// The zone of DNS names in certificates.
pub(crate) const ZONE: &str = "shoal";

/// What is wrong with a certificate that was shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("it is not a certificate")]
    Malformed,
    #[error("its key is not an Ed25519 key")]
    KeyType,
    #[error("it is not signed by this cluster's authority ({})", authority.fingerprint())]
    Authority { authority: AuthorityId },
    #[error("it does not name the node of its key ({node})")]
    Name { node: NodeId },
    #[error("it names no role that this version knows")]
    Role,
    #[error("it is that of the {found} {node}, where a {wanted} is needed")]
    WrongRole { node: NodeId, found: Role, wanted: Role },
    #[error("it is that of node {found}, not of {wanted}")]
    WrongNode { found: NodeId, wanted: NodeId },
    #[error("its authority is {}, not {} which the token names", found.fingerprint(), wanted.fingerprint())]
    WrongAuthority { found: AuthorityId, wanted: AuthorityId },
    #[error("no authority's certificate came with it")]
    NoAuthority,
    #[error("node {node} is not in the plan in force")]
    NotInPlan { node: NodeId },
}

/// A node whose certificate held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Certified {
    pub(crate) node: NodeId,
    pub(crate) role: Role,
}

/// The certificate that carries an authority's key.
pub(super) fn make_authority(key: &Identity) -> Result<CertificateDer<'static>, TrustError> {
    Ok(authority_params().self_signed(key.key())?.der().clone())
}

/// A node's certificate, signed by the authority.
pub(super) fn make_node(
    authority: &Identity,
    key: PublicKey,
    role: Role,
) -> Result<CertificateDer<'static>, TrustError> {
    let issuer = Issuer::new(authority_params(), authority.key());
    Ok(node_params(key, role)?.signed_by(&Subject(key), &issuer)?.der().clone())
}

/// A certificate that proves nothing but the key: what a worker shows when it joins.
pub(super) fn make_self_signed(key: &Identity) -> Result<CertificateDer<'static>, TrustError> {
    Ok(node_params(key.public(), Role::Worker)?.self_signed(key.key())?.der().clone())
}

/// The key of a certificate, whoever signed it.
pub(crate) fn key_of(certificate: &CertificateDer<'_>) -> Result<PublicKey, CertificateError> {
    key_in(&parse(certificate)?)
}

/// Checks a node's certificate: signed by this authority, named as its key says, with a role.
pub(crate) fn verify(
    certificate: &CertificateDer<'_>,
    authority: &PublicKey,
) -> Result<Certified, CertificateError> {
    let parsed = parse(certificate)?;
    let key = key_in(&parsed)?;
    let tail = certificate.len().checked_sub(SIGNATURE_BYTES).and_then(|at| certificate.get(..at));
    let signed = tail.is_some_and(|bytes| bytes.ends_with(&ED25519_SIGNATURE))
        && rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .mapping
            .iter()
            .filter(|(scheme, _)| *scheme == rustls::SignatureScheme::ED25519)
            .flat_map(|(_, algorithms)| algorithms.iter())
            .any(|algorithm| {
                algorithm
                    .verify_signature(
                        &authority.0,
                        parsed.tbs_certificate.as_ref(),
                        &parsed.signature_value.data,
                    )
                    .is_ok()
            });
    if !signed {
        return Err(CertificateError::Authority { authority: authority.authority() });
    }
    let node = key.node();
    let wanted = format!("{node}.{ZONE}");
    let names = parsed.subject_alternative_name().ok().flatten();
    let named = names.is_some_and(|names| {
        matches!(names.value.general_names.as_slice(), [GeneralName::DNSName(name)] if *name == wanted)
    });
    if !named {
        return Err(CertificateError::Name { node });
    }
    let mut units = parsed.subject().iter_organizational_unit();
    let role = units.next().and_then(|unit| unit.as_str().ok()).and_then(Role::from_name);
    match (role, units.next()) {
        (Some(role), None) => Ok(Certified { node, role }),
        _ => Err(CertificateError::Role),
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    if certificate.len() > CERTIFICATE_BYTES {
        return Err(CertificateError::Malformed);
    }
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(CertificateError::Malformed),
    }
}

fn key_in(parsed: &X509Certificate<'_>) -> Result<PublicKey, CertificateError> {
    let info = parsed.public_key();
    let key = <[u8; 32]>::try_from(info.subject_public_key.data.as_ref());
    match key {
        Ok(key) if info.algorithm.algorithm == OID_SIG_ED25519 => Ok(PublicKey(key)),
        _ => Err(CertificateError::KeyType),
    }
}

fn authority_params() -> CertificateParams {
    let mut params = params("shoal authority", "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params
}

fn node_params(key: PublicKey, role: Role) -> Result<CertificateParams, TrustError> {
    let mut params = params(&key.node().to_string(), role.name());
    params.subject_alt_names = vec![SanType::DnsName(format!("{}.{ZONE}", key.node()).try_into()?)];
    Ok(params)
}

fn params(name: &str, unit: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(9999, 12, 31);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(name.to_owned()));
    params.distinguished_name.push(DnType::OrganizationalUnitName, DnValue::Utf8String(unit.to_owned()));
    params
}

/// A key to be signed.
struct Subject(PublicKey);

impl PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        &self.0.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_holds_for_its_authority_alone() {
        let (ours, theirs, node) =
            (Identity::ephemeral().unwrap(), Identity::ephemeral().unwrap(), Identity::ephemeral().unwrap());
        for role in [Role::Coordinator, Role::Worker] {
            let certificate = make_node(&ours, node.public(), role).unwrap();
            assert_eq!(verify(&certificate, &ours.public()), Ok(Certified { node: node.node(), role }));
            assert_eq!(
                verify(&certificate, &theirs.public()),
                Err(CertificateError::Authority { authority: theirs.public().authority() })
            );
        }
        let alone = make_self_signed(&node).unwrap();
        assert_eq!(key_of(&alone), Ok(node.public()));
        assert!(verify(&alone, &ours.public()).is_err());
        // The authority's own certificate names no node.
        let root = make_authority(&ours).unwrap();
        assert_eq!(verify(&root, &ours.public()), Err(CertificateError::Name { node: ours.node() }));
    }

    #[test]
    fn changed_bytes_never_pass() {
        let (authority, node) = (Identity::ephemeral().unwrap(), Identity::ephemeral().unwrap());
        let good = make_node(&authority, node.public(), Role::Worker).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.to_vec();
            bytes[at] ^= 1;
            assert!(verify(&CertificateDer::from(bytes), &authority.public()).is_err(), "byte {at}");
        }
        for end in 0..good.len() {
            assert!(verify(&CertificateDer::from(good[..end].to_vec()), &authority.public()).is_err());
        }
    }
}
