//! The ways from sources to sinks.
//!
//! In: the `logs` section, which validation found free of cycles and unknown names. Out:
//! for each source the paths its lines take, each through some transforms to one sink.

use outrigger_config::{LogSink, Logs, OnParseError};

/// A way from a source to a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    /// `sink`, or `transform/…/sink`: its name in checkpoints.
    pub(crate) name: String,
    /// Index of the sink in the config.
    pub(crate) sink: usize,
    /// Whether lines are parsed as JSON on the way, and what becomes of those that are none. Two `json`
    /// transforms behind one another do what one does, the stricter rule first.
    pub(crate) parse_json: Option<OnParseError>,
}

/// All paths of a source, in a stable order.
pub(crate) fn paths(logs: &Logs, source: &str) -> Vec<Path> {
    let mut paths = Vec::new();
    follow(logs, source, String::new(), None, &mut paths);
    paths
}

fn follow(logs: &Logs, from: &str, prefix: String, parse_json: Option<OnParseError>, paths: &mut Vec<Path>) {
    let reads = |inputs: &[outrigger_config::Name]| inputs.iter().any(|input| input.as_str() == from);
    for (index, sink) in logs.sinks.iter().enumerate() {
        if reads(&sink.inputs) {
            paths.push(Path { name: format!("{prefix}{}", sink.name), sink: index, parse_json });
        }
    }
    for transform in logs.transforms.iter().filter(|transform| reads(&transform.inputs)) {
        let rule = transform.json.as_ref().map(|json| json.on_error);
        let stricter = match (parse_json, rule) {
            (Some(OnParseError::Drop), _) | (_, Some(OnParseError::Drop)) => Some(OnParseError::Drop),
            (before, now) => now.or(before),
        };
        follow(logs, &transform.name, format!("{prefix}{}/", transform.name), stricter, paths);
    }
}

/// The most one piece for a sink may hold, so that a batch can always take it.
pub(crate) fn piece_limits(sink: &LogSink) -> (usize, usize) {
    let bytes = sink.batch.max_bytes.as_usize().min(sink.buffer.as_usize());
    (sink.batch.max_events as usize, bytes.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_is_found() {
        let text = "
logs:
  stateDirectory: /s
  sources: [{ name: app, file: { path: /a.log } }]
  transforms:
    - { name: soft, inputs: [app], json: {} }
    - { name: hard, inputs: [soft], json: { onError: drop } }
  sinks:
    - { name: raw, inputs: [app], stdout: {} }
    - { name: both, inputs: [app, hard], file: { path: /o } }
";
        let logs = outrigger_config::parse("t", text, &|_| None).unwrap().config.logs.unwrap();
        let names: Vec<_> = paths(&logs, "app").into_iter().map(|path| (path.name, path.parse_json)).collect();
        assert_eq!(
            names,
            [
                ("raw".to_owned(), None),
                ("both".to_owned(), None),
                ("soft/hard/both".to_owned(), Some(OnParseError::Drop)),
            ]
        );
    }
}
