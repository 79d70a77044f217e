//! The one type that holds a secret value.
//!
//! Promise: it shows itself in no `Debug`, no `Display` and no serialised config, and
//! its bytes are zeroed when it is dropped.

use std::cell::RefCell;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// What stands in place of a secret wherever one would be shown.
pub const MASK: &str = "********";

/// A secret text: a token, a password, a rendered template.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of a secret text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
    /// The secret itself. Name the call site's reason in review: nothing that prints may use it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mark = MARKING.with_borrow(|key| key.as_ref().map(|key| format!("{MARK}{:016x}", key.hash_one(&*self.0))));
        serializer.serialize_str(mark.as_deref().unwrap_or(MASK))
    }
}

/// What a mark begins with. Another text that begins so is merely masked.
const MARK: &str = "\0secret:";

thread_local! {
    /// While set, secrets are serialised as marks, keyed with it.
    static MARKING: RefCell<Option<RandomState>> = const { RefCell::new(None) };
}

/// Runs `serialise` so that each secret becomes a mark that differs when its value does, and tells nothing of it:
/// a hash under a key that nobody else has and that is gone afterwards. Marks must not be printed.
pub(crate) fn marked<T>(serialise: impl FnOnce() -> T) -> T {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            MARKING.with_borrow_mut(|key| *key = None);
        }
    }
    let _reset = Reset;
    MARKING.with_borrow_mut(|key| *key = Some(RandomState::new()));
    serialise()
}

/// Whether a serialised text is a mark.
pub(crate) fn is_mark(text: &str) -> bool {
    text.starts_with(MARK)
}

impl JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "format": "password", "writeOnly": true,
            "description": "A secret text; shown nowhere. Prefer a file.",
        })
    }
}
