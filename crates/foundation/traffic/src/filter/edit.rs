//! Changes of header fields.

use outrigger_config::HeaderModifier;
use outrigger_wire::head::Head;

/// One change.
#[derive(Debug)]
pub(super) enum Edit {
    Set(Box<str>, Box<[u8]>),
    Add(Box<str>, Box<[u8]>),
    Remove(Box<str>),
}

/// Compiles changes; no two of them are of the same field, so their order does not matter.
pub(super) fn add(edits: &mut Vec<Edit>, changes: &HeaderModifier) {
    let bytes = |value: &str| value.trim().as_bytes().into();
    edits.extend(changes.set.iter().map(|one| Edit::Set(one.name.as_str().into(), bytes(&one.value))));
    edits.extend(changes.add.iter().map(|one| Edit::Add(one.name.as_str().into(), bytes(&one.value))));
    edits.extend(changes.remove.iter().map(|name| Edit::Remove(name.as_str().into())));
}

impl Edit {
    pub(super) fn apply(&self, head: &mut Head) {
        match self {
            Self::Set(name, value) => head.set(name, value),
            Self::Add(name, value) => head.push(name, value),
            Self::Remove(name) => head.remove_named(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::HeaderValue;

    use super::*;

    #[test]
    fn fields_are_set_added_and_removed() {
        let value = |name: &str, value: &str| HeaderValue { name: name.to_owned(), value: value.to_owned() };
        let changes = HeaderModifier {
            set: vec![value("x-set", "new"), value("x-new", "1")],
            add: vec![value("X-Add", "2")],
            remove: vec!["X-GONE".to_owned()],
        };
        let mut edits = Vec::new();
        add(&mut edits, &changes);
        let mut head = Head::default();
        for (name, value) in [("X-Set", "a"), ("x-gone", "a"), ("x-add", "1"), ("x-set", "b"), ("X-Gone", "b")] {
            head.push(name, value.as_bytes());
        }
        edits.iter().for_each(|edit| edit.apply(&mut head));
        let fields: Vec<_> = head.fields().map(|field| (field.name, field.value)).collect();
        let expected = [("X-Set", "new"), ("x-add", "1"), ("x-new", "1"), ("X-Add", "2")];
        assert_eq!(fields, expected.map(|(name, value)| (name, value.as_bytes())));
    }
}
