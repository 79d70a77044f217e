//! The command line as a stranger meets it: verbs, what they print, exit codes.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use outrigger_e2e::{Process, eventually, free_port, outrigger_command, run, tool};
use serde_json::Value;

/// Four mistakes of four kinds, none of which hides another.
const BAD: &str = "\
admin: { lisen: \"127.0.0.1:1\" }
runtime: { workers: 100, shutdownBudget: 3parsecs }
proxy:
  listeners:
  - name: in
    direction: inbound
    address: 127.0.0.1:8080
    routes: [{ name: all, backendRefs: [{ name: nowhere }] }]
";
/// Line, column, what is said, and how to mend it.
const MISTAKES: [(u64, u64, &str, &str); 4] = [
    (1, 10, "`lisen`", "`listen`"),
    (2, 21, "`100`", "between 1 and 64"),
    (2, 42, "`3parsecs`", "`30s`"),
    (8, 49, "no cluster `nowhere`", "proxy.clusters"),
];

const SECRETS: [&str; 2] = ["hvs.4real-token", "Bearer 4real-key"];
const EVERY_PILLAR: &str = "\
proxy:
  listeners: [{ name: in, direction: inbound, address: \"127.0.0.1:8080\", routes: [{ name: all, backendRefs: [{ name: app }] }] }]
  clusters: [{ name: app, endpoints: [\"127.0.0.1:8081\"] }]
identity: { trustDomain: shop.example, development: { directory: /tmp/ca, namespace: shop, serviceAccount: backend } }
metrics: { statsd: {} }
secrets:
  providers: [{ name: bao, vault: { address: \"http://127.0.0.1:8200\", auth: { token: { value: hvs.4real-token } } } }]
  files: [{ path: /tmp/db, template: \"{{ with secret \\\"secret/data/db\\\" }}{{ .Data.data.password }}{{ end }}\" }]
logs:
  stateDirectory: /tmp/state
  sources: [{ name: app, file: { path: /tmp/app.log } }]
  sinks: [{ name: out, inputs: [app], http: { url: \"http://127.0.0.1:1/x\", headers: { authorization: \"Bearer 4real-key\" } } }]
";

fn outrigger(arguments: &[&str]) -> Output {
    outrigger_command().args(arguments).output().expect("the executable can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("all that is printed is UTF-8")
}

fn write(folder: &Path, content: &str) -> (PathBuf, String) {
    let path = folder.join("outrigger.yaml");
    std::fs::write(&path, content).expect("the test's folder can be written");
    let name = path.display().to_string();
    (path, name)
}

#[track_caller]
fn assert_says_every_mistake(said: &str, file: &str) {
    for (line, column, what, help) in MISTAKES {
        for part in [format!("{file}:{line}:{column}\n"), what.to_owned(), help.to_owned()] {
            assert!(said.contains(&part), "no {part} in:\n{said}");
        }
    }
    assert!(said.ends_with("4 errors\n") && !said.contains('\x1b'), "{said}");
    // The offending text is underlined.
    assert!(
        said.lines().any(|line| line.trim_end().ends_with(&format!("|{}{}", " ".repeat(42), "^".repeat(8)))),
        "{said}"
    );
}

#[test]
fn validate_tells_all_mistakes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (_, file) = write(folder.path(), BAD);
    let output = outrigger(&["validate", "-c", &file]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    assert_says_every_mistake(&text(&output.stderr), &file);
}

#[test]
fn validate_tells_machines_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (_, file) = write(folder.path(), BAD);
    let output = outrigger(&["validate", "-c", &file, "--format", "json"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), String::new()));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["file"], &report["valid"]), (&file.as_str().into(), &false.into()));
    let found = report["diagnostics"].as_array().expect("a list of mistakes");
    assert_eq!(found.len(), MISTAKES.len(), "{report:#}");
    for (found, (line, column, what, help)) in found.iter().zip(MISTAKES) {
        assert_eq!((found["line"].as_u64(), found["column"].as_u64()), (Some(line), Some(column)), "{found}");
        assert!(found["message"].as_str().unwrap().contains(what), "{found}");
        assert!(found["help"].as_str().unwrap().contains(help), "{found}");
        assert_eq!(found["severity"], "error");
    }
}

#[test]
fn validate_accepts_what_can_be_run() {
    let folder = tempfile::tempdir().unwrap();
    let (_, file) = write(folder.path(), EVERY_PILLAR);
    let output = outrigger(&["validate", "-c", &file]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), format!("{file}: valid\n"));
    let output = outrigger(&["validate", "--config", &file, "--format=json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &report["valid"], &report["file"]),
        (Some(0), &true.into(), &file.as_str().into())
    );
    // A controller's is judged where no cluster is, nor the files beside it; a start there says what is missing.
    let (_, controller) = write(folder.path(), "controller: { webhook: { profile: /etc/outrigger/nowhere.yaml } }\n");
    assert_eq!(outrigger(&["validate", "-c", &controller]).status.code(), Some(0));
    let started = outrigger(&["controller", "-c", &controller]);
    let said = text(&started.stderr);
    assert!(
        started.status.code() == Some(1) && said.contains("cannot read the profile /etc/outrigger/nowhere.yaml"),
        "{said}"
    );
    // A file that says nothing means all defaults.
    let (_, file) = write(folder.path(), "");
    assert_eq!(outrigger(&["validate", "-c", &file]).status.code(), Some(0));
}

#[test]
fn what_is_no_command_any_more_says_what_is() {
    let output = outrigger(&["upgrade", "setup", "--namespace", "x"]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("`outrigger install | kubectl apply -f -`"), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent.yaml").display().to_string();
    let directory = folder.path().display().to_string();
    for (file, why) in [(&absent, "does not exist"), (&directory, "folder")] {
        for verb in ["validate", "config", "run"] {
            let output = outrigger(&[verb, "-c", file]);
            let said = text(&output.stderr);
            assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()), "{verb}");
            assert!(
                said.contains(why) && said.contains(file.as_str()) && said.ends_with("1 error\n"),
                "{verb}: {said}"
            );
        }
    }
}

#[test]
fn mistakes_show_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let config = EVERY_PILLAR.replace("auth: {", "auht: {").replace("sinks: [{", "sinks: [{ bogus: 1,");
    let (_, file) = write(folder.path(), &config);
    for format in ["text", "json"] {
        let output = outrigger(&["validate", "-c", &file, "--format", format]);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("auht") && said.contains("bogus"), "{said}");
        for secret in SECRETS {
            assert!(!said.contains(secret), "{said}");
        }
    }
}

#[test]
fn run_refuses_a_bad_config_with_all_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let (_, file) = write(folder.path(), BAD);
    let marker = folder.path().join("started");
    let output = outrigger(&["run", "-c", &file, "--", "touch", marker.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert_says_every_mistake(&text(&output.stderr), &file);
    assert!(!marker.exists(), "the application was started");
}

#[test]
fn schema_is_the_committed_one() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    for (format, committed) in [("json", "outrigger.schema.json"), ("markdown", "config.md")] {
        let output = outrigger(&["schema", "--format", format]);
        assert!(output.status.success());
        let committed = std::fs::read_to_string(repository.join("docs/reference").join(committed)).unwrap();
        assert!(text(&output.stdout) == committed, "docs/reference is old: cargo xtask bless");
    }
    let schema: Value = serde_json::from_slice(&outrigger(&["schema"]).stdout).unwrap();
    let pillars = schema["properties"].as_object().unwrap();
    for pillar in ["runtime", "admin", "telemetry", "identity", "proxy", "logs", "secrets", "metrics"] {
        assert!(pillars[pillar]["description"].is_string(), "{pillar}");
    }
    assert_eq!(schema["$defs"]["Runtime"]["properties"]["shutdownBudget"]["default"], "25s");
}

#[test]
fn config_fills_in_defaults_and_masks_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let (_, file) = write(folder.path(), EVERY_PILLAR);
    let yaml = text(&outrigger(&["config", "-c", &file]).stdout);
    for line in [
        "shutdownBudget: 25s",
        "listen: 127.0.0.1:15000",
        "health: 0.0.0.0:15021",
        "level: info",
        "maxSeries: 10000",
        "ttl: 1h",
        "maxConnections: 10000",
        "connectTimeout: 2s",
        "mode: \"0400\"",
        "refresh: 5m",
        "rotateWait: 5s",
        "maxEvents: 1000",
        "listen: 127.0.0.1:8125",
        "listen: 0.0.0.0:15020",
        "value: \"********\"",
        "authorization: \"********\"",
    ] {
        assert!(yaml.lines().any(|found| found.trim() == line), "no {line} in:\n{yaml}");
    }
    let json = outrigger(&["config", "-c", &file, "--format", "json"]);
    let value: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["runtime"]["flushBudget"], "5s");
    for said in [&yaml, &text(&json.stdout)] {
        for secret in SECRETS {
            assert!(!said.contains(secret), "{said}");
        }
    }
    // What it prints means the same again, up to the secrets.
    let again = folder.path().join("again.yaml");
    std::fs::write(&again, &yaml).unwrap();
    assert_eq!(text(&outrigger(&["config", "-c", again.to_str().unwrap()]).stdout), yaml);
}

#[test]
fn a_config_takes_values_from_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let (_, file) = write(folder.path(), "runtime: { shutdownBudget: \"${BUDGET}\", flushBudget: \"${FLUSH:-3s}\" }\n");
    let with = |budget: Option<&str>| {
        let mut command = outrigger_command();
        command.args(["config", "-c", &file]).env_remove("BUDGET").env_remove("FLUSH");
        budget.map(|value| command.env("BUDGET", value));
        command.output().unwrap()
    };
    let yaml = text(&with(Some("77s")).stdout);
    assert!(yaml.contains("shutdownBudget: 77s") || yaml.contains("shutdownBudget: 1m17s"), "{yaml}");
    assert!(yaml.contains("flushBudget: 3s"), "{yaml}");
    let output = with(None);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("BUDGET") && said.contains(":1:"), "{said}");
}

#[test]
fn completion_works_in_bash() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("outrigger.bash");
    std::fs::write(&script, outrigger(&["completion", "bash"]).stdout).unwrap();
    // Asks the completion itself, as bash does when TAB is pressed.
    let ask = "set -eu; source \"$1\"; COMP_WORDS=(outrigger va); COMP_CWORD=1; COMP_LINE='outrigger va'; COMP_POINT=12; \
               _outrigger outrigger va outrigger; echo \"${COMPREPLY[@]}\"; complete -p outrigger";
    let said = run(tool("bash").args(["--norc", "-c", ask, "bash"]).arg(&script)).unwrap();
    assert!(said.starts_with("validate\n") && said.contains("_outrigger"), "{said}");
    for shell in ["zsh", "fish"] {
        assert!(text(&outrigger(&["completion", shell]).stdout).contains("validate"), "{shell}");
    }
}

#[test]
fn help_and_version_say_what_there_is() {
    let help = text(&outrigger(&["--help"]).stdout);
    let rows: [(&str, &[&str]); 7] = [
        ("run", &["--config <FILE>", "-c,", "<CMD>", "/etc/outrigger/outrigger.yaml"]),
        ("demo", &["--for <DURATION>", "--rate <N>", "--dir <DIR>"]),
        ("validate", &["--config <FILE>", "--format <FORMAT>", "json"]),
        ("config", &["--config <FILE>", "--format <FORMAT>"]),
        ("schema", &["--format <FORMAT>", "markdown"]),
        ("completion", &["<SHELL>", "bash", "zsh", "fish"]),
        ("version", &["--help"]),
    ];
    for (verb, flags) in rows {
        assert!(help.lines().any(|line| line.trim_start().starts_with(&format!("{verb} "))), "{verb}: {help}");
        let output = outrigger(&[verb, "--help"]);
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{verb}");
        for flag in flags {
            assert!(said.contains(flag), "{verb}: no {flag} in:\n{said}");
        }
    }
    assert!(help.contains("Exit codes:") && help.contains("126/127"), "{help}");
    let version = text(&outrigger(&["version"]).stdout);
    assert_eq!(version, text(&outrigger(&["--version"]).stdout));
    assert_eq!(version, format!("outrigger {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let rows: [&[&str]; 8] = [
        &[],
        &["bogus"],
        &["run", "--bogus"],
        &["validate", "--format", "xml"],
        &["validate", "extra"],
        &["demo", "--rate", "0"],
        &["demo", "--for", "6"],
        &["completion", "tcsh-like"],
    ];
    for arguments in rows {
        let output = outrigger(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stdout).is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let mut command = Command::new("bash");
    command.args(["-c", "set -o pipefail; \"$1\" schema | head -n 1", "bash"]).arg(outrigger_command().get_program());
    assert_eq!(run(&mut command).unwrap(), "{\n");
}

#[test]
fn a_start_on_taken_admin_ports_names_the_holder() {
    let folder = tempfile::tempdir().unwrap();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    for (taken, free) in [("listen", "health"), ("health", "listen")] {
        let config = format!("admin: {{ {taken}: \"127.0.0.1:{port}\", {free}: \"127.0.0.1:{}\" }}\n", free_port());
        let (_, file) = write(folder.path(), &config);
        let output = outrigger(&["run", "-c", &file]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in [format!("admin.{taken}"), format!("127.0.0.1:{port}"), format!("process {}", std::process::id())] {
            assert!(said.contains(&part), "no {part} in:\n{said}");
        }
    }
}

#[test]
fn a_taken_proxy_port_names_listener_and_holder() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    // The holder is another program, so that its command is seen to be looked up.
    let script = format!(
        "import socket,time\ns=socket.create_server((\"127.0.0.1\",{port}))\nprint(\"bound\",flush=True)\ntime.sleep(600)"
    );
    let mut holder = Process::start("holder", tool("python3").args(["-c", &script]), folder.path());
    eventually("the holder", || {
        holder.still_runs()?;
        ensure!(holder.log().contains("bound"), "not bound yet");
        Ok(())
    });
    let (admin, health) = (free_port(), free_port());
    let (_, file) = write(
        folder.path(),
        &format!(
            "admin: {{ listen: \"127.0.0.1:{admin}\", health: \"127.0.0.1:{health}\" }}\nproxy:\n  listeners: [{{ name: front-door, direction: inbound, \
             address: \"127.0.0.1:{port}\", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}]\n  clusters: [{{ name: app, endpoints: [\"127.0.0.1:1\"] }}]\n"
        ),
    );
    let mut process = Process::start("outrigger", outrigger_command().args(["run", "-c", &file]), folder.path());
    let pid = format!("process {}", holder.id());
    let told: Result<()> = eventually("the reason in the log and on /readyz?verbose", || {
        process.still_runs()?;
        let url = format!("http://127.0.0.1:{admin}/readyz?verbose");
        let page = outrigger_e2e::request("GET", &url, &[], "")?;
        ensure!(page.status == 503, "status {}", page.status);
        for said in [&page.body, &process.log()] {
            for part in ["front-door", &format!("127.0.0.1:{port}"), &pid, "python3"] {
                ensure!(said.contains(part), "no {part} in {said}");
            }
        }
        Ok(Ok(()))
    });
    told.unwrap();
    assert_eq!(process.stop().code(), Some(0));
}

#[test]
fn wait_holds_back_until_outrigger_is_ready() {
    let folder = tempfile::tempdir().unwrap();
    let (admin, health) = (free_port(), free_port());
    let secret = folder.path().join("secret.json");
    let config = format!(
        "admin: {{ listen: \"127.0.0.1:{admin}\", health: \"127.0.0.1:{health}\" }}\n\
         secrets:\n  providers: [{{ name: here, file: {{ directory: {0} }} }}]\n  \
         files: [{{ path: {0}/out, template: '{{{{ with secret \"secret\" }}}}{{{{ .Data.data.value }}}}{{{{ end }}}}' }}]\n",
        folder.path().display()
    );
    let (path, name) = write(folder.path(), &config);
    // Nobody there, then somebody who is not ready, and why.
    let nobody = outrigger(&["wait", "-c", &name, "--timeout", "100ms"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("is Outrigger running?"), "{}", text(&nobody.stderr));
    let _running = Process::start("outrigger", outrigger_command().arg("run").arg("-c").arg(&path), folder.path());
    eventually("the reason to be told", || {
        let unready = outrigger(&["wait", "-c", &name, "--timeout", "100ms", "--format", "json"]);
        let told: Value = serde_json::from_str(&text(&unready.stdout))?;
        ensure!(unready.status.code() == Some(1) && told["ready"] == false);
        ensure!(told["error"].as_str().is_some_and(|error| error.contains("secrets")), "{told}");
        Ok(())
    });
    // One that waits goes on when the secret comes.
    let mut waiting = outrigger_command().args(["wait", "-c", &name, "--timeout", "20s"]).spawn().unwrap();
    assert!(waiting.try_wait().unwrap().is_none());
    std::fs::write(&secret, "{ \"value\": \"x\" }").unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
    assert_eq!(outrigger(&["wait", "--timeout", "soon"]).status.code(), Some(2));
}
