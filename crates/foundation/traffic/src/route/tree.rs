//! Paths, and what is kept for each: whole ones and prefixes of whole segments.
//!
//! A radix tree over bytes in three flat arrays. Promise: a walk looks at each byte of a path
//! once, however many paths there are; from the longest prefix it leads to the next shorter
//! one by a link, without another walk.

use std::collections::BTreeMap;
use std::ops::Range;

/// No node.
const NONE: u32 = u32::MAX;

/// A tree of paths.
#[derive(Debug)]
pub(crate) struct Tree<T> {
    /// The root is the first.
    nodes: Vec<Node>,
    /// The children of each node, by their first byte, in order.
    edges: Vec<(u8, u32)>,
    /// Labels of all nodes.
    bytes: Vec<u8>,
    values: Vec<T>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    label: Range<u32>,
    edges: Range<u32>,
    /// Values of this very path.
    exact: Range<u32>,
    /// Values of this prefix.
    prefix: Range<u32>,
    /// Bytes from the root to its end.
    length: u32,
    /// The nearest node above that has values of its prefix.
    up: u32,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self::new(Vec::new(), Vec::new())
    }
}

/// What is kept for one path while the tree is made.
type Both<T> = (Vec<T>, Vec<T>);

impl<T> Tree<T> {
    /// A tree of whole paths and of prefixes; values of the same one keep their order. A prefix ends without a slash,
    /// and the empty one is every path's.
    pub(crate) fn new(exact: Vec<(String, T)>, prefixes: Vec<(String, T)>) -> Self {
        let mut all: BTreeMap<String, Both<T>> = BTreeMap::new();
        for (path, value) in exact {
            all.entry(path).or_default().0.push(value);
        }
        for (prefix, value) in prefixes {
            all.entry(prefix).or_default().1.push(value);
        }
        let mut tree = Self { nodes: Vec::new(), edges: Vec::new(), bytes: Vec::new(), values: Vec::new() };
        let mut all: Vec<_> = all.into_iter().collect();
        tree.add(&mut all, 0, 0, NONE);
        tree
    }

    /// Adds the node of `all`, which have their first `length` bytes in common, the label being those behind `above`.
    fn add(&mut self, all: &mut [(String, Both<T>)], above: usize, length: usize, up: u32) -> u32 {
        let number = self.nodes.len() as u32;
        self.nodes.push(Node { length: length as u32, up, ..Node::default() });
        let mut rest = all;
        if let Some((path, _)) = rest.first() {
            let start = self.bytes.len() as u32;
            self.bytes.extend_from_slice(&path.as_bytes()[above..length]);
            self.nodes[number as usize].label = start..self.bytes.len() as u32;
        }
        if rest.first().is_some_and(|(path, _)| path.len() == length) {
            let (exact, prefix) = std::mem::take(&mut rest[0].1);
            self.nodes[number as usize].exact = self.keep(exact);
            self.nodes[number as usize].prefix = self.keep(prefix);
            rest = &mut rest[1..];
        }
        let up = if self.nodes[number as usize].prefix.is_empty() { up } else { number };
        let mut edges = Vec::new();
        while let Some((path, _)) = rest.first() {
            let first = path.as_bytes()[length];
            let count = rest.partition_point(|(path, _)| path.as_bytes()[length] <= first);
            let (group, behind) = rest.split_at_mut(count);
            let end = common(group[0].0.as_bytes(), group[count - 1].0.as_bytes());
            edges.push((first, self.add(group, length, end, up)));
            rest = behind;
        }
        let start = self.edges.len() as u32;
        self.edges.extend(edges);
        self.nodes[number as usize].edges = start..self.edges.len() as u32;
        number
    }

    fn keep(&mut self, values: Vec<T>) -> Range<u32> {
        let start = self.values.len() as u32;
        self.values.extend(values);
        start..self.values.len() as u32
    }

    /// Follows a path as far as it is known.
    pub(crate) fn walk<'t>(&'t self, path: &'t str) -> Walk<'t, T> {
        let bytes = path.as_bytes();
        let (mut at, mut number) = (0, 0);
        let mut nearest = 0;
        loop {
            let node = &self.nodes[number as usize];
            if !node.prefix.is_empty() {
                nearest = number;
            } else if number == 0 {
                nearest = NONE;
            }
            let Some(next) = bytes.get(at) else {
                return Walk { tree: self, path: bytes, exact: &node.exact, next: nearest };
            };
            let edges = &self.edges[as_range(&node.edges)];
            let child = match edges {
                [(byte, child)] if byte == next => *child,
                [_] | [] => break,
                edges => match edges.binary_search_by_key(next, |(byte, _)| *byte) {
                    Ok(found) => edges[found].1,
                    Err(_) => break,
                },
            };
            let label = &self.bytes[as_range(&self.nodes[child as usize].label)];
            if !bytes[at..].starts_with(label) {
                break;
            }
            at += label.len();
            number = child;
        }
        Walk { tree: self, path: bytes, exact: &(0..0), next: nearest }
    }
}

/// Where a path led.
pub(crate) struct Walk<'t, T> {
    tree: &'t Tree<T>,
    path: &'t [u8],
    exact: &'t Range<u32>,
    /// The node of the longest prefix that was not told yet.
    next: u32,
}

impl<'t, T> Walk<'t, T> {
    /// Values of this very path.
    pub(crate) fn exact(&self) -> &'t [T] {
        &self.tree.values[as_range(self.exact)]
    }

    /// The next prefix of whole segments, the longest first: its length and values.
    pub(crate) fn next_prefix(&mut self) -> Option<(u32, &'t [T])> {
        while self.next != NONE {
            let node = &self.tree.nodes[self.next as usize];
            self.next = node.up;
            let length = node.length as usize;
            // The empty one is every path's, also that of `*`, which is no path.
            if length == 0 || self.path.get(length).is_none_or(|byte| *byte == b'/') {
                return Some((node.length, &self.tree.values[as_range(&node.prefix)]));
            }
        }
        None
    }
}

fn as_range(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// How many bytes two paths have in common; of a sorted group, the first and the last tell it of all.
fn common(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(tree: &Tree<String>, path: &str) -> (Vec<String>, Vec<String>) {
        let mut walk = tree.walk(path);
        let exact = walk.exact().to_vec();
        let mut prefixes = Vec::new();
        while let Some((length, values)) = walk.next_prefix() {
            assert!(values.iter().all(|value| value.len() == length as usize));
            prefixes.extend_from_slice(values);
        }
        (exact, prefixes)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_walk_finds_what_a_search_finds(
            exact in prop::collection::vec("(/[ab]{0,2}){1,3}", 0..8),
            prefixes in prop::collection::vec("(/[ab]{1,2}){0,3}", 0..8),
            path in "(/[ab]{0,2}){1,4}|\\*",
        ) {
            let pairs = |texts: &[String]| texts.iter().map(|text| (text.clone(), text.clone())).collect();
            let tree = Tree::new(pairs(&exact), pairs(&prefixes));
            let whole: Vec<_> = exact.iter().filter(|one| **one == path).cloned().collect();
            let mut leading: Vec<_> = prefixes
                .iter()
                .filter(|one| one.is_empty() || path == **one || path.starts_with(&format!("{one}/")))
                .cloned()
                .collect();
            leading.sort_by_key(|one| std::cmp::Reverse(one.len()));
            prop_assert_eq!(found(&tree, &path), (whole, leading));
        }
    }
}
