//! Writes the DER of a certificate.
//!
//! rcgen keeps one value per attribute of a name, but a Kubernetes client certificate carries one
//! organization per group, and a signer must copy the subject of a request byte for byte.

use std::net::IpAddr;

use time::OffsetDateTime;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const OCTET_STRING: u8 = 0x04;
const BIT_STRING: u8 = 0x03;
const INTEGER: u8 = 0x02;
const BOOLEAN: u8 = 0x01;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

const OID_COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const OID_ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
const OID_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const OID_SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const OID_BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const OID_AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
const OID_EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const OID_SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const OID_CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// A value with its tag and length.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=0x7f => out.push(short as u8),
        length => {
            let bytes = length.to_be_bytes();
            let significant = &bytes[bytes.iter().take_while(|&&byte| byte == 0).count()..];
            out.push(0x80 | significant.len() as u8);
            out.extend_from_slice(significant);
        }
    }
    out.extend_from_slice(content);
    out
}

pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, &parts.concat())
}

/// A distinguished name: organizations, then the common name, as Go's `pkix.Name` writes them.
pub(crate) fn name(common_name: &str, organizations: &[String]) -> Vec<u8> {
    let attribute =
        |oid: &[u8], text: &str| sequence(&[&tlv(OBJECT_IDENTIFIER, oid), &tlv(UTF8_STRING, text.as_bytes())]);
    let mut parts = Vec::new();
    if !organizations.is_empty() {
        // One set holds all organizations; DER sorts the members of a set.
        let mut members: Vec<Vec<u8>> = organizations.iter().map(|text| attribute(OID_ORGANIZATION, text)).collect();
        members.sort();
        parts.extend(tlv(SET, &members.concat()));
    }
    parts.extend(tlv(SET, &attribute(OID_COMMON_NAME, common_name)));
    tlv(SEQUENCE, &parts)
}

/// What goes into the extensions of a leaf.
pub(crate) struct Extensions<'a> {
    pub(crate) digital_signature: bool,
    pub(crate) key_encipherment: bool,
    pub(crate) server: bool,
    pub(crate) client: bool,
    pub(crate) authority_key_id: Option<&'a [u8]>,
    /// The content of the extension, encoded: [`general_names`] or a copy from a request.
    pub(crate) subject_alt_names: Option<Vec<u8>>,
}

impl Extensions<'_> {
    fn encode(&self) -> Vec<u8> {
        let extension = |oid: &[u8], critical: bool, content: &[u8]| {
            let mut parts = tlv(OBJECT_IDENTIFIER, oid);
            if critical {
                parts.extend(tlv(BOOLEAN, &[0xff]));
            }
            parts.extend(tlv(OCTET_STRING, content));
            tlv(SEQUENCE, &parts)
        };
        let mut all = Vec::new();
        let bits = u8::from(self.digital_signature) << 7 | u8::from(self.key_encipherment) << 5;
        let unused = if self.key_encipherment { 5 } else { 7 };
        all.extend(extension(OID_KEY_USAGE, true, &tlv(BIT_STRING, &[unused, bits])));
        let mut usages = Vec::new();
        if self.server {
            usages.extend(tlv(OBJECT_IDENTIFIER, OID_SERVER_AUTH));
        }
        if self.client {
            usages.extend(tlv(OBJECT_IDENTIFIER, OID_CLIENT_AUTH));
        }
        if !usages.is_empty() {
            all.extend(extension(OID_EXTENDED_KEY_USAGE, false, &tlv(SEQUENCE, &usages)));
        }
        all.extend(extension(OID_BASIC_CONSTRAINTS, true, &tlv(SEQUENCE, &[])));
        if let Some(id) = self.authority_key_id {
            all.extend(extension(OID_AUTHORITY_KEY_ID, false, &tlv(SEQUENCE, &tlv(0x80, id))));
        }
        if let Some(names) = &self.subject_alt_names {
            all.extend(extension(OID_SUBJECT_ALT_NAME, false, names));
        }
        tlv(0xa3, &tlv(SEQUENCE, &all))
    }
}

/// The content of a subject alternative name extension; `None` if there are no names.
pub(crate) fn general_names(dns_names: &[String], ip_addresses: &[IpAddr]) -> Option<Vec<u8>> {
    if dns_names.is_empty() && ip_addresses.is_empty() {
        return None;
    }
    let mut all = Vec::new();
    for name in dns_names {
        all.extend(tlv(0x82, name.as_bytes()));
    }
    for address in ip_addresses {
        match address {
            IpAddr::V4(address) => all.extend(tlv(0x87, &address.octets())),
            IpAddr::V6(address) => all.extend(tlv(0x87, &address.octets())),
        }
    }
    Some(tlv(SEQUENCE, &all))
}

/// UTCTime until 2049, GeneralizedTime from 2050, as RFC 5280 asks.
fn moment(at: OffsetDateTime) -> Vec<u8> {
    let at = at.to_offset(time::UtcOffset::UTC);
    let rest =
        format!("{:02}{:02}{:02}{:02}{:02}Z", u8::from(at.month()), at.day(), at.hour(), at.minute(), at.second());
    if at.year() < 2050 {
        tlv(UTC_TIME, format!("{:02}{rest}", at.year() % 100).as_bytes())
    } else {
        tlv(GENERALIZED_TIME, format!("{:04}{rest}", at.year()).as_bytes())
    }
}

/// A certificate before it is signed. Names, keys and algorithms are DER already.
pub(crate) struct ToBeSigned<'a> {
    /// Positive, without leading zeros.
    pub(crate) serial: &'a [u8],
    pub(crate) algorithm: &'a [u8],
    pub(crate) issuer: &'a [u8],
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) subject: &'a [u8],
    pub(crate) public_key_info: &'a [u8],
    pub(crate) extensions: Extensions<'a>,
}

impl ToBeSigned<'_> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let version_3 = tlv(0xa0, &tlv(INTEGER, &[2]));
        let validity = sequence(&[&moment(self.not_before), &moment(self.not_after)]);
        sequence(&[
            &version_3,
            &tlv(INTEGER, self.serial),
            self.algorithm,
            self.issuer,
            &validity,
            self.subject,
            self.public_key_info,
            &self.extensions.encode(),
        ])
    }
}

/// The signed certificate.
pub(crate) fn certificate(to_be_signed: &[u8], algorithm: &[u8], signature: &[u8]) -> Vec<u8> {
    let mut bits = vec![0];
    bits.extend_from_slice(signature);
    sequence(&[to_be_signed, algorithm, &tlv(BIT_STRING, &bits)])
}

/// The signature algorithms our keys use, as AlgorithmIdentifier.
pub(crate) mod algorithm {
    pub(crate) const ECDSA_P256_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    pub(crate) const ECDSA_P384_SHA384: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
    pub(crate) const ED25519: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];
    pub(crate) const RSA_SHA256: &[u8] =
        &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b, 0x05, 0x00];
}
