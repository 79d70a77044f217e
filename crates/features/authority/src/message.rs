//! The messages of Istio's certificate API ([`istio.v1.auth.IstioCertificateService`]).
//!
//! In: protobuf. Out: what was asked for; and the answer as protobuf. Promise: never panics;
//! unknown fields are skipped, as a newer client may send some.
//!
//! [`istio.v1.auth.IstioCertificateService`]: https://github.com/istio/api/blob/master/security/v1alpha1/ca.proto

use outrigger_wire::protobuf::{Value, fields, put_bytes};

/// The one method of the service.
pub(crate) const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// An `IstioCertificateRequest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CreateCertificate<'a> {
    /// The certificate signing request, PEM.
    pub csr: &'a [u8],
    /// The lifetime asked for, in seconds; 0 leaves it to the authority.
    pub validity_seconds: i64,
}

impl<'a> CreateCertificate<'a> {
    /// Reads a request, up to where it breaks off.
    pub fn read(message: &'a [u8]) -> Self {
        let mut request = Self::default();
        for field in fields(message) {
            match field {
                (1, Value::Bytes(csr)) => request.csr = csr,
                (3, Value::Number(seconds)) => request.validity_seconds = seconds as i64,
                _ => {}
            }
        }
        request
    }
}

/// An `IstioCertificateResponse`: the certificate, those between it and the roots, and all roots as one text.
pub(crate) fn answer<'a>(certificates: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut message = Vec::new();
    for certificate in certificates {
        put_bytes(&mut message, 1, certificate.as_bytes());
    }
    message
}
