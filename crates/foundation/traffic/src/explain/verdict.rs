//! Whether a request became what a test of the config expects.

use outrigger_config::{Config, HeaderValue, RouteTest};
use serde::Serialize;

use super::{Explanation, Question, Unanswerable, explain};

/// A thing that is not as expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What it is: `route`, `request.path`, …
    pub what: String,
    /// What is expected.
    pub expected: String,
    /// What there is.
    pub got: String,
}

/// What is not as a test expects; nothing when it holds.
///
/// # Errors
/// When its request could not come in.
pub fn judge_test(config: &Config, test: &RouteTest) -> Result<(Explanation, Vec<Difference>), Unanswerable> {
    let request = &test.request;
    let question = Question {
        method: request.method.clone(),
        url: request.url.clone(),
        headers: request.headers.iter().map(|header| (header.name.clone(), header.value.clone())).collect(),
        peer: request.peer.as_ref().map(ToString::to_string),
        listener: request.listener.clone(),
        destination: request.destination,
    };
    let told = explain(config, &question)?;
    let mut found = Differences(Vec::new());
    let expect = &test.expect;
    if let Some(expected) = &expect.route {
        let got = told.route.as_ref().map(|route| route.name.clone());
        found.compare("route", expected, got.as_deref().unwrap_or("none"));
    }
    if let Some(expected) = &expect.backend
        && !told.backends.iter().any(|backend| backend.cluster == *expected)
    {
        let names: Vec<_> = told.backends.iter().map(|backend| backend.cluster.as_str()).collect();
        let got = if names.is_empty() { "none".to_owned() } else { names.join(" or ") };
        found.add("backend", expected, &got);
    }
    if let Some(expected) = &expect.session_name {
        let got = told.session.as_ref().map_or("none", |session| session.name.as_str());
        found.compare("sessionName", expected, got);
    }
    if let Some(expected) = &expect.request {
        match &told.forwarded {
            None => found.add("request", "is forwarded", &fate(&told)),
            Some(got) => {
                expected.path.iter().for_each(|path| found.compare("request.path", path, &got.path));
                expected.host.iter().for_each(|host| found.compare("request.host", host, &got.host));
                found.headers("request", &expected.headers, &got.headers);
                for name in &expected.absent {
                    let there = got.headers.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
                    there.for_each(|(_, value)| found.add(&format!("request header {name}"), "absent", value));
                }
            }
        }
    }
    if let Some(expected) = &expect.response {
        match told.own_status() {
            None => found.add("response", "is the proxy's own", &fate(&told)),
            Some(got) => {
                expected
                    .status
                    .iter()
                    .for_each(|status| found.compare("response.status", &status.to_string(), &got.to_string()));
                let headers = told.response.as_ref().map(|response| response.headers.as_slice()).unwrap_or_default();
                found.headers("response", &expected.headers, headers);
            }
        }
    }
    Ok((told, found.0))
}

/// What became of a request, in few words.
fn fate(told: &Explanation) -> String {
    match (told.own_status(), told.backends.first()) {
        (Some(status), _) => format!("answered with {status}"),
        (None, Some(backend)) => format!("forwarded to {}", backend.cluster),
        (None, None) => "goes nowhere".to_owned(),
    }
}

struct Differences(Vec<Difference>);

impl Differences {
    fn add(&mut self, what: &str, expected: &str, got: &str) {
        self.0.push(Difference { what: what.to_owned(), expected: expected.to_owned(), got: got.to_owned() });
    }

    fn compare(&mut self, what: &str, expected: &str, got: &str) {
        if expected != got {
            self.add(what, expected, got);
        }
    }

    fn headers(&mut self, whose: &str, expected: &[HeaderValue], got: &[(String, String)]) {
        for HeaderValue { name, value } in expected {
            let values: Vec<_> =
                got.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect();
            let what = format!("{whose} header {name}");
            match values.as_slice() {
                [] => self.add(&what, value, "absent"),
                values => self.compare(&what, value, &values.join(",")),
            }
        }
    }
}
