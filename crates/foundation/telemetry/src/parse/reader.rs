//! Puts lines together to families.
//!
//! In: lines, one after the other. Out: the exposition, or what is wrong and in which
//! column. Knows what each format allows: text 0.0.4 is read as Prometheus reads it,
//! OpenMetrics as its specification says.

use std::collections::HashMap;

use super::cursor::{Cursor, number, shorten, unescape};
use super::{Exemplar, Exposition, Family, FamilyType, Limits, Sample};
use crate::Format;

/// Suffixes of samples behind their family's name.
const SUFFIXES: [&str; 8] = ["_total", "_created", "_bucket", "_sum", "_count", "_gsum", "_gcount", "_info"];

/// Characters of an exemplar's labels, names and values together.
const MAX_EXEMPLAR: usize = 128;

pub(super) struct Reader {
    format: Format,
    limits: Limits,
    families: Vec<Family>,
    /// What was said about each family.
    said: Vec<Said>,
    by_name: HashMap<String, usize>,
    samples: usize,
    /// The family of the line before.
    current: Option<usize>,
    ended: bool,
}

#[derive(Default, Clone, Copy)]
struct Said {
    help: bool,
    kind: bool,
    unit: bool,
}

impl Reader {
    pub(super) fn new(format: Format, limits: Limits) -> Self {
        Self {
            format,
            limits,
            families: Vec::new(),
            said: Vec::new(),
            by_name: HashMap::new(),
            samples: 0,
            current: None,
            ended: false,
        }
    }

    /// Reads a line, which has no line feed; an error tells the column.
    pub(super) fn line(&mut self, line: &str) -> Result<(), (usize, String)> {
        let mut cursor = Cursor::new(line);
        self.any(&mut cursor).map_err(|message| (cursor.column(), message))
    }

    pub(super) fn finish(self) -> Result<Exposition, String> {
        if self.openmetrics() && !self.ended {
            return Err("`# EOF` is missing at the end: the text was cut off".to_owned());
        }
        Ok(Exposition { families: self.families })
    }

    fn openmetrics(&self) -> bool {
        self.format == Format::OpenMetrics
    }

    fn any(&mut self, cursor: &mut Cursor<'_>) -> Result<(), String> {
        if self.ended {
            return Err("text behind `# EOF`".to_owned());
        }
        cursor.skip_blanks();
        match cursor.peek() {
            None if self.openmetrics() => Err("OpenMetrics has no empty lines".to_owned()),
            None => Ok(()),
            Some('#') => self.comment(cursor),
            Some(_) => self.sample(cursor),
        }
    }

    fn comment(&mut self, cursor: &mut Cursor<'_>) -> Result<(), String> {
        cursor.advance();
        cursor.skip_blanks();
        if self.openmetrics() && cursor.rest() == "EOF" {
            self.ended = true;
            return Ok(());
        }
        let keyword = cursor.rest().split([' ', '\t']).next().unwrap_or_default();
        match keyword {
            "HELP" | "TYPE" => {}
            "UNIT" if self.openmetrics() => {}
            _ if self.openmetrics() => return Err("OpenMetrics has no comments".to_owned()),
            _ => return Ok(()),
        }
        cursor.until_blank();
        cursor.skip_blanks();
        let name = cursor.word(true).ok_or("a metric name is missing here")?;
        if !matches!(cursor.peek(), None | Some(' ' | '\t')) {
            return Err("a blank must stand here".to_owned());
        }
        cursor.skip_blanks();
        let index = self.family(name)?;
        let value = cursor.rest();
        let (openmetrics, format) = (self.openmetrics(), self.format);
        let (family, said) = (&mut self.families[index], &mut self.said[index]);
        let already = match keyword {
            "HELP" => std::mem::replace(&mut said.help, true),
            "UNIT" => std::mem::replace(&mut said.unit, true),
            _ => std::mem::replace(&mut said.kind, true),
        };
        if already {
            return Err(format!("a second `{keyword}` of `{}`", shorten(name)));
        }
        if !family.samples.is_empty() && (openmetrics || keyword == "TYPE") {
            return Err(format!("`{keyword}` of `{}` comes behind its samples", shorten(name)));
        }
        match keyword {
            "HELP" => family.help = unescape(value, openmetrics),
            "UNIT" => {
                if !value.is_empty() && !name.strip_suffix(value).is_some_and(|rest| rest.ends_with('_')) {
                    return Err(format!("`{}` does not end with the unit `{}`", shorten(name), shorten(value)));
                }
                family.unit = value.to_owned();
            }
            _ => {
                let value = value.trim_end_matches([' ', '\t']);
                family.kind = FamilyType::parse(value, format)
                    .ok_or_else(|| format!("`{}` is not a metric type", shorten(value)))?;
            }
        }
        cursor.take_rest();
        self.current = Some(index);
        Ok(())
    }

    fn sample(&mut self, cursor: &mut Cursor<'_>) -> Result<(), String> {
        let name = cursor.word(true).ok_or("a metric name must stand here")?;
        let (index, suffix) = self.owner(name)?;
        cursor.skip_blanks();
        let labels = if cursor.peek() == Some('{') { self.labels(cursor)? } else { Vec::new() };
        self.check_labels(index, suffix, &labels)?;
        cursor.skip_blanks();
        let value = cursor.number()?;
        cursor.skip_blanks();
        let timestamp = if matches!(cursor.peek(), None | Some('#')) { None } else { Some(self.timestamp(cursor)?) };
        cursor.skip_blanks();
        let with_exemplar = self.openmetrics() && matches!(suffix, "_total" | "_bucket");
        let exemplar = match cursor.peek() {
            Some('#') if with_exemplar => Some(self.exemplar(cursor)?),
            _ => None,
        };
        if !cursor.rest().is_empty() {
            return Err("nothing may follow here".to_owned());
        }
        self.samples += 1;
        if self.samples > self.limits.max_samples {
            return Err(format!("more than {} samples", self.limits.max_samples));
        }
        self.families[index].samples.push(Sample { name: name.to_owned(), labels, value, timestamp, exemplar });
        self.current = Some(index);
        Ok(())
    }

    /// The family a sample belongs to, and the suffix it has there.
    fn owner(&mut self, sample: &str) -> Result<(usize, &'static str), String> {
        for suffix in SUFFIXES {
            if let Some(base) = sample.strip_suffix(suffix)
                && let Some(index) = self.by_name.get(base)
                && self.families[*index].kind.takes(suffix, self.format)
            {
                let index = *index;
                self.check_together(index, base)?;
                return Ok((index, suffix));
            }
        }
        let index = self.family(sample)?;
        let kind = self.families[index].kind;
        if self.openmetrics() && !kind.takes("", self.format) {
            return Err(format!("`{}` needs a suffix: its family is a {}", shorten(sample), kind.as_str()));
        }
        self.check_together(index, sample)?;
        Ok((index, ""))
    }

    /// OpenMetrics wants the lines of a family in one place.
    fn check_together(&self, index: usize, name: &str) -> Result<(), String> {
        if self.openmetrics() && self.current != Some(index) && !self.families[index].samples.is_empty() {
            return Err(format!("the samples of `{}` do not stand together", shorten(name)));
        }
        Ok(())
    }

    /// The labels that make a bucket or a quantile what it is.
    fn check_labels(&self, index: usize, suffix: &str, labels: &[(String, String)]) -> Result<(), String> {
        let needed = match (self.families[index].kind, suffix) {
            (_, "_bucket") => "le",
            (FamilyType::Summary, "") => "quantile",
            _ => return Ok(()),
        };
        match labels.iter().find(|(name, _)| name == needed) {
            Some((_, value)) if number(value).is_some() => Ok(()),
            Some((_, value)) => Err(format!("`{needed}` is `{}`, which is not a number", shorten(value))),
            // Prometheus takes such a line from a text as any other.
            None if !self.openmetrics() => Ok(()),
            None => Err(format!("the label `{needed}` is missing")),
        }
    }

    /// Text 0.0.4 has whole milliseconds, OpenMetrics seconds.
    fn timestamp(&self, cursor: &mut Cursor<'_>) -> Result<f64, String> {
        if self.openmetrics() {
            return seconds(cursor);
        }
        let word = cursor.rest().split([' ', '\t']).next().unwrap_or_default();
        let milliseconds: i64 =
            word.parse().map_err(|_| format!("`{}` is not a time in milliseconds", shorten(word)))?;
        cursor.until_blank();
        Ok(milliseconds as f64 / 1e3)
    }

    fn exemplar(&self, cursor: &mut Cursor<'_>) -> Result<Exemplar, String> {
        cursor.advance();
        cursor.skip_blanks();
        if cursor.peek() != Some('{') {
            return Err("an exemplar begins with its labels in braces".to_owned());
        }
        let labels = self.labels(cursor)?;
        let length: usize = labels.iter().map(|(name, value)| name.len() + value.chars().count()).sum();
        if length > MAX_EXEMPLAR {
            return Err(format!("the exemplar's labels have more than {MAX_EXEMPLAR} characters"));
        }
        cursor.skip_blanks();
        let value = cursor.number()?;
        cursor.skip_blanks();
        let timestamp = if cursor.rest().is_empty() { None } else { Some(seconds(cursor)?) };
        Ok(Exemplar { labels, value, timestamp })
    }

    fn labels(&self, cursor: &mut Cursor<'_>) -> Result<Vec<(String, String)>, String> {
        cursor.advance();
        let mut labels: Vec<(String, String)> = Vec::new();
        loop {
            cursor.skip_blanks();
            if cursor.peek() == Some('}') {
                cursor.advance();
                return Ok(labels);
            }
            let name = cursor.word(false).ok_or("a label name or `}` must stand here")?;
            if labels.iter().any(|(label, _)| label == name) {
                return Err(format!("the label `{}` stands twice", shorten(name)));
            }
            if labels.len() == self.limits.max_labels {
                return Err(format!("more than {} labels", self.limits.max_labels));
            }
            cursor.skip_blanks();
            cursor.expect('=')?;
            cursor.skip_blanks();
            labels.push((name.to_owned(), cursor.quoted()?));
            cursor.skip_blanks();
            match cursor.peek() {
                Some(',') => cursor.advance(),
                Some('}') => {}
                _ => return Err("`,` or `}` must stand here".to_owned()),
            }
        }
    }

    /// The place of a family, made when it is new.
    fn family(&mut self, name: &str) -> Result<usize, String> {
        if let Some(index) = self.by_name.get(name) {
            return Ok(*index);
        }
        if self.families.len() >= self.limits.max_samples {
            return Err(format!("more than {} families", self.limits.max_samples));
        }
        self.by_name.insert(name.to_owned(), self.families.len());
        self.families.push(Family { name: name.to_owned(), ..Family::default() });
        self.said.push(Said::default());
        Ok(self.families.len() - 1)
    }
}

fn seconds(cursor: &mut Cursor<'_>) -> Result<f64, String> {
    let mut ahead = Cursor::new(cursor.rest());
    let at = ahead.number()?;
    if !at.is_finite() {
        return Err("a time must be finite".to_owned());
    }
    cursor.until_blank();
    Ok(at)
}
