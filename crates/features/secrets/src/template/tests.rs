use proptest::prelude::*;
use serde_json::json;

use super::*;

fn secrets() -> Secrets {
    let db = json!({ "Data": {
        "data": { "password": "p4ss <&>", "host": "db", "empty": "", "none": null, "ports": [1, 2], "b64": "aGk=" },
        "metadata": { "version": 7 },
    }, "LeaseID": "", "LeaseDuration": 0, "Renewable": false });
    let other = json!({ "Data": { "name": "db" }, "LeaseID": "l/1", "LeaseDuration": 60, "Renewable": true });
    let numbers =
        r#"{ "Data": { "a": 10.0, "b": 1234567.5, "c": 18446744073709551615, "d": 123456789012345678901234567890 } }"#;
    let names = json!({ "Data": { "keys": ["db", "web/"] } });
    let known = [
        ("secret/data/db", db),
        ("other", other),
        ("numbers", serde_json::from_str(numbers).unwrap()),
        ("apps/?list=true", names),
    ];
    known.into_iter().map(|(path, json)| (path.to_owned(), to_value(json))).collect()
}

fn rendered(text: &str) -> Result<String, String> {
    let template = Template::compile(text).map_err(|flaw| format!("compile:{}: {}", flaw.line, flaw.message))?;
    match template.render(&Arc::new(secrets())) {
        Rendered::Whole { content, .. } => Ok(String::from_utf8_lossy(&content).into_owned()),
        Rendered::Needs(paths) => Err(format!("needs {paths:?}")),
        Rendered::Flawed { flaw, .. } => Err(format!("render:{}: {}", flaw.line, flaw.message)),
    }
}

const DB: &str = r#"{{ with secret "secret/data/db" }}"#;

#[test]
fn renders_what_vault_agent_renders() {
    let cases = [
        ("else if", "{{ if false }}a{{ else if true }}b{{ end }}c", "bc"),
        ("else if, else", "{{ if false }}a{{ else if false }}b{{ else }}c{{ end }}d{{ if true }}e{{ end }}f", "cdef"),
        (
            "else if twice",
            "{{ if true }}{{ if false }}a{{ else if false }}b{{ else if true }}c{{ end }}d{{ end }}e",
            "cde",
        ),
        ("else with", r#"{{ with "" }}a{{ else with "x" }}{{ . }}{{ else }}b{{ end }}c"#, "xc"),
        ("break", "{{ range 5 }}{{ if eq . 2 }}{{ break }}{{ else }}{{ . }}{{ end }}{{ end }}.", "01."),
        ("comment", "a{{/* {{ end }} */}}b{{- /* x */ -}} c", "abc"),
        ("delimiters in texts", r#"{{ "{{ end }}" }}{{ `}}` }}"#, "{{ end }}}}"),
        (
            "all of them",
            r#"{{ with secret "other" }}{{ range $k, $v := .Data }}{{ $k }}={{ $v }}{{ end }}{{ end }}"#,
            "name=db",
        ),
        ("with a variable", r#"{{ with $s := secret "other" }}{{ $s.Data.name }}{{ end }}"#, "db"),
        ("plain", r#"{{ with secret "secret/data/db" }}{{ .Data.data.password }}{{ end }}"#, "p4ss <&>"),
        ("version", r#"{{ with secret "secret/data/db" }}{{ .Data.metadata.version }}{{ end }}"#, "7"),
        ("variable", r#"{{ $s := secret "secret/data/db" }}{{ $s.Data.data.host }}"#, "db"),
        ("chain", r#"{{ (secret "secret/data/db").Data.data.host }}"#, "db"),
        (
            "lease",
            r#"{{ with secret "other" }}{{ .LeaseID }} {{ .LeaseDuration }} {{ .Renewable }}{{ end }}"#,
            "l/1 60 true",
        ),
        (
            "range",
            r#"{{ with secret "secret/data/db" }}{{ range $i, $p := .Data.data.ports }}{{ $i }}={{ $p }};{{ end }}{{ end }}"#,
            "0=1;1=2;",
        ),
        (
            "index",
            r#"{{ with secret "secret/data/db" }}{{ index .Data.data "host" }}{{ index .Data.data.ports 1 }}{{ end }}"#,
            "db2",
        ),
        ("toJSON", r#"{{ with secret "secret/data/db" }}{{ .Data.data.ports | toJSON }}{{ end }}"#, "[1,2]"),
        (
            "base64",
            r#"{{ with secret "secret/data/db" }}{{ .Data.data.b64 | base64Decode }}{{ "hi" | base64Encode }}{{ end }}"#,
            "hiaGk=",
        ),
        ("case", r#"{{ "Ab" | toUpper }}{{ "Ab" | toLower }}{{ trimSpace " x " }}{{ trim "-" "-x-" }}"#, "ABabxx"),
        ("split and join", r#"{{ "a,b" | split "," | join "-" }}{{ "aba" | replaceAll "a" "c" }}"#, "a-bcbc"),
        ("contains", r#"{{ if "abc" | contains "b" }}yes{{ end }}"#, "yes"),
        ("indent", "{{ \"a\\nb\" | indent 2 }}", "  a\n  b"),
        ("parseJSON", r#"{{ with parseJSON "{\"a\": {\"b\": 1.5}}" }}{{ .a.b }}{{ end }}"#, "1.5"),
        (
            "default of a missing field",
            r#"{{ with secret "secret/data/db" }}{{ .Data.data.nope | default "d" }}{{ end }}"#,
            "d",
        ),
        (
            "if on a missing field",
            r#"{{ with secret "secret/data/db" }}{{ if .Data.data.nope }}x{{ else }}y{{ end }}{{ end }}"#,
            "y",
        ),
        ("or on a missing field", r#"{{ with secret "secret/data/db" }}{{ or .Data.data.nope "z" }}{{ end }}"#, "z"),
        ("define", "{{ define \"t\" }}<{{ .Data.name }}>{{ end }}{{ template \"t\" (secret \"other\") }}", "<db>"),
        (
            "path from a secret",
            r#"{{ with secret "other" }}{{ with secret (printf "secret/data/%s" .Data.name) }}{{ .Data.data.host }}{{ end }}{{ end }}"#,
            "db",
        ),
        ("empty is no error", r#"[{{ with secret "secret/data/db" }}{{ .Data.data.empty }}{{ end }}]"#, "[]"),
        (
            "JSON, fit for HTML as Go has it",
            r#"{{ with secret "secret/data/db" }}{{ .Data.data.password | toJSON }}{{ toUnescapedJSON .Data.data.password }}{{ end }}"#,
            r#""p4ss \u003c\u0026\u003e""p4ss <&>""#,
        ),
        ("bytes again", r#"{{ "/u3+7Q==" | base64Decode | base64Encode }}"#, "/u3+7Q=="),
        (
            "digests",
            r#"{{ sha256Hex "a" }} {{ hmacSHA256Hex "a" "key" }}"#,
            "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb \
             780c3db4ce3de5b9e55816fba98f590631d96c075271b26976238d5f4444219b",
        ),
        (
            "regular expressions",
            r#"{{ "a1b22" | regexReplaceAll "([0-9]+)" "<$1>" }}{{ if "ab" | regexMatch "^a.$" }}!{{ end }}"#,
            "a<1>b<22>!",
        ),
        (
            "numbers as they are",
            r#"{{ with secret "numbers" }}{{ .Data.a }} {{ .Data.b }} {{ .Data.c }}{{ end }}"#,
            "10.0 1234567.5 18446744073709551615",
        ),
        (
            "variables",
            "{{ $a := 1 }}{{ range $i, $v := split \",\" \"x,y\" }}{{ $a = $i }}{{ $v }}{{ end }}{{ $a }}{{ with $b := 2 }}{{ $b }}{{ $ | default 3 }}{{ end }}",
            "xy123",
        ),
        ("printf of what looks like a remark", r#"{{ printf "%s %%!" "a%!b (%!c)" }}"#, "a%!b (%!c) %!"),
        ("names below", r#"{{ range secrets "/apps/" }}{{ . }},{{ end }}"#, "db,web/,"),
        ("arithmetic", "{{ 5 | subtract 2 }}{{ add 1 2 }}", "33"),
        (
            "null as JSON",
            r#"{{ with secret "secret/data/db" }}{{ toJSON .Data.metadata }}{{ end }}"#,
            r#"{"version":7}"#,
        ),
    ];
    for (name, text, expected) in cases {
        assert_eq!(rendered(text).as_deref(), Ok(expected), "{name}");
    }
}

#[test]
fn says_what_is_wrong_without_values() {
    let cases: &[(&str, String, &[&str])] = &[
        (
            "missing field",
            format!("\n{DB}{{{{ .Data.data.passwrd }}}}{{{{ end }}}}"),
            &["render:2", "`secret/data/db`", "`passwrd`", "`.Data.data`", "`password`"],
        ),
        (
            "forgotten data",
            format!("{DB}{{{{ .Data.password }}}}{{{{ end }}}}"),
            &["`password`", "`.Data`", "`data`, `metadata`"],
        ),
        ("below a missing field", format!("{DB}{{{{ .Data.dta.x }}}}{{{{ end }}}}"), &["`x`", "`dta`", "`data`"]),
        ("null", format!("{DB}{{{{ .Data.data.none }}}}{{{{ end }}}}"), &["null"]),
        ("as an argument", format!("{DB}{{{{ printf \"%s\" .Data.data.nope }}}}{{{{ end }}}}"), &["`nope`"]),
        ("piped", format!("{DB}{{{{ .Data.data.nope | toUpper }}}}{{{{ end }}}}"), &["`nope`"]),
        ("by index", format!("{DB}{{{{ index .Data.data \"nope\" }}}}{{{{ end }}}}"), &["`nope`"]),
        ("variable", format!("{DB}{{{{ $x := .Data.data.nope }}}}{{{{ $x }}}}{{{{ end }}}}"), &["`nope`"]),
        ("field of a text", format!("{DB}{{{{ .Data.data.host.x }}}}{{{{ end }}}}"), &["`x`", "string"]),
        ("not JSON", format!("{DB}{{{{ parseJSON .Data.data.password }}}}{{{{ end }}}}"), &["parseJSON"]),
        ("not base64", format!("{DB}{{{{ base64Decode .Data.data.password }}}}{{{{ end }}}}"), &["base64Decode"]),
        (
            "a name with a dash",
            format!("{DB}{{{{ .Data.data.api-key }}}}{{{{ end }}}}"),
            &["compile:1", "`index .Data"],
        ),
        ("single quotes", "{{ secret 'a/b' }}".to_owned(), &["compile:1", "double quotes"]),
        ("no quotes", "{{ secret a/b }}".to_owned(), &["compile:1", "double quotes"]),
        ("unknown variable", "{{ if 1 }}{{ $x := 1 }}{{ end }}\n{{ $x }}".to_owned(), &["compile:2", "variable `$x`"]),
        ("unknown variable, assigned", "{{ $x = 1 }}".to_owned(), &["compile:1", "variable `$x`"]),
        (
            "variable of the other branch",
            "{{ if 1 }}{{ $x := 1 }}{{ else }}{{ $x }}{{ end }}".to_owned(),
            &["compile:1"],
        ),
        ("printf without its argument", r#"{{ printf "%s:%d" "a" }}"#.to_owned(), &["render:1", "`printf`"]),
        (
            "printf of another kind",
            format!("{DB}{{{{ .Data.data.host | printf \"%d\" }}}}{{{{ end }}}}"),
            &["`printf`"],
        ),
        ("printf with too many", r#"{{ printf "%s" "a" "b" }}"#.to_owned(), &["`printf`"]),
        ("a number too long", r#"{{ (secret "numbers").Data.d }}"#.to_owned(), &["more digits", "as a text"]),
        ("a number too long, as JSON", r#"{{ (secret "numbers").Data | toJSON }}"#.to_owned(), &["64 bits"]),
        ("not a pattern", r#"{{ regexMatch "(p4ss" "" }}"#.to_owned(), &["regular expression"]),
        ("traversal of names", r#"{{ secrets "a/../b" }}"#.to_owned(), &["`secrets`", "`..`"]),
        ("nested too deep", format!("{{{{ {}1{} }}}}", "(".repeat(9999), ")".repeat(9999)), &["compile:1", "nesting"]),
        ("length of a number", "{{ len 5 }}".to_owned(), &["does not accept"]),
        (
            "too many for range",
            format!("{DB}{{{{ range .Data.data.password }}}}{{{{ end }}}}{{{{ end }}}}"),
            &["range"],
        ),
        ("unknown function", "\n\n{{ toJson 1 }}".to_owned(), &["compile:3", "`toJson`", "did you mean `toJSON`"]),
        ("unknown, piped", "{{ 1 | nonsense }}".to_owned(), &["unknown function `nonsense`", "there are add, and, "]),
        ("of consul", "{{ key \"a\" }}".to_owned(), &["`key`", "not offered"]),
        ("ours are hidden", "{{ outrigger_line 1 }}".to_owned(), &["unknown function"]),
        ("unclosed", "{{ with secret \"x\" }}".to_owned(), &["compile:1", "{{ end }}"]),
        ("unclosed definition", "{{ define \"t\" }}x".to_owned(), &["compile:1", "{{ end }}"]),
        ("one end too many", "a\n{{ end }}".to_owned(), &["compile:2", "end"]),
        ("break outside", "{{ break }}".to_owned(), &["break"]),
        ("undefined template", "{{ template \"t\" }}".to_owned(), &["no template `t`"]),
        ("write", "{{ secret \"pki/issue/x\" \"a=b\" }}".to_owned(), &["one path"]),
        ("no path", "{{ with secret }}{{ end }}".to_owned(), &["compile:1", "`secret` takes 1"]),
        ("traversal", "{{ with secret \"a/../b\" }}{{ end }}".to_owned(), &["`..`"]),
        ("endless", "{{ define \"a\" }}{{ template \"a\" }}{{ end }}{{ template \"a\" }}".to_owned(), &["recursion"]),
        ("too large", "{{ range 9000000 }}xxxxxxxxxxxxxxxxxxxx{{ end }}".to_owned(), &["larger"]),
    ];
    for (name, text, expected) in cases {
        let error = rendered(text).expect_err(name);
        assert!(!error.contains("p4ss"), "{name}: {error}");
        for part in *expected {
            assert!(error.contains(part), "{name}: {error:?} lacks {part:?}");
        }
    }
}

#[test]
fn asks_for_all_it_needs_at_once_where_it_can() {
    let template = Template::compile(
        r#"{{ (secret "a").Data.x }}{{ (secret "/b/").Data.x | toUpper }}{{ range secrets "c" }}{{ secret . }}{{ end }}"#,
    ).unwrap();
    match template.render(&Arc::default()) {
        Rendered::Needs(paths) => assert_eq!(paths.into_iter().collect::<Vec<_>>(), ["a", "b/", "c/?list=true"]),
        _ => panic!("it needs two secrets and a list"),
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "(\\{\\{|\\}\\}|with|secret|end|\"secret/data/db\"|\\.Data|\\.data|\\||\\$x|:=|[ -~]){0,24}") {
        let _ = rendered(&text);
    }

    #[test]
    fn nothing_is_cut_off(parts in prop::collection::vec(prop::sample::select(vec![
        "{{ if true }}", "{{ if false }}", "{{ else }}", "{{ else if true }}", "{{ end }}", "{{ with 1 }}", "{{ range 2 }}",
        "{{ break }}", "{{ define \"d\" }}", "{{ block \"b\" . }}", "{{ \"x\" }}", "{{- /* {{ */ -}}", "{{ `}}` }}", " ", "a",
    ]), 0..9)) {
        if let Ok(text) = rendered(&format!("{}TAIL", parts.concat())) {
            prop_assert!(text.ends_with("TAIL"), "{}: {text}", parts.concat());
        }
    }

    #[test]
    fn never_writes_no_value(field in "[a-z]{1,8}") {
        let text = format!("{DB}{{{{ .Data.data.{field} }}}}{{{{ end }}}}");
        if let Ok(text) = rendered(&text) {
            prop_assert!(!text.contains("<no value>"));
        }
    }
}
