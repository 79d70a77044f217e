//! The messages of `CreateCertificate`.
//!
//! In: a signing request and a lifetime; an answer. Out: protobuf; certificates. Promise: never
//! panics; an answer without a certificate or without roots is an error.

use std::time::Duration;

use outrigger_identity::Enrolled;
use outrigger_wire::protobuf::{Value, fields, put_bytes, put_number};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Why an answer is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadAnswer {
    #[error("its answer holds something that is no certificate as PEM")]
    NoCertificate,
    #[error("its answer holds a certificate, but no roots to trust")]
    NoRoots,
    #[error("its answer holds no certificate")]
    Empty,
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

#[cfg(test)]
mod tests {
    use outrigger_identity::write_pem;

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
            let Enrolled { chain, bundle } = certificates(&answer(texts)).unwrap();
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
}
