//! `outrigger demo`: shows the main job, checks itself, leaves nothing behind.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use outrigger_e2e::{Process, eventually, eventually_within, outrigger_command, request};
use rustix::process::Signal;

/// Command lines of all processes that name `folder`.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().expect("the test's folder is text");
    let commands = fs::read_dir("/proc").expect("/proc is mounted").flatten().filter_map(|entry| {
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&command).replace('\0', " "))
    });
    commands.filter(|command| command.contains(folder)).collect()
}

#[track_caller]
fn assert_nothing_is_left(folder: &Path) {
    eventually("all processes of the demo to be gone", || {
        let left = processes_of(folder);
        ensure!(left.is_empty(), "still there: {left:#?}");
        Ok(())
    });
}

/// The demo's rows `ok …` and `FAILED …`.
fn rows(said: &str, word: &str) -> Vec<String> {
    said.lines().filter(|line| line.starts_with(word)).map(str::to_owned).collect()
}

#[test]
fn it_ends_by_itself_and_everything_shown_held() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("demo");
    let mut command = outrigger_command();
    command.args(["demo", "--for", "6s", "--rate", "100", "--dir"]).arg(&work);
    let mut demo = Process::start("demo", &mut command, folder.path());
    let status = demo.wait(Duration::from_secs(90));
    let said = demo.log();
    assert_eq!(status.code(), Some(0), "{said}");
    assert_eq!(rows(&said, "FAILED"), [""; 0]);
    assert!(!said.contains('\x1b') && !said.contains('\r'), "escape codes on piped output: {said}");
    assert!(said.contains("everything shown held"), "{said}");
    let ok = rows(&said, "ok ").join("\n");
    for claim in [
        "every request was answered with success",
        "the metrics add up to the requests sent",
        "a client without a certificate is refused",
        "frontend: every request came over mTLS from spiffe://shop.example/",
        "backend: every request came over mTLS from spiffe://shop.example/ns/shop/sa/frontend",
        "frontend: every log line",
        "backend: every log line",
        "frontend: the secret was on disk before",
        "backend: the secret was on disk before",
        "frontend: the rotated secret reached",
        "backend: the rotated secret reached",
        "frontend: stopped in order",
        "backend: stopped in order",
    ] {
        assert!(ok.contains(claim), "the demo does not claim `{claim}`; it says:\n{said}");
    }
    // A line a second, each with both pods.
    let seconds = said.lines().filter(|line| line.contains("s | frontend: ") && line.contains("| backend: "));
    assert!((5..=8).contains(&seconds.count()), "{said}");
    // What it claims is true without it: the lines lie there, each once.
    for pod in ["frontend", "backend"] {
        let shipped = fs::read_to_string(work.join(format!("shipped/{pod}.ndjson"))).unwrap();
        let requests = shipped.lines().filter(|line| line.contains("\"request\"")).count();
        assert!(requests > 100, "{pod}: {requests} lines");
        let password = fs::read_to_string(work.join(pod).join("secrets/password")).unwrap();
        assert_eq!(password, format!("{pod}-demo-password-2"));
        assert!(!said.contains(&password), "a secret is shown");
    }
    assert_nothing_is_left(&work);
}

#[test]
fn ctrl_c_ends_it_in_order() {
    for signal in [Signal::INT, Signal::TERM] {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("demo");
        let mut command = outrigger_command();
        command.args(["demo", "--rate", "50", "--dir"]).arg(&work);
        let mut demo = Process::start("demo", &mut command, folder.path());
        eventually("traffic", || {
            demo.still_runs()?;
            ensure!(demo.log().lines().any(|line| line.starts_with("  2s | frontend: ")), "none yet");
            Ok(())
        });
        // The pages it names can be opened while it runs.
        let said = demo.log();
        let urls: Vec<_> = said.split_whitespace().filter(|word| word.starts_with("http://")).collect();
        assert!(urls.len() >= 6, "{said}");
        for url in urls {
            assert_eq!(request("GET", url, &[], "").unwrap().status, 200, "{url}");
        }
        demo.signal(signal);
        let status = eventually_within(Duration::from_secs(60), "its end", || demo.ended());
        let said = demo.log();
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(rows(&said, "FAILED").is_empty() && said.contains("stopped in order"), "{said}");
        assert_nothing_is_left(&work);
    }
}

#[test]
fn a_folder_that_holds_something_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "years of work").unwrap();
    let output = outrigger_command().args(["demo", "--for", "6s", "--dir"]).arg(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(folder.path().to_str().unwrap()) && said.contains("not empty"), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
