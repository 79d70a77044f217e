//! Certificate revocation lists ([RFC 5280], section 5): who was once trusted and is no more.
//!
//! In: lists as PEM or DER, and the authorities that may have issued them. Out: whether a
//! verified chain holds a revoked certificate. Promise: a list's signature is checked once,
//! when it is read, and not at each handshake; a list of an authority that we do not know is
//! refused, for it would never have an effect.
//!
//! [RFC 5280]: https://www.rfc-editor.org/rfc/rfc5280

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{BorrowedCertRevocationList, Cert, CertRevocationList, EndEntityCert, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;
use zeroize::Zeroizing;

use crate::error::{Error, Part};
use crate::material::{absent, read_file};
use crate::pem;
use crate::public::algorithms;
use crate::svid::{shown, system_time};

/// All lists that apply to the peers of one identity.
#[derive(Debug, Default)]
pub(crate) struct Revocation {
    lists: Vec<List>,
    /// A peer passes only when each authority above it has a list that is not too old.
    required: bool,
}

/// One list, known to be signed by its issuer.
#[derive(Debug)]
struct List {
    path: PathBuf,
    /// The issuer's name as people read it.
    issuer_text: String,
    issuer: Box<[u8]>,
    issuer_key: Box<[u8]>,
    /// In order.
    serials: Vec<Box<[u8]>>,
    next_update: SystemTime,
    digest: Box<[u8]>,
}

/// An authority that may have issued a list.
struct Authority {
    name: Box<[u8]>,
    key: Box<[u8]>,
    may_sign: bool,
}

impl Revocation {
    /// Reads the lists of `paths`. `authorities` are those that we trust, and those between them and us.
    pub(crate) fn read<'a>(
        paths: &[PathBuf],
        required: bool,
        authorities: impl IntoIterator<Item = &'a CertificateDer<'static>>,
    ) -> Result<Self, Error> {
        if paths.is_empty() {
            return Ok(Self::default());
        }
        let authorities: Vec<_> = authorities.into_iter().filter_map(Authority::of).collect();
        let mut lists = Vec::new();
        for path in paths {
            for (at, der) in read_lists(path)?.iter().enumerate() {
                let list = List::read(der, path, &authorities);
                lists.push(list.map_err(|problem| Error::BadRevocationList {
                    path: path.clone(),
                    number: at + 1,
                    problem,
                })?);
            }
        }
        Ok(Self { lists, required })
    }

    /// Takes lists that somebody tells us of; `from` names him in errors. Those of authorities that we do not know are about
    /// other trust domains' certificates.
    pub(crate) fn told<'a>(
        ders: &[Vec<u8>],
        from: &Path,
        authorities: impl IntoIterator<Item = &'a CertificateDer<'static>>,
    ) -> Result<Self, Error> {
        if ders.is_empty() {
            return Ok(Self::default());
        }
        let authorities: Vec<_> = authorities.into_iter().filter_map(Authority::of).collect();
        let mut lists = Vec::new();
        for (at, der) in ders.iter().enumerate() {
            if is_of_strangers(der, &authorities) {
                continue;
            }
            let list = List::read(der, from, &authorities);
            let number = at + 1;
            lists.push(list.map_err(|problem| Error::BadRevocationList { path: from.into(), number, problem })?);
        }
        Ok(Self { lists, required: false })
    }

    /// Whether both would say the same of every chain.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        let digests = |one: &Self| one.lists.iter().map(|list| list.digest.clone()).collect::<Vec<_>>();
        self.required == other.required && digests(self) == digests(other)
    }

    /// Checks each certificate of a verified chain but its anchor.
    pub(crate) fn check(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), webpki::Error> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let mut certificate: &Cert<'_> = path.end_entity();
        for issuer in path.intermediate_certificates() {
            self.check_one(certificate, &issuer.subject_public_key_info(), now)?;
            certificate = issuer;
        }
        self.check_one(certificate, &path.anchor().subject_public_key_info, now)
    }

    fn check_one(&self, certificate: &Cert<'_>, issuer_key: &[u8], now: UnixTime) -> Result<(), webpki::Error> {
        let key = content(issuer_key);
        let mut known = false;
        for list in self.lists.iter().filter(|list| *list.issuer == *certificate.issuer() && *list.issuer_key == *key) {
            if list.holds(certificate.serial()) {
                return Err(webpki::Error::CertRevoked);
            }
            let next_update = unix_time(list.next_update);
            if self.required && next_update.as_secs() < now.as_secs() {
                return Err(webpki::Error::CrlExpired { time: now, next_update });
            }
            known = true;
        }
        if self.required && !known { Err(webpki::Error::UnknownRevocationStatus) } else { Ok(()) }
    }

    /// Until when what was found stays true, as far as lists matter.
    pub(crate) fn good_until(&self) -> Option<SystemTime> {
        self.lists.iter().map(|list| list.next_update).min().filter(|_| self.required)
    }

    /// When each issuer's list ends, the issuer as people read it.
    pub(crate) fn next_updates(&self) -> impl Iterator<Item = (&str, SystemTime)> {
        self.lists.iter().map(|list| (list.issuer_text.as_str(), list.next_update))
    }

    /// A list that is too old.
    pub(crate) fn outdated(&self, now: SystemTime) -> Option<Outdated<'_>> {
        let list = self.lists.iter().find(|list| list.next_update < now)?;
        let Self { required, .. } = *self;
        Some(Outdated { path: &list.path, issuer: &list.issuer_text, since: list.next_update, required })
    }
}

/// Whether a list is by none of these. Names alone do not tell: SPIRE gives the same one to the authorities of all its trust domains.
fn is_of_strangers(der: &[u8], authorities: &[Authority]) -> bool {
    let (Ok(list), Some(signed)) = (BorrowedCertRevocationList::from_der(der), Signed::read(der)) else { return false };
    let list = CertRevocationList::from(list);
    let ours = |authority: &Authority| *authority.name == *list.issuer() && signed.is_by(&authority.key);
    !authorities.iter().any(ours)
}

/// A list that should have been replaced.
pub(crate) struct Outdated<'a> {
    pub(crate) path: &'a Path,
    pub(crate) issuer: &'a str,
    pub(crate) since: SystemTime,
    pub(crate) required: bool,
}

impl List {
    fn read(der: &[u8], path: &Path, authorities: &[Authority]) -> Result<Self, String> {
        let parsed = BorrowedCertRevocationList::from_der(der).map_err(|error| unreadable(error, der))?;
        let mut serials = Vec::new();
        for revoked in &parsed {
            serials.push(Box::from(revoked.map_err(|error| unreadable(error, der))?.serial_number));
        }
        serials.sort_unstable();
        let parsed = CertRevocationList::from(parsed);
        let signed = Signed::read(der).ok_or("it is no well-formed revocation list")?;
        let issuer_text = signed.issuer_text();
        let mut named = authorities.iter().filter(|authority| *authority.name == *parsed.issuer()).peekable();
        if named.peek().is_none() {
            return Err(format!(
                "it was issued by `{issuer_text}`, which is neither in the trust bundle nor above our own certificate, so it would have no effect; add that authority to the trust bundle, or remove the list"
            ));
        }
        let Some(issuer) = named.find(|authority| signed.is_by(&authority.key)) else {
            return Err(format!("its signature is not that of `{issuer_text}`; fetch the list anew"));
        };
        if !issuer.may_sign {
            return Err(format!("its issuer `{issuer_text}` may not sign lists: its key usage lacks cRLSign"));
        }
        Ok(Self {
            path: path.into(),
            issuer: parsed.issuer().into(),
            issuer_key: issuer.key.clone(),
            next_update: signed.next_update().ok_or("its nextUpdate is no date")?,
            issuer_text,
            serials,
            digest: digest::digest(&digest::SHA256, der).as_ref().into(),
        })
    }

    fn holds(&self, serial: &[u8]) -> bool {
        self.serials.binary_search_by(|one| (**one).cmp(serial)).is_ok()
    }
}

impl Authority {
    fn of(certificate: &CertificateDer<'static>) -> Option<Self> {
        let parsed = EndEntityCert::try_from(certificate).ok()?;
        let (_, facts) = X509Certificate::from_der(certificate).ok()?;
        // Without a key usage every use is allowed.
        let may_sign = facts.key_usage().ok()?.is_none_or(|usage| usage.value.crl_sign());
        let key = parsed.subject_public_key_info();
        Some(Self { name: parsed.subject().into(), key: content(&key).into(), may_sign })
    }
}

/// The parts of a list that its signature is checked with ([RFC 5280], 5.1.1).
///
/// [RFC 5280]: https://www.rfc-editor.org/rfc/rfc5280
struct Signed<'a> {
    /// With its own header.
    list: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let list = element(element(der)?.content)?;
        let algorithm = element(list.rest)?;
        let [0, signature @ ..] = element(algorithm.rest)?.content else { return None };
        Some(Self { list: list.whole, algorithm: algorithm.content, signature })
    }

    /// Version, signature algorithm, issuer, thisUpdate, nextUpdate: the first five parts.
    fn part(&self, index: usize) -> Option<&'a [u8]> {
        let mut rest = element(self.list)?.content;
        for _ in 0..index {
            rest = element(rest)?.rest;
        }
        Some(rest)
    }

    fn issuer_text(&self) -> String {
        let name = self.part(2).and_then(|rest| X509Name::from_der(rest).ok());
        name.map_or_else(|| "an unreadable name".to_owned(), |(_, name)| shown(&name.to_string()))
    }

    fn next_update(&self) -> Option<SystemTime> {
        let (_, time) = ASN1Time::from_der(self.part(4)?).ok()?;
        Some(system_time(time.timestamp()))
    }

    /// Whether this key (a SubjectPublicKeyInfo without its header) made the signature.
    fn is_by(&self, key: &[u8]) -> bool {
        let Some(key_algorithm) = element(key) else { return false };
        let Some(Element { content: [0, key @ ..], .. }) = element(key_algorithm.rest) else { return false };
        algorithms().all.iter().any(|algorithm| {
            algorithm.signature_alg_id().as_ref() == self.algorithm
                && algorithm.public_key_alg_id().as_ref() == key_algorithm.content
                && algorithm.verify_signature(key, self.list, self.signature).is_ok()
        })
    }
}

/// One DER element, and what is behind it.
pub(crate) struct Element<'a> {
    /// With its header.
    pub(crate) whole: &'a [u8],
    content: &'a [u8],
    pub(crate) rest: &'a [u8],
}

pub(crate) fn element(bytes: &[u8]) -> Option<Element<'_>> {
    let [_, first, rest @ ..] = bytes else { return None };
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    let whole = bytes.get(..bytes.len() - rest.len())?;
    Some(Element { whole, content, rest })
}

/// A SubjectPublicKeyInfo without its header, whether it came with it or not.
fn content(key: &[u8]) -> &[u8] {
    match element(key) {
        Some(Element { content, rest: [], .. }) => content,
        _ => key,
    }
}

fn unreadable(error: webpki::Error, der: &[u8]) -> String {
    use webpki::Error as E;
    // Only lists of version 2 tell their version.
    let first = Signed::read(der).and_then(|signed| signed.part(0)?.first().copied());
    if first.is_some_and(|tag| tag != INTEGER) {
        return "it is of version 1; lists need a number and an authority key identifier (openssl ca: `crlnumber` and `crl_extensions`)".to_owned();
    }
    match error {
        E::UnsupportedDeltaCrl => "it holds only what changed (a delta list); give whole lists".to_owned(),
        E::UnsupportedIndirectCrl => {
            "it tells of other authorities' certificates (an indirect list); give each authority's own".to_owned()
        }
        error => format!("it is no X.509 revocation list that can be used ({error:?})"),
    }
}

/// The lists of a file, each as DER.
fn read_lists(path: &Path) -> Result<Vec<Zeroizing<Vec<u8>>>, Error> {
    let part = Part::RevocationList;
    let bytes = read_file(part, path)?;
    if pem::looks_like_der(&bytes) {
        return Ok(vec![bytes]);
    }
    let malformed = |at: pem::Malformed| Error::BadPem { part, path: path.into(), line: at.line, problem: at.problem };
    let blocks = pem::blocks(&bytes).map_err(malformed)?;
    if !blocks.iter().any(|block| block.label == "X509 CRL") {
        return Err(absent(part, path, &blocks));
    }
    Ok(blocks.into_iter().filter(|block| block.label == "X509 CRL").map(|block| block.der).collect())
}

/// The tag of a number.
const INTEGER: u8 = 2;

fn unix_time(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
pub(crate) fn fuzz_list(der: &[u8]) -> bool {
    List::read(der, Path::new("list"), &[]).is_ok()
}
