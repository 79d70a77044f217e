//! Checks that each block of a template has its one end.
//!
//! In: a template that the engine has parsed. Out: nothing, or the first block that is not
//! closed, or `end`, `else`, `break` that belongs to none. The engine itself (gotmpl 0.6)
//! closes open blocks at the end of the text and drops all that follows an `end` too many:
//! half a secret would be written without a word.

use super::Flaw;

/// A block that is open.
struct Block<'a> {
    keyword: &'a str,
    line: usize,
    /// A plain `else` came already.
    last_branch: bool,
}

/// The first block that is not balanced.
pub(super) fn check(text: &str) -> Result<(), Flaw> {
    let mut open: Vec<Block<'_>> = Vec::new();
    for (line, words) in (Actions { text, at: 0, line: 1 }) {
        let (keyword, then) = words;
        let flaw = |message: &str| Err(Flaw { line, message: message.to_owned() });
        match keyword {
            "if" | "with" | "range" | "define" | "block" => open.push(Block { keyword, line, last_branch: false }),
            "end" if open.pop().is_none() => return flaw("`{{ end }}` without a block that it ends"),
            "else" => match open.last_mut() {
                Some(block) if matches!(block.keyword, "if" | "with" | "range") && !block.last_branch => {
                    block.last_branch = !matches!(then, "if" | "with");
                }
                _ => return flaw("`{{ else }}` without an `if`, `with` or `range` that it belongs to"),
            },
            "break" | "continue" if !open.iter().any(|block| block.keyword == "range") => {
                return flaw("`{{ break }}` or `{{ continue }}` outside a `range`");
            }
            _ => {}
        }
    }
    match open.last() {
        Some(Block { keyword, line, .. }) => {
            Err(Flaw { line: *line, message: format!("`{{{{ {keyword} … }}}}` is not closed; add `{{{{ end }}}}`") })
        }
        None => Ok(()),
    }
}

/// The actions of a text: line and first two words of each.
struct Actions<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Iterator for Actions<'a> {
    type Item = (usize, (&'a str, &'a str));

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.at + self.text.get(self.at..)?.find("{{")? + 2;
        self.line += lines(&self.text[self.at..start]);
        let line = self.line;
        let inside = &self.text[start..];
        let trimmed = match inside.strip_prefix('-') {
            Some(rest) if rest.starts_with([' ', '\t', '\r', '\n']) => rest.trim_start(),
            _ => inside.trim_start(),
        };
        let begin = self.text.len() - trimmed.len();
        let length = if trimmed.starts_with("/*") { comment(trimmed) } else { action(trimmed) };
        self.at = begin + length;
        self.line += lines(&self.text[start..self.at]);
        let mut words = trimmed[..length].split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty());
        let named = trimmed.starts_with(|c: char| c.is_alphabetic() || c == '_');
        let first = if named { words.next().unwrap_or_default() } else { "" };
        Some((line, (first, words.next().unwrap_or_default())))
    }
}

fn lines(text: &str) -> usize {
    text.matches('\n').count()
}

/// How long a comment is, with its closing delimiter.
fn comment(text: &str) -> usize {
    let end = text.find("*/").map_or(text.len(), |end| end + 2);
    text[end..].find("}}").map_or(text.len(), |delimiter| end + delimiter + 2)
}

/// How long an action is, with its closing delimiter; those within texts do not count.
fn action(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'}' if bytes.get(at + 1) == Some(&b'}') => return at + 2,
            b'`' => at += 1 + text[at + 1..].find('`').unwrap_or(text.len() - at - 1),
            quote @ (b'"' | b'\'') => {
                at += 1;
                while at < bytes.len() && bytes[at] != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
            }
            _ => {}
        }
        at += 1;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_one_end_each() {
        let cases = [
            ("none", "a {{ .x }} b", None),
            ("nested", "{{if .x}}{{range .y}}{{break}}{{else}}{{end}}{{else if .z}}{{else}}{{end}}", None),
            ("trimmed", "{{- with .x -}}{{- end -}}", None),
            ("in texts", r#"{{ printf "{{ if }} }} \" %s" `{{ if` '"' }}"#, None),
            ("in comments", "{{/* {{ if }} */}}{{- /* a \n }} */ -}}", None),
            ("fields", "{{ .end }}{{ $if := 1 }}{{ $if }}", None),
            ("blocks", "{{define \"a\"}}{{end}}{{block \"b\" .}}{{end}}", None),
            ("open", "a\n{{ with .x }}\n", Some(2)),
            ("the inner one is closed", "{{ with .x }}\n{{ if .y }}{{ end }}", Some(1)),
            ("end too many", "\n\n{{ end }} lost", Some(3)),
            ("else of none", "{{ else }}", Some(1)),
            ("else in a definition", "{{ define \"x\" }}{{ else }}{{ end }}", Some(1)),
            ("two of them", "{{ if .x }}{{ else }}\n{{ else }}{{ end }}", Some(2)),
            ("break", "{{ if .x }}{{ break }}{{ end }}", Some(1)),
        ];
        for (name, text, line) in cases {
            assert_eq!(check(text).err().map(|flaw| flaw.line), line, "{name}");
        }
    }
}
