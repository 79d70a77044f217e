//! Rules of the section `logs`: a graph in which each line finds its way to a sink, once.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Judge, reached};
use crate::diagnostic::Problem;
use crate::{Config, ConfigPath, HttpSink, LogSink, Logs, Name, Secret};

/// Headers that belong to the HTTP client.
const OWN_HEADERS: [&str; 6] = ["connection", "content-length", "content-type", "host", "te", "transfer-encoding"];

pub(super) fn rules(config: &Config, judge: &mut Judge<'_>) {
    let Some(logs) = &config.logs else { return };
    let at = ConfigPath::from("logs");
    let graph = Graph::of(logs, &at);
    graph.names(judge);
    graph.inputs(judge);
    graph.cycles(judge);
    graph.dead_ends(judge);
    graph.loops_over_files(judge);
    graph.lines_fit_buffers(judge);
    for (index, source) in logs.sources.iter().enumerate() {
        let at = at.key("sources").index(index);
        judge.exactly_one(&at, &[("file", source.file.is_some()), ("accessLog", source.access_log.is_some())]);
        if source.access_log.is_some() && config.proxy.as_ref().is_none_or(|proxy| proxy.access_log.is_none()) {
            let message = "there is no access log to take lines from";
            judge.error("missing", &at.key("accessLog"), message, "add `proxy.accessLog`, such as `accessLog: {}`");
        }
        if let Some(file) = &source.file
            && file.max_line.0 == 0
        {
            let at = at.key("file").key("maxLine");
            judge.error("value", &at, "`maxLine` must not be zero", "write a size such as `64KiB`");
        }
    }
    for (index, transform) in logs.transforms.iter().enumerate() {
        judge.exactly_one(&at.key("transforms").index(index), &[("json", transform.json.is_some())]);
    }
    for (index, sink) in logs.sinks.iter().enumerate() {
        sink_rules(sink, &at.key("sinks").index(index), judge);
    }
    let taking = logs.sources.iter().enumerate().filter(|(_, source)| source.access_log.is_some());
    let taking: Vec<_> = taking.map(|(i, _)| (at.key("sources").index(i).key("accessLog"), "accessLog")).collect();
    judge.unique("source `accessLog`", "let one source take it; several sinks may take its lines", taking);
    let read = logs.sources.iter().enumerate().filter_map(|(i, source)| {
        Some((at.key("sources").index(i).key("file").key("path"), source.file.as_ref()?.path.clone()))
    });
    judge.unique("log file", "let one source read it; several sinks may take its lines", read);
}

/// Who reads from whom.
struct Graph<'c> {
    logs: &'c Logs,
    at: ConfigPath,
    /// From a source or transform to the transforms that read it.
    next: HashMap<&'c str, Vec<&'c str>>,
}

impl<'c> Graph<'c> {
    fn of(logs: &'c Logs, at: &ConfigPath) -> Self {
        let mut next: HashMap<&str, Vec<&str>> = HashMap::new();
        for transform in &logs.transforms {
            for input in &transform.inputs {
                next.entry(input.as_str()).or_default().push(transform.name.as_str());
            }
        }
        Self { logs, at: at.clone(), next }
    }

    fn source_name(&self, index: usize) -> ConfigPath {
        self.at.key("sources").index(index).key("name")
    }

    fn transform_name(&self, index: usize) -> ConfigPath {
        self.at.key("transforms").index(index).key("name")
    }

    /// Sources and transforms: what can be read from.
    fn readable(&self) -> Vec<(ConfigPath, &'c str)> {
        let sources =
            self.logs.sources.iter().enumerate().map(|(i, source)| (self.source_name(i), source.name.as_str()));
        let transforms = self.logs.transforms.iter().enumerate();
        sources.chain(transforms.map(|(i, transform)| (self.transform_name(i), transform.name.as_str()))).collect()
    }

    /// Each list of inputs and where it stands.
    fn readers(&self) -> impl Iterator<Item = (ConfigPath, &'c [Name])> {
        let (transforms, sinks) = (self.at.key("transforms"), self.at.key("sinks"));
        let transforms_read = self.logs.transforms.iter().enumerate();
        let sinks_read = self.logs.sinks.iter().enumerate();
        transforms_read
            .map(move |(i, transform)| (transforms.index(i).key("inputs"), transform.inputs.as_slice()))
            .chain(sinks_read.map(move |(i, sink)| (sinks.index(i).key("inputs"), sink.inputs.as_slice())))
    }

    fn names(&self, judge: &mut Judge<'_>) {
        judge.unique("name", "sources and transforms share their names; give each its own", self.readable());
        let sinks = self.logs.sinks.iter().enumerate();
        judge.unique(
            "sink name",
            "give each a name of its own",
            sinks.map(|(i, sink)| (self.at.key("sinks").index(i).key("name"), &sink.name)),
        );
    }

    fn inputs(&self, judge: &mut Judge<'_>) {
        let known = self.readable();
        let sinks: HashSet<_> = self.logs.sinks.iter().map(|sink| sink.name.as_str()).collect();
        for (at, inputs) in self.readers() {
            judge.unique(
                "input",
                "keep one, or each line comes twice",
                inputs.iter().enumerate().map(|(i, input)| (at.index(i), input)),
            );
            for (index, input) in inputs.iter().enumerate() {
                let at = at.index(index);
                let is_known = known.iter().any(|(_, name)| *name == input.as_str());
                if !is_known && sinks.contains(input.as_str()) {
                    let message = format!(
                        "`{}` is a sink, and nothing can be read from a sink",
                        judge.shown(&at, &input.as_str())
                    );
                    judge.error("reference", &at, message, "name a source or a transform");
                } else if !judge.checked.is_blurred_within(&self.at.key("transforms")) || is_known {
                    judge.known("source or transform", &at, input, &known, &self.at.key("sources"));
                }
            }
        }
    }

    fn cycles(&self, judge: &mut Judge<'_>) {
        let mut told = HashSet::new();
        for (index, transform) in self.logs.transforms.iter().enumerate() {
            let name = transform.name.as_str();
            let after = reached(name, &self.next);
            if !after.contains(name) || !told.insert(name) {
                continue;
            }
            let position =
                transform.inputs.iter().position(|input| input.as_str() == name || after.contains(input.as_str()));
            let at = self.at.key("transforms").index(index).key("inputs").index(position.unwrap_or(0));
            let ring = after.iter().filter(|other| reached(other, &self.next).contains(name));
            told.extend(ring);
            let message = if position.is_some_and(|p| transform.inputs[p].as_str() == name) {
                format!("the transform `{}` reads from itself", judge.shown(&self.transform_name(index), &name))
            } else {
                format!(
                    "the transform `{}` reads from what it feeds itself",
                    judge.shown(&self.transform_name(index), &name)
                )
            };
            judge.error("conflict", &at, message, "let the chain begin at a source");
        }
    }

    /// The sinks, by index, that lines of `name` come to.
    fn sinks_of(&self, name: &str) -> Vec<usize> {
        let mut from = reached(name, &self.next);
        from.insert(name);
        let sinks = self.logs.sinks.iter().enumerate();
        sinks
            .filter(|(_, sink)| sink.inputs.iter().any(|input| from.contains(input.as_str())))
            .map(|(i, _)| i)
            .collect()
    }

    fn dead_ends(&self, judge: &mut Judge<'_>) {
        let known: HashSet<_> = self.readable().into_iter().map(|(_, name)| name).collect();
        // A mistyped reference, reported already, may have meant any of them.
        let mistyped = self.readers().any(|(_, inputs)| inputs.iter().any(|input| !known.contains(input.as_str())));
        let unsure = mistyped
            || self.readers().any(|(at, _)| judge.checked.is_blurred_within(&at))
            || ["transforms", "sinks"].iter().any(|key| judge.checked.is_blurred(&self.at.key(key)));
        if unsure {
            return;
        }
        for (at, name) in self.readable() {
            if self.sinks_of(name).is_empty() {
                let message = format!("`{}` reaches no sink, so its lines would go nowhere", judge.shown(&at, &name));
                judge.error(
                    "unused",
                    &at,
                    message,
                    "name it in the `inputs` of a sink or of a transform that reaches one, or remove it",
                );
            }
        }
    }

    /// A sink may not write to a file that comes back to it.
    fn loops_over_files(&self, judge: &mut Judge<'_>) {
        let feeds: Vec<Vec<usize>> =
            self.logs.sources.iter().map(|source| self.sinks_of(source.name.as_str())).collect();
        let read_by = |sink: &LogSink| {
            let path = sink.file.as_ref().map(|file| &file.path);
            self.logs
                .sources
                .iter()
                .position(|source| path.is_some() && source.file.as_ref().map(|file| &file.path) == path)
        };
        for (index, sink) in self.logs.sinks.iter().enumerate() {
            let Some(start) = read_by(sink) else { continue };
            let (mut open, mut seen) = (vec![start], HashSet::new());
            while let Some(source) = open.pop().filter(|source| seen.insert(*source)) {
                open.extend(
                    feeds[source]
                        .iter()
                        .filter(|sink| **sink != index)
                        .filter_map(|sink| read_by(&self.logs.sinks[*sink])),
                );
            }
            if !seen.iter().any(|source| feeds[*source].contains(&index)) {
                continue;
            }
            let at = self.at.key("sinks").index(index).key("file").key("path");
            let source = self.at.key("sources").index(start).key("file").key("path");
            if judge.checked.is_blurred(&source) {
                continue;
            }
            let problem = Problem::error(
                "conflict",
                judge.span(&at),
                at,
                "the sink writes to a file that its own source reads: an endless loop",
            );
            judge.report(problem.help("write to another file").related(judge.span(&source), "read here"));
        }
    }

    /// A line that is longer than a sink's buffer could never be taken in.
    fn lines_fit_buffers(&self, judge: &mut Judge<'_>) {
        for (index, source) in self.logs.sources.iter().enumerate() {
            let Some(file) = &source.file else { continue };
            for sink_index in self.sinks_of(source.name.as_str()) {
                let sink = &self.logs.sinks[sink_index];
                let line = self.at.key("sources").index(index).key("file").key("maxLine");
                let buffer = self.at.key("sinks").index(sink_index).key("buffer");
                let sure = !judge.checked.is_blurred(&line) && !judge.checked.is_blurred(&buffer);
                if file.max_line > sink.buffer && sure {
                    let (line_shown, buffer_shown) =
                        (judge.shown(&line, &file.max_line), judge.shown(&buffer, &sink.buffer));
                    let name = judge.shown(&self.at.key("sinks").index(sink_index).key("name"), &sink.name.as_str());
                    let message = format!(
                        "a line of up to `maxLine` ({line_shown}) does not fit into the `buffer` ({buffer_shown}) of the sink `{name}`"
                    );
                    let place = judge.given_of([&buffer, &line]).clone();
                    judge.error(
                        "conflict",
                        &place,
                        message,
                        "raise the sink's `buffer`, or lower the source's `maxLine`",
                    );
                }
            }
        }
    }
}

fn sink_rules(sink: &LogSink, at: &ConfigPath, judge: &mut Judge<'_>) {
    judge.exactly_one(
        at,
        &[("file", sink.file.is_some()), ("stdout", sink.stdout.is_some()), ("http", sink.http.is_some())],
    );
    let (bytes, buffer) = (at.key("batch").key("maxBytes"), at.key("buffer"));
    if sink.batch.max_bytes.0 == 0 {
        judge.error("value", &bytes, "`maxBytes` must not be zero", "write a size such as `256KiB`");
    }
    if sink.batch.max_bytes > sink.buffer && !judge.checked.is_blurred(&bytes) && !judge.checked.is_blurred(&buffer) {
        let (bytes_shown, buffer_shown) =
            (judge.shown(&bytes, &sink.batch.max_bytes), judge.shown(&buffer, &sink.buffer));
        let message =
            format!("a batch of up to `maxBytes` ({bytes_shown}) does not fit into the `buffer` ({buffer_shown})");
        let place = judge.given_of([&bytes, &buffer]).clone();
        judge.error("conflict", &place, message, "raise `buffer`, or lower `batch.maxBytes`");
    }
    if let Some(http) = &sink.http {
        http_rules(http, &at.key("http"), judge);
    }
}

fn http_rules(http: &HttpSink, at: &ConfigPath, judge: &mut Judge<'_>) {
    judge.not_zero(&at.key("timeout"), http.timeout);
    super::secrets::unused_ca(&http.url, http.ca_file.is_some(), at, judge);
    headers_rules(&http.headers, at, judge);
}

/// Headers that are sent with each batch.
pub(super) fn headers_rules(given: &BTreeMap<String, Secret>, at: &ConfigPath, judge: &mut Judge<'_>) {
    let headers = at.key("headers");
    let mut seen: HashMap<String, ConfigPath> = HashMap::new();
    for (name, value) in given {
        let at = headers.key(name);
        let lower = name.to_ascii_lowercase();
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let problem =
            |judge: &Judge<'_>, code, message: &str| Problem::error(code, judge.key_span(&at), at.clone(), message);
        if name.is_empty() || !name.bytes().all(token) {
            judge.report(
                problem(judge, "value", &format!("`{name}` is not the name of a header"))
                    .help("use letters, digits and `-`, such as `X-Scope-OrgID`"),
            );
        } else if OWN_HEADERS.contains(&lower.as_str()) {
            judge.report(
                problem(judge, "value", &format!("the header `{name}` is set by Outrigger itself")).help("remove it"),
            );
        } else if let Some(first) = seen.get(&lower) {
            let first = judge.key_span(first);
            let problem = problem(judge, "duplicate", &format!("the header `{name}` is given twice"));
            judge.report(
                problem
                    .help("names of headers are the same in either case; keep one")
                    .related(first, "first given here"),
            );
        }
        if !value.expose().bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f)) {
            judge.error(
                "value",
                &at,
                format!("the value of the header `{name}` holds a control character"),
                "remove line breaks; a file's last line break is one, too",
            );
        }
        if crate::check::is_sensitive(name) && judge.is_literal(&at) && !value.expose().is_empty() {
            let problem =
                problem(judge, "risk", &format!("the header `{name}` holds a secret written out in the file"))
                    .warning();
            judge.report(problem.help("take it from the environment: `${NAME}`"));
        }
        seen.entry(lower).or_insert(at);
    }
}
