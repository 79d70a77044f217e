use proptest::prelude::*;

use super::super::{Node, Value, parse, parse_shortened};
use super::*;
use crate::load::{parse as parse_config, parse_whole};
use crate::{ConfigPath, judge};

/// A file with a list of endpoints in each of two clusters.
fn file(first: &str, second: &str) -> String {
    format!(
        "# é\nproxy:\n  listeners:\n  - name: in\n    direction: outbound\n    address: 127.0.0.1:1\n    routes:\n    \
         - {{ name: r, backendRefs: [{{ name: a }}, {{ name: b }}] }}\n  clusters:\n  - name: a\n    endpoints:\n{first}    \
         connectTimeout: 3s\n  - endpoints:\n{second}    name: b\n# end\nadmin: {{ listen: \"127.0.0.1:${{PORT:-9}}\" }}\n"
    )
}

/// So many rows; `@` in a form is the row's number.
fn rows(count: usize, form: &str) -> String {
    (1..=count).map(|number| form.replace('@', &number.to_string())).collect()
}

const FLOW: &str = "    - { address: \"10.0.0.@:80\", weight: @ }\n";
const BLOCK: &str = "      -  address: a.b_c-@:80\n         priority: 2\n         zone: 'z@'\n";
const SHORT: &str = "    - h@:443\n";

/// Where each value stands, of which kind it is, and what it says; of a list of endpoints only where it stands.
fn told(root: &Node) -> Vec<(ConfigPath, Span, Option<Span>, String)> {
    let mut told = Vec::new();
    judge::walk(root, &mut |path, key, node| {
        let list = path.as_str().strip_suffix(".endpoints").is_some_and(|rest| rest.starts_with("proxy.clusters["));
        let text = match &node.value {
            _ if list => "a list",
            Value::Scalar(scalar) => scalar.shown(),
            Value::Mapping(_) => "a mapping",
            Value::Sequence(_) | Value::Endpoints(_) => "a list",
        };
        if list || !path.as_str().contains(".endpoints[") {
            told.push((path.clone(), node.span, key, text.to_owned()));
        }
    });
    told
}

/// How many values a node is made of, keys and itself included.
fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::Scalar(_) | Value::Endpoints(_) => 0,
        Value::Sequence(items) => items.iter().map(count).sum(),
        Value::Mapping(entries) => entries.iter().map(|entry| 1 + count(&entry.value)).sum(),
    }
}

fn nothing(_: &str) -> Option<String> {
    None
}

/// What is made of a text, and all that is said of it.
fn outcome(text: &str, whole: bool) -> (String, String, String) {
    let parsed = if whole { parse_whole("x.yaml", text, &nothing) } else { parse_config("x.yaml", text, &nothing) };
    match parsed {
        Ok(loaded) => {
            (format!("{:?}", loaded.config), loaded.warnings.render(false), loaded.warnings.to_json().to_string())
        }
        Err(diagnostics) => (String::new(), diagnostics.render(false), diagnostics.to_json().to_string()),
    }
}

#[test]
fn plain_lists_are_read_apart_and_as_the_library_reads_them() {
    let forms = [
        ("flow", FLOW),
        ("deeper", "          - { address: \"10.0.0.@:80\", weight: @ }\n"),
        ("tight", "    - {address: 10.0.0.@:80,weight: @}\n"),
        ("loose", "    -   {   address:   '[::@]:80'  ,  priority:  7  }   \n"),
        ("zone", "    - { zone: eu-@, address: \"10.0.0.@:80\" }\n"),
        ("commented", "  # one\n\n    - { address: \"10.0.0.@:80\" } # two\n"),
        ("block", BLOCK),
        ("block, weight first", "    - weight: 10000\n      address: \"x@:1\" # why\n"),
        ("short", SHORT),
        ("short, in quotes", "    - 'h@:443'\n"),
        ("unlike", "    - h@:443\n    - { address: i@:443 }\n    - address: j@:443\n      weight: 0\n"),
        ("a colon more", "    - { address: \"a@:1\", zone: b }\n"),
    ];
    for (name, form) in forms {
        for (first, second) in [(rows(8, form), rows(9, SHORT)), (rows(8, FLOW), rows(9, form))] {
            let text = file(&first, &second);
            let shortened = Shortened::of(&text).unwrap_or_else(|| panic!("{name}: {text}"));
            assert_eq!(shortened.lists.len(), 2, "{name}");
            let quick = parse_shortened(&text, &nothing).unwrap_or_else(|| panic!("{name}: {text}"));
            let whole = parse(&text, &nothing).unwrap();
            assert_eq!(told(&quick.root), told(&whole.root), "{name}");
            let apart = shortened.lists.iter().map(|list| list.nodes - 1).sum::<usize>();
            assert_eq!(count(&quick.root) + apart, count(&whole.root), "{name}");
            assert_eq!(outcome(&text, false), outcome(&text, true), "{name}");
            assert!(!outcome(&text, false).0.is_empty(), "{name}");
        }
    }
}

#[test]
fn what_is_not_plain_is_left_to_the_library() {
    let with = |row: &str| file(&(rows(8, FLOW) + row), &rows(7, SHORT));
    let rows_of_all_kinds = [
        ("a variable", "    - \"${HOST:-h}:1\"\n"),
        ("an anchor", "    - &a h:1\n"),
        ("an alias", "    - *a\n"),
        ("a tag", "    - !!str h:1\n"),
        ("a label", "    - { address: h:1, labels: { a: b } }\n"),
        ("a leading zero", "    - { address: h:1, weight: 01 }\n"),
        ("a large weight", "    - { address: h:1, weight: 10001 }\n"),
        ("a number in quotes", "    - { address: h:1, weight: '1' }\n"),
        ("a priority too high", "    - { address: h:1, priority: 128 }\n"),
        ("a zone that is a number", "    - { address: h:1, zone: 1e3 }\n"),
        ("a key twice", "    - { address: h:1, address: i:1 }\n"),
        ("no address", "    - { weight: 1 }\n"),
        ("a wrong one", "    - h\n"),
        ("an unknown key", "    - { address: h:1, wieght: 1 }\n"),
        ("nothing", "    -\n"),
        ("a comma too many", "    - { address: h:1, }\n"),
        ("a null", "    - { address: h:1, weight: }\n"),
        ("more than one line", "    - { address: h:1,\n       weight: 1 }\n"),
        ("a text of two lines", "    - h:1\n      i:1\n"),
        ("a text of two lines that looks like a row", "    - h:1\n      - i:1\n"),
        ("another column", "     - h:1\n"),
        ("a tab", "    - h:1\t\n"),
        ("a line of a tab", "\t\n"),
        ("a carriage return", "    - h:1\r\n"),
        ("a comment with a carriage return", "    - h:1 # a\rb\n"),
        ("no space before a comment", "    - h:1#2\n"),
        ("a key in quotes", "    - { \"address\": h:1 }\n"),
        ("a line deeper than the list", "        x: 1\n"),
    ];
    for (name, row) in rows_of_all_kinds {
        let text = with(row);
        assert!(Shortened::of(&text).is_none(), "{name}: {text}");
        assert_eq!(outcome(&text, false), outcome(&text, true), "{name}");
    }
    // Where the list is plain, but not what is around it.
    let rows = rows(8, "      - h@:1\n");
    for (name, text) in [
        ("another key", file(&rows, "").replace("    endpoints:\n      -", "    endpoint:\n      -")),
        ("another place", format!("logs:\n  endpoints:\n{rows}")),
        ("a block of text", format!("logs:\n  a: |\n    endpoints:\n{rows}")),
        ("a text in quotes", format!("logs:\n  a: \"\n    endpoints:\n{rows}\"\n")),
        ("a plain text", format!("logs:\n  a: b\n    endpoints:\n{rows}")),
        ("brackets", format!("proxy: {{ clusters: [{{\n    endpoints:\n{rows}}}] }}\n")),
        ("an anchor", file(&rows, "").replace("- name: a\n", "- &c\n    name: a\n")),
        ("a cluster of another", file(&rows, "").replace("- name: a\n", "- name: a\n    x:\n      y: 1\n")),
        ("a second document", file(&rows, "") + "---\na: b\n"),
    ] {
        assert!(parse_shortened(&text, &nothing).is_none() || name == "a cluster of another", "{name}: {text}");
        assert_eq!(outcome(&text, false), outcome(&text, true), "{name}");
    }
}

#[test]
fn warnings_and_mistakes_beside_a_list_are_told_as_ever() {
    let good = file(&rows(8, FLOW), &rows(9, BLOCK));
    for (name, text) in [
        ("a warning", good.clone() + "metrics: { listen: 0.0.0.0:1 }\n"),
        ("an unused cluster", good.replace(", { name: b }", "")),
        ("an endpoint twice", good.replace("10.0.0.5:80", "10.0.0.4:80")),
        ("no weight", file(&rows(8, "    - { address: \"10.0.0.@:80\", weight: 0 }\n"), &rows(9, BLOCK))),
        ("no such labels", good.replace("connectTimeout: 3s", "loadBalancing: { subset: { a: b } }")),
        ("both", good.replace("connectTimeout: 3s", "srv: _a._b.c")),
        ("an unknown key behind", good.replace("connectTimeout", "conectTimeout")),
        ("a key twice", good.replace("connectTimeout: 3s", "endpoints: [x:1]")),
        ("a list twice", good.replace("    connectTimeout: 3s", &format!("    endpoints:\n{}", rows(8, SHORT)))),
        (
            "shared endpoints",
            good.replace("direction: outbound", "direction: outbound\n    redirected: true")
                .replace("a.b_c-", "10.0.0.")
                .replace("connectTimeout: 3s", "protocol: http2"),
        ),
    ] {
        assert_eq!(outcome(&text, false), outcome(&text, true), "{name}");
    }
}

/// One change to a text.
#[derive(Debug, Clone)]
enum Edit {
    Line(usize, &'static str),
    Indent(usize, usize),
    Gone(usize),
    Byte(usize, char),
    Twice(usize),
}

fn edited(text: &str, edit: &Edit) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let count = lines.len().max(1);
    match edit {
        Edit::Line(at, line) => lines.insert(at % count, (*line).to_owned()),
        Edit::Indent(at, spaces) => {
            if let Some(line) = lines.get_mut(at % count) {
                *line = " ".repeat(*spaces) + line.trim_start();
            }
        }
        Edit::Gone(at) => drop(lines.remove(at % count)),
        Edit::Twice(at) => lines.insert(at % count, lines[at % count].clone()),
        Edit::Byte(at, with) => {
            let mut characters: Vec<char> = text.chars().collect();
            let count = characters.len();
            characters[at % count] = *with;
            return characters.into_iter().collect();
        }
    }
    lines.join("\n") + "\n"
}

fn edits() -> impl Strategy<Value = Edit> {
    let lines = prop::sample::select(vec![
        "    endpoints:",
        "  - endpoints:",
        "endpoints:",
        "    - h:1",
        "    - { address: \"i:1\" }",
        "  - name: c",
        "",
        "    # comment",
        "    - *x",
        "    x: &x",
        "    <<: *x",
        "    a: |",
        "    a: >-",
        "    a: \"",
        "    '",
        "  - |",
        "    ? a",
        "    : b",
        "---",
        "...",
        "%YAML 1.2",
        "    - - h:1",
        "    weight: 1",
        "      weight: 1",
        "  }",
        "  ]",
        "    {",
        "    pool: { maxIdle: 1,",
        "    -",
        "  -",
        "\t",
        "    !!str",
        "    tls:",
        "      spiffeIds: []",
        "  b",
    ]);
    let characters = prop::sample::select(
        "\n \t\r:-#{}[],\"'&*!|>%@`?~$\\0aé\u{85}\u{2028}\u{feff}\u{7}".chars().collect::<Vec<_>>(),
    );
    let at = || any::<u16>().prop_map(usize::from);
    prop_oneof![
        (at(), lines).prop_map(|(at, line)| Edit::Line(at, line)),
        (at(), 0..8_usize).prop_map(|(at, spaces)| Edit::Indent(at, spaces)),
        at().prop_map(Edit::Gone),
        at().prop_map(Edit::Twice),
        (at(), characters).prop_map(|(at, with)| Edit::Byte(at, with)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever becomes of a file, the same is made and said of it as when the library reads all of it.
    #[test]
    fn nothing_tells_that_lists_are_read_apart(
        first in prop::sample::select(vec![FLOW, BLOCK, SHORT]),
        second in prop::sample::select(vec![FLOW, BLOCK, SHORT]),
        edits in prop::collection::vec(edits(), 0..4),
    ) {
        let text = edits.iter().fold(file(&rows(8, first), &rows(9, second)), |text, edit| edited(&text, edit));
        if let (Some(quick), Ok(whole)) = (parse_shortened(&text, &nothing), parse(&text, &nothing)) {
            prop_assert_eq!(told(&quick.root), told(&whole.root));
            prop_assert!(whole.problems.is_empty());
        }
        prop_assert_eq!(outcome(&text, false), outcome(&text, true));
    }
}
