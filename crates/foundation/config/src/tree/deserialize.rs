//! From a tree of nodes to a typed value, by way of serde.
//!
//! In: a [`Node`] that was checked and repaired. Out: the value, or what serde refused
//! and where (which the check should have found; it is reported, never a panic).

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};

use super::{Entry, Node, Resolved, Scalar, Span, Value};

/// What serde refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) message: String,
    pub(crate) span: Option<Span>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl de::Error for Refusal {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), span: None }
    }
}

/// Reads a value of type `T`.
pub(crate) fn from_node<T: DeserializeOwned>(node: &Node) -> Result<T, Refusal> {
    T::deserialize(Reader(node))
}

struct Reader<'a>(&'a Node);

impl<'a> Reader<'a> {
    fn scalar(&self) -> Result<&'a Scalar, Refusal> {
        match &self.0.value {
            Value::Scalar(scalar) => Ok(scalar),
            _ => Err(de::Error::custom("expected a single value")),
        }
    }

    fn integer<T: TryFrom<i128>>(&self) -> Result<T, Refusal> {
        match self.scalar()?.resolve() {
            Resolved::Integer(n) => T::try_from(n).map_err(|_| de::Error::custom("the number is out of range")),
            _ => Err(de::Error::custom("expected a whole number")),
        }
    }

    fn float(&self) -> Result<f64, Refusal> {
        match self.scalar()?.resolve() {
            #[expect(clippy::cast_precision_loss, reason = "a float field takes whole numbers, as YAML has it")]
            Resolved::Integer(n) => Ok(n as f64),
            Resolved::Float(n) => Ok(n),
            _ => Err(de::Error::custom("expected a number")),
        }
    }

    /// Runs a visit; the innermost node that refuses names the place.
    fn here<T>(&self, result: Result<T, Refusal>) -> Result<T, Refusal> {
        result.map_err(|refusal| Refusal { span: refusal.span.or(Some(self.0.span)), ..refusal })
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $read:ident),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
            self.here(self.$read().and_then(|n| visitor.$visit(n)))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'de> {
    type Error = Refusal;

    numbers!(
        deserialize_i8 visit_i8 integer, deserialize_i16 visit_i16 integer, deserialize_i32 visit_i32 integer,
        deserialize_i64 visit_i64 integer, deserialize_u8 visit_u8 integer, deserialize_u16 visit_u16 integer,
        deserialize_u32 visit_u32 integer, deserialize_u64 visit_u64 integer,
        deserialize_f64 visit_f64 float, deserialize_f32 visit_f64 float,
    );

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let result = match &self.0.value {
            Value::Sequence(items) => visitor.visit_seq(Items(items.iter())),
            // They are filled in afterwards.
            Value::Endpoints(_) => visitor.visit_seq(Items(std::slice::Iter::default())),
            Value::Mapping(entries) => visitor.visit_map(Members { entries: entries.iter(), value: None }),
            Value::Scalar(scalar) => match scalar.resolve() {
                Resolved::Null => visitor.visit_unit(),
                Resolved::Boolean(value) => visitor.visit_bool(value),
                Resolved::Integer(n) => match u64::try_from(n) {
                    Ok(n) => visitor.visit_u64(n),
                    Err(_) => i64::try_from(n)
                        .map_err(|_| de::Error::custom("the number is out of range"))
                        .and_then(|n| visitor.visit_i64(n)),
                },
                Resolved::Float(n) => visitor.visit_f64(n),
                Resolved::Text => visitor.visit_borrowed_str(&scalar.text),
            },
        };
        self.here(result)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let value = match self.scalar()?.resolve() {
            Resolved::Boolean(value) => visitor.visit_bool(value),
            _ => Err(de::Error::custom("expected `true` or `false`")),
        };
        self.here(value)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.here(self.scalar().and_then(|scalar| visitor.visit_borrowed_str(&scalar.text)))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        let variant: Result<StrDeserializer<'_, Refusal>, _> =
            self.scalar().map(|scalar| scalar.text.as_str().into_deserializer());
        self.here(variant.and_then(|variant| visitor.visit_enum(variant)))
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'a>(std::slice::Iter<'a, Node>);

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Refusal;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refusal> {
        self.0.next().map(|node| seed.deserialize(Reader(node))).transpose()
    }
}

struct Members<'a> {
    entries: std::slice::Iter<'a, Entry>,
    value: Option<&'a Node>,
}

impl<'de> de::MapAccess<'de> for Members<'de> {
    type Error = Refusal;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refusal> {
        let Some(entry) = self.entries.next() else { return Ok(None) };
        self.value = Some(&entry.value);
        let key: StrDeserializer<'_, Refusal> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map_err(|refusal: Refusal| Refusal { span: Some(entry.key_span), ..refusal }).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refusal> {
        let node = self.value.take().ok_or_else(|| <Refusal as de::Error>::custom("a value without a key"))?;
        seed.deserialize(Reader(node))
    }
}
