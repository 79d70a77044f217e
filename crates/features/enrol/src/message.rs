//! The messages of `CreateCertificate` and of the SPIFFE Workload API.
//!
//! In: a signing request and a lifetime; answers. Out: protobuf; certificates. Promise: never
//! panics; an answer without a certificate or without roots is an error.

use std::time::Duration;

use outrigger_identity::{Enrolled, X509Svid, X509Svids};
use outrigger_wire::protobuf::{Value, fields, put_bytes, put_number};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

/// Why an answer is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// A text is no certificate as PEM.
    #[error("its answer holds something that is no certificate as PEM")]
    NoCertificate,
    /// There are no roots.
    #[error("its answer holds a certificate, but no roots to trust")]
    NoRoots,
    /// There is no certificate.
    #[error("its answer holds no certificate")]
    Empty,
    /// An identity lacks a part.
    #[error("its answer lacks the {0} of an identity")]
    Incomplete(&'static str),
    /// A text is no UTF-8.
    #[error("its answer holds a text that is no UTF-8")]
    NoText,
}

/// An `IstioCertificateRequest`.
pub(crate) fn request(csr: &str, ttl: Duration) -> Vec<u8> {
    let mut message = Vec::with_capacity(csr.len() + 16);
    put_bytes(&mut message, 1, csr.as_bytes());
    put_number(&mut message, 3, ttl.as_secs().max(1));
    message
}

/// What an `IstioCertificateResponse` holds: the certificate first, then those above it; the last text has the roots.
pub(crate) fn certificates(message: &[u8]) -> Result<Enrolled, BadAnswer> {
    let mut texts = Vec::new();
    for field in fields(message) {
        if let (1, Value::Bytes(text)) = field {
            let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
            texts.push(parsed.ok().filter(|parsed| !parsed.is_empty()).ok_or(BadAnswer::NoCertificate)?);
        }
    }
    let bundle = texts.pop().ok_or(BadAnswer::Empty)?;
    if texts.is_empty() {
        return Err(BadAnswer::NoRoots);
    }
    // Some authorities put the root into the chain, too, where peers have no use for it.
    let chain = texts.into_iter().flatten().enumerate();
    let chain = chain.filter(|(at, one)| *at == 0 || !bundle.contains(one)).map(|(_, one)| one).collect();
    Ok(Enrolled { chain, bundle })
}

/// An `X509SVIDResponse`. Federated bundles are of other trust domains, whose peers we do not accept.
///
/// # Errors
/// When it has no identity, or one lacks a part.
pub fn svids(message: &[u8]) -> Result<X509Svids, BadAnswer> {
    let mut told = X509Svids::default();
    for field in fields(message) {
        match field {
            (1, Value::Bytes(one)) => told.svids.push(svid(one)?),
            (2, Value::Bytes(list)) => told.revocation_lists.push(list.to_vec()),
            _ => {}
        }
    }
    if told.svids.is_empty() { Err(BadAnswer::Empty) } else { Ok(told) }
}

/// An `X509SVID`, of which only the hint may be absent.
fn svid(message: &[u8]) -> Result<X509Svid, BadAnswer> {
    let [mut id, mut certificates, mut key, mut bundle, mut hint] = [&[][..]; 5];
    for field in fields(message) {
        match field {
            (1, Value::Bytes(value)) => id = value,
            (2, Value::Bytes(value)) => certificates = value,
            (3, Value::Bytes(value)) => key = value,
            (4, Value::Bytes(value)) => bundle = value,
            (5, Value::Bytes(value)) => hint = value,
            _ => {}
        }
    }
    let parts = [("SPIFFE ID", id), ("certificate", certificates), ("key", key), ("trust bundle", bundle)];
    if let Some((part, _)) = parts.into_iter().find(|(_, value)| value.is_empty()) {
        return Err(BadAnswer::Incomplete(part));
    }
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| BadAnswer::NoText);
    Ok(X509Svid {
        spiffe_id: text(id)?,
        certificates: certificates.to_vec(),
        key: Zeroizing::new(key.to_vec()),
        bundle: bundle.to_vec(),
        hint: text(hint)?,
    })
}

#[cfg(test)]
mod tests {
    use outrigger_identity::write_pem;
    use proptest::prelude::*;

    use super::*;

    fn pem(content: &[u8]) -> String {
        write_pem("CERTIFICATE", content)
    }

    fn answer(texts: &[&str]) -> Vec<u8> {
        let mut message = Vec::new();
        texts.iter().for_each(|text| put_bytes(&mut message, 1, text.as_bytes()));
        message
    }

    #[test]
    fn the_last_text_has_the_roots_and_the_rest_is_the_chain() {
        let (leaf, middle, old, new) = (pem(b"leaf"), pem(b"middle"), pem(b"old"), pem(b"new"));
        let both = format!("{old}{new}");
        for texts in
            [&[&*leaf, &middle, &both][..], &[&*leaf, &middle, &new, &both], &[&*format!("{leaf}{middle}"), &both]]
        {
            // A newer authority may say more.
            let mut message = answer(texts);
            put_number(&mut message, 7, 1);
            put_bytes(&mut message, 9, b"unknown");
            let Enrolled { chain, bundle } = certificates(&message).unwrap();
            assert_eq!(chain, [CertificateDer::from(&b"leaf"[..]), CertificateDer::from(&b"middle"[..])]);
            assert_eq!(bundle, [CertificateDer::from(&b"old"[..]), CertificateDer::from(&b"new"[..])]);
        }
    }

    #[test]
    fn an_answer_of_no_use_says_why() {
        let leaf = pem(b"leaf");
        for (message, why) in [
            (answer(&[]), BadAnswer::Empty),
            (answer(&[&leaf]), BadAnswer::NoRoots),
            (answer(&[&leaf, ""]), BadAnswer::NoCertificate),
            (answer(&["junk", &leaf]), BadAnswer::NoCertificate),
            (vec![0x0a, 9], BadAnswer::Empty),
        ] {
            assert_eq!(certificates(&message).unwrap_err(), why);
        }
    }

    #[test]
    fn a_request_holds_the_csr_and_the_lifetime() {
        let message = request("csr", Duration::from_secs(86400));
        let read: Vec<_> = fields(&message).collect();
        assert_eq!(read, [(1, Value::Bytes(b"csr")), (3, Value::Number(86400))]);
    }

    fn svid_message(parts: &[(u32, &[u8])]) -> Vec<u8> {
        let mut message = Vec::new();
        parts.iter().for_each(|(field, value)| put_bytes(&mut message, *field, value));
        message
    }

    #[test]
    fn an_agents_answer_holds_identities_and_lists() {
        let one = svid_message(&[(1, b"spiffe://a/b"), (2, b"chain"), (3, b"key"), (4, b"bundle"), (5, b"internal")]);
        let other = svid_message(&[(4, b"B"), (3, b"K"), (2, b"C"), (1, b"spiffe://a/c"), (9, b"unknown")]);
        let message = svid_message(&[(1, &one), (2, b"list"), (3, b"federated"), (1, &other), (7, b"unknown")]);
        let told = svids(&message).unwrap();
        let read: Vec<_> = told
            .svids
            .iter()
            .map(|svid| (&*svid.spiffe_id, &*svid.certificates, svid.key.as_slice(), &*svid.bundle, &*svid.hint))
            .collect();
        let expected = [
            ("spiffe://a/b", &b"chain"[..], &b"key"[..], &b"bundle"[..], "internal"),
            ("spiffe://a/c", b"C", b"K", b"B", ""),
        ];
        assert_eq!(read, expected);
        assert_eq!(told.revocation_lists, [b"list"]);
    }

    #[test]
    fn an_agents_answer_of_no_use_says_why() {
        let whole = [(1, &b"id"[..]), (2, b"chain"), (3, b"key"), (4, b"bundle")];
        let without = |at: usize| svid_message(&[&whole[..at], &whole[at + 1..]].concat());
        for (message, why) in [
            (Vec::new(), BadAnswer::Empty),
            (svid_message(&[(2, b"list")]), BadAnswer::Empty),
            (svid_message(&[(1, &without(0))]), BadAnswer::Incomplete("SPIFFE ID")),
            (svid_message(&[(1, &without(1))]), BadAnswer::Incomplete("certificate")),
            (svid_message(&[(1, &without(2))]), BadAnswer::Incomplete("key")),
            (svid_message(&[(1, &without(3))]), BadAnswer::Incomplete("trust bundle")),
            (svid_message(&[(1, &svid_message(&[&whole[1..], &[(1, b"\xff")]].concat()))]), BadAnswer::NoText),
        ] {
            assert_eq!(svids(&message).err(), Some(why));
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (svids(&message).is_ok(), certificates(&message).is_ok());
        }
    }
}
