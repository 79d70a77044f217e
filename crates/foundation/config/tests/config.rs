//! The config crate as its callers use it, on files good and bad.
//!
//! `testdata/bad/*.yaml` are refused with the report in `.expected`, `testdata/good/*.yaml`
//! are accepted and print as in `.expected`; `cargo xtask bless` (`OUTRIGGER_BLESS=1`)
//! rewrites the expectations.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::path::{Path, PathBuf};

use outrigger_config::{Config, ConfigPath, Severity, diff, json_schema, load, parse, to_yaml};
use proptest::prelude::*;

const SECRET_OF_ENVIRONMENT: &str = "hunter2-from-the-environment";

fn environment(name: &str) -> Option<String> {
    let value = match name {
        "PORT" => "8080",
        "WORKERS" => "2",
        "HOST" => "10.1.2.3",
        "EMPTY" => "",
        "LEVEL" | "PASSWORD" | "TIMEOUT" | "CLUSTER" | "ADDRESS" => SECRET_OF_ENVIRONMENT,
        "VAULT_TOKEN" => "12345",
        "STRUCTURE" => "x\nadmin: { listen: 0.0.0.0:1 }",
        _ => return None,
    };
    Some(value.to_owned())
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(!files.is_empty(), "no YAML in {}", folder.display());
    files
}

/// Runs `render` on each file of a folder and compares with `.expected` beside it.
fn golden(folder: &str, render: impl Fn(&str, &str) -> String) {
    let mut drifted = Vec::new();
    for path in yaml_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(folder)) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let rendered = render(name, &text) + "\n";
        for secret in [SECRET_OF_ENVIRONMENT, "s3cret"] {
            assert!(!rendered.contains(secret), "{name} shows a secret:\n{rendered}");
        }
        let expected = path.with_extension("expected");
        if std::env::var_os("OUTRIGGER_BLESS").is_some() {
            std::fs::write(&expected, &rendered).unwrap();
        }
        if std::fs::read_to_string(&expected).unwrap_or_default() != rendered {
            drifted.push(format!("{name}:\n{rendered}"));
        }
    }
    assert!(drifted.is_empty(), "not as expected (`cargo xtask bless` takes it over):\n{}", drifted.join("\n"));
}

#[test]
fn bad_files_are_refused_with_every_mistake() {
    golden("bad", |name, text| match parse(name, text, &environment) {
        Ok(_) => panic!("{name} was accepted"),
        Err(report) => {
            assert!(report.iter().any(|item| item.severity == Severity::Error), "{name}: no error in the report");
            let json = report.to_json();
            assert_eq!(json["diagnostics"].as_array().unwrap().len(), report.iter().count());
            let plain = report.render(false);
            assert!(!plain.contains('\u{1b}') && report.render(true).contains("\u{1b}["), "{name}: colours");
            assert!(!format!("{json}").contains(SECRET_OF_ENVIRONMENT), "{name}: a variable's value in JSON");
            plain
        }
    });
}

#[test]
fn good_files_are_accepted_and_print_their_effective_config() {
    golden("good", |name, text| {
        let loaded = parse(name, text, &environment).unwrap_or_else(|report| panic!("{name} was refused:\n{report}"));
        format!("{}\n---\n{}", loaded.warnings, to_yaml(&loaded.config)).trim_start().trim_end().to_owned()
    });
}

#[test]
fn the_examples_of_the_repository_are_accepted() {
    let environment = |name: &str| (name == "SHOP_DIR").then(|| "/tmp/shop".to_owned());
    for path in yaml_files(&repository().join("examples/shop")) {
        let text = std::fs::read_to_string(&path).unwrap();
        let file = path.file_name().unwrap().to_str().unwrap();
        let loaded = parse(file, &text, &environment).unwrap_or_else(|report| panic!("{report}"));
        assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    }
}

#[test]
fn json_reports_say_where_and_how_to_mend() {
    let report = parse("x.yaml", "runtime:\n  wrkers: 2\n", &environment).unwrap_err();
    let json = report.to_json();
    assert_eq!(json["valid"], false);
    let item = &json["diagnostics"][0];
    assert_eq!((&item["line"], &item["column"], &item["endColumn"]), (&2.into(), &3.into(), &9.into()));
    assert_eq!(item["code"], "unknown-key");
    assert_eq!(item["path"], "runtime.wrkers");
    assert_eq!(item["severity"], "error");
    assert_eq!(item["help"], "did you mean `workers`?");
}

#[test]
fn an_empty_file_is_all_defaults() {
    for text in ["", "\n", "# nothing\n", "---\n", "null", "{}", "\u{feff}", "---\n...\n"] {
        assert_eq!(parse("x.yaml", text, &environment).unwrap().config, Config::default(), "{text:?}");
    }
}

#[test]
fn positions_point_at_the_file() {
    let text = "runtime:\n  workers: 2\nproxy:\n  listeners:\n  - name: a\n    direction: inbound\n    address: 127.0.0.1:1\n    routes:\n    - { name: r, backendRefs: [{ name: c }] }\n  clusters:\n  - { name: c, endpoints: [\"h:1\"] }\n";
    let positions = parse("x.yaml", text, &environment).unwrap().positions;
    let at = |path: &str| positions.locate(&ConfigPath::from(path));
    assert_eq!(at("runtime.workers"), "x.yaml:2:12");
    assert_eq!(at("proxy.listeners[0].address"), "x.yaml:7:14");
    assert_eq!(at("proxy.listeners[0].limits.maxHeaders"), "x.yaml:5:5");
    assert_eq!(at("admin.listen"), "x.yaml:1:1");
    assert_eq!(positions.get(&"admin.listen".into()), None);
}

#[test]
fn variables_are_typed_by_the_place_they_stand_in() {
    let text = "runtime: { workers: \"${W}\" }";
    assert!(parse("x.yaml", text, &environment).is_err(), "quotes make a text");
    let text =
        "runtime:\n  workers: ${WORKERS}\n  shutdownBudget: ${UNSET:-40s}\nadmin:\n  listen: 127.0.0.1:${PORT}\n";
    let config = parse("x.yaml", text, &environment).unwrap().config;
    assert_eq!(config.runtime.workers, Some(2));
    assert_eq!(config.runtime.shutdown_budget.to_string(), "40s");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:8080");
    let text = "identity:\n  trustDomain: x\n  development: { directory: \"${STRUCTURE}\", namespace: a, serviceAccount: b }\n";
    let config = parse("x.yaml", text, &environment).unwrap().config;
    assert_eq!(config.admin, Config::default().admin, "a variable's value never becomes structure");
}

#[test]
fn unreadable_files_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let rows = [
        (folder.path().join("absent.yaml"), "does not exist"),
        (folder.path().to_owned(), "is a folder"),
        (write("latin1.yaml", b"a: 1\nb: \xe9\n"), "line 2 holds a byte that is not UTF-8"),
        (write("utf16.yaml", b"\xff\xfea\0"), "UTF-16"),
        (write("large.yaml", &vec![b'#'; (16 << 20) + 10]), "larger than 16384 KiB"),
        (PathBuf::from("/dev/zero"), "larger than 16384 KiB"),
    ];
    for (path, expected) in rows {
        let report = load(&path).unwrap_err();
        assert!(report.to_string().contains(expected), "{}: {report}", path.display());
        assert!(report.to_string().contains(path.to_str().unwrap()), "{report}");
    }
    assert_eq!(
        load(&write("bom.yaml", b"\xef\xbb\xbfruntime:\n  workers: 3\n")).unwrap().config.runtime.workers,
        Some(3)
    );
}

#[test]
fn hostile_files_end_soon() {
    let bomb = (0..12).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, i| {
        let refs = vec![format!("*a{i}"); 10].join(",");
        format!("{text}a{}: &a{} [{refs}]\n", i + 1, i + 1)
    });
    let rows = [
        ("bomb", bomb, "aliases"),
        ("deep flow", "[".repeat(10_000), "nested too deep"),
        ("deep block", (0..200).map(|i| format!("{}a:\n", " ".repeat(i))).collect(), "nested too deep"),
        ("itself", "runtime: &a\n  workers: *a\n".to_owned(), "the value it stands in"),
        ("many keys", (0..5_000).map(|i| format!("k{i}: 1\n")).collect(), "more than 1000 keys"),
        ("many values", format!("admin: [{}]", "1,".repeat(1_100_000)), "more than 1000000 values"),
        ("long key", format!("{}: 1", "k".repeat(1000)), "a key is longer"),
        ("variables", format!("admin: [{}]", "\"${BIG}\",".repeat(2000)), "variables fill in more than"),
        ("unknown keys", (0..900).map(|i| format!("k{i}: 1\n")).collect(), "not listed"),
        ("long line", format!("admin: [{}]", "{\"é\": \"é\"},".repeat(9000)), "expected a mapping"),
    ];
    let environment = |_: &str| Some("x".repeat(100_000));
    for (name, text, expected) in rows {
        let start = std::time::Instant::now();
        let report = parse("x.yaml", &text, &environment).unwrap_err();
        let rendered = report.to_string();
        assert!(rendered.contains(expected), "{name}: {rendered}");
        assert!(rendered.len() < 300_000, "{name}: a report of {} bytes", rendered.len());
        assert!(start.elapsed().as_secs() < 20, "{name} took {:?}", start.elapsed());
    }
}

#[test]
fn terminal_escapes_of_a_file_are_not_passed_on() {
    let report = parse("x.yaml", "\"a\\e[31mb\": 1\n\"\\u202Ec\": 1\n", &environment).unwrap_err();
    let rendered = report.to_string();
    assert!(!rendered.contains('\u{1b}') && !rendered.contains('\u{202e}'), "{rendered:?}");
    assert!(!report.to_json().to_string().contains('\u{202e}'));
}

#[test]
fn line_ends_of_windows_and_wide_characters_keep_their_places() {
    let report = parse("x.yaml", "runtime:\r\n  wrkers: 2\r\nadmin: { héalth: x }\r\n", &environment).unwrap_err();
    let places: Vec<_> = report.iter().map(|item| (item.line, item.column, item.end_column)).collect();
    assert_eq!(places, [(2, 3, 9), (3, 10, 16)]);
    assert!(!report.to_string().contains('\r'), "{report}");
}

#[test]
fn the_schema_describes_the_file_as_written() {
    let schema = json_schema();
    let workers = &schema["$defs"]["Runtime"]["properties"]["workers"];
    assert_eq!(workers["type"], serde_json::json!(["integer", "null", "string"]), "a reference is a text to an editor");
    assert_eq!((&workers["minimum"], &workers["maximum"]), (&1.into(), &64.into()));
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(schema["$id"].is_string() && schema["title"].is_string());
}

fn good_texts() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/good");
    yaml_files(&folder).iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn a_printed_config_reads_back_the_same() {
    for text in good_texts() {
        let config = parse("x.yaml", &text, &environment).unwrap().config;
        let printed = to_yaml(&config);
        let again =
            parse("printed.yaml", &printed, &environment).unwrap_or_else(|report| panic!("{report}\n{printed}"));
        let changes = diff(&config, &again.config);
        // A mask is not the secret it stands for; everything else comes back.
        assert!(changes.iter().all(|change| change.to_string().ends_with("(changed)")), "{changes:?}\n{printed}");
        if !text.contains("s3cret") && !text.contains("VAULT_TOKEN") {
            assert_eq!(config, again.config, "{printed}");
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let _ = parse("x.yaml", &text, &environment).map_err(|report| (report.render(true), report.to_json()));
    }

    #[test]
    fn yaml_like_text_never_panics(text in "([a-z]{1,3}|proxy|logs|name|: |\n|\n  |\n    |- |\\[|\\]|\\{|\\}|,|\"|'|&a |\\*a|!!str |<<: |\\$\\{A\\}|\\||>|#|\t|\u{0}|é|\r\n|---|\\?){0,60}") {
        let _ = parse("x.yaml", &text, &environment).map_err(|report| (report.render(true), report.to_json()));
    }

    #[test]
    fn mutated_configs_never_panic_nor_leak(
        which: prop::sample::Index,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, "[a-z0-9:{}\\[\\]\n \"'$&*|\t-]{0,6}"), 1..6),
    ) {
        let texts = good_texts();
        let mut text = which.get(&texts).clone();
        for (at, cut, insert) in edits {
            let mut start = at.index(text.len() + 1);
            while !text.is_char_boundary(start) { start -= 1; }
            let mut end = (start + cut).min(text.len());
            while !text.is_char_boundary(end) { end += 1; }
            text.replace_range(start..end, &insert);
        }
        if let Err(report) = parse("x.yaml", &text, &environment) {
            let rendered = report.render(false);
            prop_assert!(report.iter().any(|item| item.severity == Severity::Error));
            prop_assert!(!rendered.contains(SECRET_OF_ENVIRONMENT), "{}", rendered);
        }
    }

    #[test]
    fn texts_survive_printing_and_reading(value in "[ -~é\n\t]{1,30}") {
        let mut config = Config::default();
        config.secrets = parse("x.yaml", "secrets:\n  providers: [{ name: f, file: { directory: /d } }]\n  env: [{ name: A, template: x }]\n", &environment).unwrap().config.secrets;
        prop_assume!(!value.trim().is_empty());
        config.secrets.as_mut().unwrap().env[0].template = value;
        let printed = to_yaml(&config);
        let again = parse("x.yaml", &printed, &environment).map_err(|report| TestCaseError::fail(format!("{report}\n{printed}")))?;
        prop_assert_eq!(config, again.config, "{}", printed);
    }
}
