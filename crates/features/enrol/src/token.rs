//! What a service account's token says of its bearer ([RFC 7519]), without verifying it: it is our own.
//!
//! In: a token. Out: the SPIFFE ID that an authority will see in it. Promise: never panics; a token
//! that is no JWT, or none of a service account, says nothing.
//!
//! [RFC 7519]: https://www.rfc-editor.org/rfc/rfc7519

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_config::{SpiffeId, TrustDomain};
use serde_json::Value;

/// Whose token it is.
pub(crate) fn subject(token: &str, trust_domain: &TrustDomain) -> Option<SpiffeId> {
    let claims = token.split('.').nth(1)?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?).ok()?;
    let (namespace, account) = claims["sub"].as_str()?.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}").parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shop() -> TrustDomain {
        "shop.example".parse().unwrap()
    }

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn tokens_of_service_accounts_say_who_we_are() {
        let id = subject(&token(r#"{"sub":"system:serviceaccount:shop:frontend"}"#), &shop()).unwrap();
        assert_eq!(id.as_str(), "spiffe://shop.example/ns/shop/sa/frontend");
        for other in [
            token(r#"{"sub":"alice"}"#),
            token(r#"{"sub":"system:serviceaccount:shop"}"#),
            token(r#"{"sub":"system:serviceaccount:shop:a/../b"}"#),
            token("{}"),
            token("no json"),
            "opaque".to_owned(),
            String::new(),
            "a.%%%.b".to_owned(),
        ] {
            assert_eq!(subject(&other, &shop()), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(token in ".{0,200}") {
            let _ = subject(&token, &shop());
        }
    }
}
