//! Lists, page by page, each object handed on and forgotten.
//!
//! In: a collection, selectors. Out: its objects one by one, then the version that the list is of. Promise: no more of a
//! page is in memory than its text and one object; a list that takes longer than the API server remembers
//! (410) is begun again, and the caller is told.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::client::{Client, Request};
use crate::error::ApiError;
use crate::object::{Path, escape};

/// Objects per request: some megabytes of pods.
const PAGE: usize = 500;
/// A list is begun again so often.
const TRIES: usize = 3;

/// Which objects of a collection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// A label selector, such as `app=web`; empty for all.
    pub labels: String,
    /// A field selector, such as `metadata.name=web`; empty for all.
    pub fields: String,
}

impl Selection {
    /// By labels.
    pub fn labels(selector: impl Into<String>) -> Self {
        Self { labels: selector.into(), fields: String::new() }
    }

    /// By fields.
    pub fn fields(selector: impl Into<String>) -> Self {
        Self { labels: String::new(), fields: selector.into() }
    }

    /// As parameters of a query.
    pub(crate) fn query(&self) -> String {
        let mut query = String::new();
        for (key, value) in [("labelSelector", &self.labels), ("fieldSelector", &self.fields)] {
            if !value.is_empty() {
                query.push_str(key);
                query.push('=');
                escape(&mut query, value);
                query.push('&');
            }
        }
        query
    }
}

impl Client {
    /// The objects of a collection, all pages of it.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn list(&self, path: Path<'_>, selection: &Selection) -> Result<Vec<Value>, ApiError> {
        let mut found = Vec::new();
        for last in [false, true] {
            found.clear();
            match self.list_once(path, selection, &mut |object| found.push(object)).await {
                Err(error) if error.is_gone() && !last => {}
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
        Ok(found)
    }

    /// Hands over each object of a collection. When the API server has forgotten the list in the middle of it, `begin` is
    /// called again and the objects come anew. Gives the version that the list is of.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn each(
        &self,
        path: Path<'_>,
        selection: &Selection,
        mut begin: impl FnMut() + Send,
        mut object: impl FnMut(Value) + Send,
    ) -> Result<String, ApiError> {
        let mut tries = 1;
        loop {
            begin();
            match self.list_once(path, selection, &mut object).await {
                Err(error) if error.is_gone() && tries < TRIES => tries += 1,
                result => return result,
            }
        }
    }

    async fn list_once(
        &self,
        path: Path<'_>,
        selection: &Selection,
        object: &mut (dyn FnMut(Value) + Send),
    ) -> Result<String, ApiError> {
        let mut token = String::new();
        let fixed = selection.query();
        loop {
            let mut query = format!("{fixed}limit={PAGE}");
            if !token.is_empty() {
                query.push_str("&continue=");
                escape(&mut query, &token);
            }
            let body = self.send(Request { query, ..Request::get("list", path) }).await?;
            let page = read_page(&body, object).map_err(|error| ApiError::Malformed {
                verb: "list",
                what: path.to_string(),
                problem: error.to_string(),
            })?;
            if page.token.is_empty() {
                return Ok(page.version);
            }
            token = page.token;
        }
    }
}

#[derive(Debug, Default)]
struct Page {
    token: String,
    version: String,
}

/// Reads a list, and hands over each of its items as soon as it is read.
fn read_page(body: &[u8], object: &mut (dyn FnMut(Value) + Send)) -> Result<Page, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let page = reader.deserialize_map(PageVisitor { object })?;
    reader.end()?;
    Ok(page)
}

struct PageVisitor<'a> {
    object: &'a mut (dyn FnMut(Value) + Send),
}

impl<'de> Visitor<'de> for PageVisitor<'_> {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Page, A::Error> {
        let mut page = Page::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "metadata" => {
                    let about: Value = map.next_value()?;
                    let text = |key: &str| about[key].as_str().unwrap_or_default().to_owned();
                    page = Page { token: text("continue"), version: text("resourceVersion") };
                }
                "items" => map.next_value_seed(Items { object: &mut *self.object })?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(page)
    }
}

struct Items<'a> {
    object: &'a mut (dyn FnMut(Value) + Send),
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        // An empty list may be `null`.
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the items of a list")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element::<Value>()? {
            (self.object)(item);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_in_any_order() {
        let rows = [
            (
                r#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"c"},"items":[{"a":1},{"a":2}]}"#,
                2,
                "c",
            ),
            (r#"{"items":[{"a":1}],"metadata":{"resourceVersion":"7"},"more":[{}]}"#, 1, ""),
            (r#"{"items":null,"metadata":{"resourceVersion":"7"}}"#, 0, ""),
        ];
        for (text, count, token) in rows {
            let mut found = Vec::new();
            let page = read_page(text.as_bytes(), &mut |object| found.push(object)).unwrap();
            assert_eq!((found.len(), page.token.as_str(), page.version.as_str()), (count, token, "7"), "{text}");
        }
        for text in ["[]", "{\"items\":3}", "{\"items\":[", "nonsense"] {
            assert!(read_page(text.as_bytes(), &mut |_| {}).is_err(), "{text}");
        }
    }

    #[test]
    fn selectors_become_a_query() {
        let selection = Selection { labels: "a in (b,c)".to_owned(), fields: "metadata.name=x".to_owned() };
        assert_eq!(selection.query(), "labelSelector=a%20in%20%28b%2Cc%29&fieldSelector=metadata.name%3Dx&");
        assert_eq!(Selection::default().query(), "");
    }
}
