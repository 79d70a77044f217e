//! The pillar as a whole, over real files and sockets: rotation, restarts, kill -9, receivers that come and go.

#![expect(clippy::unwrap_used, reason = "helpers fail the test they help")]

mod harness;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::*;
use proptest::prelude::*;

/// One source, one file sink.
fn to_file(folder: &Path) -> String {
    format!(
        "logs:
  stateDirectory: {0}/state
  sources: [{{name: app, file: {{path: {0}/logs/app.log, rotateWait: 300ms}}}}]
  sinks: [{{name: out, inputs: [app], file: {{path: {0}/out.jsonl}}, batch: {{timeout: 10ms}}}}]
",
        folder.display()
    )
}

/// One source, one HTTP sink.
fn to_http(folder: &Path, url: &str, more: &str) -> String {
    format!(
        "logs:
  stateDirectory: {0}/state
  sources: [{{name: app, file: {{path: {0}/logs/app.log, rotateWait: 300ms, maxLine: 1KiB}}}}]
  sinks:
    - name: out
      inputs: [app]
      http: {{url: {url}, timeout: 2s}}
      {more}
",
        folder.display()
    )
}

/// Lets pass what a change brings about, so that only what comes next can wake a source.
async fn quiet() {
    tokio::time::sleep(Duration::from_millis(800)).await;
}

fn stage() -> (tempfile::TempDir, App) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("logs")).unwrap();
    let app = App::new(&folder.path().join("logs/app.log"));
    (folder, app)
}

#[tokio::test]
async fn lines_arrive_once_and_in_order_over_rotations() {
    local(async {
        let (folder, mut app) = stage();
        let out = folder.path().join("out.jsonl");
        app.lines(3);
        let logs = Logs::start(&to_file(folder.path()));
        arrived(&out, 3).await;
        for round in 1..=5 {
            app.lines(100);
            app.rotate();
            app.lines(50);
            if round % 2 == 0 {
                // Twice within a moment: the file between was never the current one for us.
                app.rotate();
                app.lines(1);
            }
        }
        arrived(&out, app.written).await;
        // A rotated file is still written to for a while.
        fs::rename(&app.path, app.path.with_extension("moved")).unwrap();
        app.lines(5);
        arrived(&out, app.written).await;
        logs.counted("outrigger_logs_sink_acknowledged_total{sink=\"out\"}", app.written as f64).await;
        logs.stop().await;
        arrived(&out, app.written).await;
    })
    .await;
}

#[tokio::test]
async fn an_unterminated_line_waits_and_is_sent_at_the_stop() {
    local(async {
        let (folder, mut app) = stage();
        let out = folder.path().join("out.jsonl");
        let logs = Logs::start(&to_file(folder.path()));
        app.raw(b"one\r\n\ntw");
        eventually(|| if messages(&out) == ["one", ""] { Ok(()) } else { Err(format!("{:?}", messages(&out))) }).await;
        app.raw(b"o\nthree and");
        eventually(|| if messages(&out).len() == 3 { Ok(()) } else { Err(String::new()) }).await;
        logs.stop().await;
        assert_eq!(messages(&out), ["one", "", "two", "three and"]);
        app.raw(b" a half\n\xff\xfe\0x\n");
        let logs = Logs::start(&to_file(folder.path()));
        eventually(|| if messages(&out).len() == 6 { Ok(()) } else { Err(format!("{:?}", messages(&out))) }).await;
        assert_eq!(messages(&out)[4..], [" a half", "\u{fffd}\u{fffd}\0x"]);
        logs.stop().await;
        assert_eq!(messages(&out).len(), 6);
        // Every event has an id of its own.
        let ids: std::collections::HashSet<String> =
            events(&out).iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids.len(), 6);
    })
    .await;
}

#[tokio::test]
async fn rotations_while_down_are_made_up_for() {
    local(async {
        let (folder, mut app) = stage();
        let out = folder.path().join("out.jsonl");
        // Rotated before the first start: not ours to send.
        fs::write(app.name(1), "old\n").unwrap();
        app.lines(10);
        let logs = Logs::start(&to_file(folder.path()));
        arrived(&out, 10).await;
        logs.stop().await;
        for _ in 0..3 {
            app.lines(20);
            app.rotate();
            app.lines(20);
        }
        let logs = Logs::start(&to_file(folder.path()));
        arrived(&out, app.written).await;
        logs.stop().await;
        // Renamed to what is no name of a rotated file: found by what it is.
        app.lines(5);
        fs::rename(&app.path, folder.path().join("logs/elsewhere")).unwrap();
        app.reopen();
        app.lines(5);
        let logs = Logs::start(&to_file(folder.path()));
        arrived(&out, app.written).await;
        logs.stop().await;
        arrived(&out, app.written).await;
    })
    .await;
}

#[tokio::test]
async fn copytruncate_neither_loses_nor_repeats() {
    local(async {
        let (folder, mut app) = stage();
        let out = folder.path().join("out.jsonl");
        let logs = Logs::start(&to_file(folder.path()));
        for _ in 0..3 {
            app.lines(30);
            arrived(&out, app.written).await;
            app.copytruncate();
            app.lines(40);
            arrived(&out, app.written).await;
        }
        logs.stop().await;
        // While down: the rest of the old content stands in the copy alone.
        app.lines(7);
        app.copytruncate();
        app.lines(300);
        let logs = Logs::start(&to_file(folder.path()));
        arrived(&out, app.written).await;
        logs.stop().await;
        // The copy is not taken for a file of its own by another start.
        let logs = Logs::start(&to_file(folder.path()));
        app.lines(1);
        arrived(&out, app.written).await;
        logs.stop().await;
        arrived(&out, app.written).await;
    })
    .await;
}

#[tokio::test]
async fn a_receiver_may_be_down_and_files_may_be_deleted_meanwhile() {
    local(async {
        let (folder, mut app) = stage();
        app.keep = 1;
        let receiver = Receiver::start(Box::new(|_| (204, "")));
        let (address, url) = (receiver.address, receiver.url());
        drop(receiver);
        let logs =
            Logs::start(&to_http(folder.path(), &url, "buffer: 16KiB\n      batch: {maxBytes: 8KiB, timeout: 20ms}"));
        app.lines(500);
        logs.status("degraded", "sink `out`").await;
        // Four rotations, and only one rotated file is kept on disk.
        for _ in 0..4 {
            app.rotate();
            app.lines(500);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let held = logs.metric("outrigger_logs_buffer_bytes{sink=\"out\"}");
        assert!(held > 0.0 && held <= 16384.0, "{held}");
        assert!(logs.metric("outrigger_logs_source_lag_bytes{source=\"app\"}") > 10_000.0);
        let receiver = Receiver::start_at(address, Box::new(|_| (204, "")));
        eventually(|| {
            if receiver.taken().len() as u64 >= app.written {
                Ok(())
            } else {
                Err(format!("{}", receiver.taken().len()))
            }
        })
        .await;
        in_order(&receiver.taken(), app.written);
        logs.status("ready", "").await;
        assert!(logs.metric("outrigger_logs_sink_retries_total{sink=\"out\"}") > 0.0);
        eventually(|| {
            let held = logs.metric("outrigger_logs_buffer_bytes{sink=\"out\"}");
            let lag = logs.metric("outrigger_logs_source_lag_bytes{source=\"app\"}");
            if held + lag == 0.0 { Ok(()) } else { Err(format!("{held} {lag}")) }
        })
        .await;
        logs.stop().await;
        in_order(&receiver.taken(), app.written);
    })
    .await;
}

#[tokio::test]
async fn what_was_not_acknowledged_at_the_stop_is_sent_after_it() {
    local(async {
        let (folder, mut app) = stage();
        app.lines(200);
        let receiver = Receiver::start(Box::new(|_| (503, "retry-after: 1\r\n")));
        let yaml = to_http(folder.path(), &receiver.url(), "");
        let logs = Logs::start(&yaml);
        logs.status("degraded", "503").await;
        let begun = Instant::now();
        logs.stop_within(Duration::from_secs(1)).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "the stop has an end");
        let address = receiver.address;
        drop(receiver);
        let receiver = Receiver::start_at(address, Box::new(|_| (200, "")));
        let logs = Logs::start(&yaml);
        eventually(|| if receiver.taken().len() == 200 { Ok(()) } else { Err(String::new()) }).await;
        logs.stop().await;
        in_order(&receiver.taken(), 200);
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_comes_back_during_the_stop_gets_the_rest() {
    local(async {
        let (folder, mut app) = stage();
        app.lines(50);
        let up = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_up = std::sync::Arc::clone(&up);
        let receiver = Receiver::start(Box::new(move |_| {
            if is_up.load(std::sync::atomic::Ordering::Relaxed) { (200, "") } else { (503, "retry-after: 60\r\n") }
        }));
        let logs = Logs::start(&to_http(folder.path(), &receiver.url(), ""));
        logs.status("degraded", "503").await;
        up.store(true, std::sync::atomic::Ordering::Relaxed);
        logs.stop().await;
        in_order(&receiver.taken(), 50);
    })
    .await;
}

#[tokio::test]
async fn batches_that_are_too_large_are_halved_and_only_rejected_lines_are_given_up() {
    local(async {
        let (folder, mut app) = stage();
        app.lines(100);
        let receiver = Receiver::start(Box::new(|post| match post.messages.len() {
            n if n > 30 => (413, ""),
            _ if post.messages.iter().any(|message| message == "line 42" || message == "line 77") => (400, ""),
            _ => (200, ""),
        }));
        let logs = Logs::start(&to_http(folder.path(), &receiver.url(), ""));
        eventually(|| if receiver.taken().len() == 98 { Ok(()) } else { Err(format!("{}", receiver.taken().len())) })
            .await;
        app.lines(1);
        eventually(|| if receiver.taken().len() == 99 { Ok(()) } else { Err(format!("{}", receiver.taken().len())) })
            .await;
        eventually(|| {
            let dropped = logs.metric("outrigger_logs_dropped_total{component=\"out\",reason=\"rejected\"}");
            let taken = logs.metric("outrigger_logs_sink_acknowledged_total{sink=\"out\"}");
            if (dropped, taken) == (2.0, 99.0) { Ok(()) } else { Err(format!("{dropped} {taken}")) }
        })
        .await;
        logs.stop().await;
        let expected: Vec<String> = (1..=101).filter(|n| ![42, 77].contains(n)).map(|n| format!("line {n}")).collect();
        assert_eq!(receiver.taken(), expected);
        // Each request has a key of its own, and it says what it carries.
        let posts = receiver.posts.lock().unwrap();
        let keys: std::collections::HashSet<_> =
            posts.iter().map(|(post, _)| &post.headers["idempotency-key"]).collect();
        assert_eq!(keys.len(), posts.len());
        assert_eq!(posts[0].0.headers["content-type"], "application/x-ndjson");
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_refuses_everything_is_not_asked_line_by_line() {
    local(async {
        let (folder, mut app) = stage();
        app.lines(1000);
        let receiver = Receiver::start(Box::new(|_| (422, "")));
        let logs = Logs::start(&to_http(folder.path(), &receiver.url(), ""));
        eventually(|| {
            let dropped = logs.metric("outrigger_logs_dropped_total{component=\"out\",reason=\"rejected\"}");
            if dropped == 1000.0 { Ok(()) } else { Err(format!("{dropped}")) }
        })
        .await;
        assert!(receiver.posts.lock().unwrap().len() < 100, "{}", receiver.posts.lock().unwrap().len());
        assert_eq!(logs.metric("outrigger_logs_sink_acknowledged_total{sink=\"out\"}"), 0.0);
        logs.stop().await;
    })
    .await;
}

#[tokio::test]
async fn credentials_that_are_refused_lose_nothing_and_are_never_shown() {
    local(async {
        let (folder, mut app) = stage();
        app.lines(10);
        let mut answers = vec![401, 403, 200];
        let receiver = Receiver::start(Box::new(move |post| {
            assert_eq!(post.headers["authorization"], "Bearer because");
            (if answers.len() > 1 { answers.remove(0) } else { answers[0] }, "")
        }));
        let yaml = to_http(folder.path(), &receiver.url(), "")
            .replace("timeout: 2s", "timeout: 2s, headers: {Authorization: \"Bearer because\"}");
        let logs = Logs::start(&yaml);
        logs.status("degraded", "40").await;
        // The receiver's text repeats the secret; ours does not.
        assert!(!logs.outside.status().1.contains("Bearer because"), "{}", logs.outside.status().1);
        eventually(|| if receiver.taken().len() == 10 { Ok(()) } else { Err(String::new()) }).await;
        logs.status("ready", "").await;
        logs.stop().await;
    })
    .await;
}

#[tokio::test]
async fn one_slow_sink_holds_back_but_every_sink_gets_all_once() {
    local(async {
        let (folder, mut app) = stage();
        let receiver = Receiver::start(Box::new(|_| (200, "")));
        let (address, url) = (receiver.address, receiver.url());
        drop(receiver);
        let yaml = format!(
            "{}    - {{name: file, inputs: [app], file: {{path: {}/out.jsonl}}}}\n",
            to_http(folder.path(), &url, "buffer: 16KiB\n      batch: {maxBytes: 8KiB}"),
            folder.path().display()
        );
        app.lines(3000);
        let logs = Logs::start(&yaml);
        logs.status("degraded", "sink `out`").await;
        logs.stop_within(Duration::from_millis(500)).await;
        let receiver = Receiver::start_at(address, Box::new(|_| (200, "")));
        let logs = Logs::start(&yaml);
        arrived(&folder.path().join("out.jsonl"), 3000).await;
        eventually(|| if receiver.taken().len() >= 3000 { Ok(()) } else { Err(String::new()) }).await;
        logs.stop().await;
        in_order(&receiver.taken(), 3000);
        arrived(&folder.path().join("out.jsonl"), 3000).await;
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_is_absent_or_a_path_that_is_no_file_is_told_and_waited_for() {
    local(async {
        let folder = tempfile::tempdir().unwrap();
        let mut app = App::new(&folder.path().join("logs/app.log"));
        let out = folder.path().join("out.jsonl");
        let logs = Logs::start(&to_file(folder.path()));
        logs.status("degraded", "logs").await;
        fs::create_dir(folder.path().join("logs")).unwrap();
        logs.status("ready", "").await;
        app.lines(3);
        arrived(&out, 3).await;
        // The folder itself is replaced.
        fs::rename(folder.path().join("logs"), folder.path().join("gone")).unwrap();
        logs.status("degraded", "logs").await;
        fs::create_dir(folder.path().join("logs")).unwrap();
        app.reopen();
        app.lines(3);
        arrived(&out, 6).await;
        logs.status("ready", "").await;
        fs::remove_file(&app.path).unwrap();
        // Opening a pipe must not stop the whole process.
        assert!(Command::new("mkfifo").arg(&app.path).status().unwrap().success());
        logs.status("degraded", "regular file").await;
        fs::remove_file(&app.path).unwrap();
        app.reopen();
        app.lines(3);
        arrived(&out, 9).await;
        logs.status("ready", "").await;
        logs.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_symlink_is_followed() {
    local(async {
        let (folder, _) = stage();
        let out = folder.path().join("out.jsonl");
        fs::create_dir(folder.path().join("real")).unwrap();
        let mut app = App::new(&folder.path().join("real/0.log"));
        app.lines(1);
        std::os::unix::fs::symlink(&app.path, folder.path().join("logs/app.log")).unwrap();
        let logs = Logs::start(&to_file(folder.path()));
        arrived(&out, 1).await;
        app.lines(1);
        arrived(&out, 2).await;
        app.rotate();
        app.lines(2);
        arrived(&out, 4).await;
        logs.stop().await;
        app.lines(1);
        app.rotate();
        app.lines(1);
        let logs = Logs::start(&to_file(folder.path()));
        arrived(&out, 6).await;
        logs.stop().await;
    })
    .await;
}

#[tokio::test]
async fn two_processes_cannot_share_a_state_directory() {
    local(async {
        let (folder, _) = stage();
        let mut first = Logs::start(&to_file(folder.path()));
        first.outside.ready().await;
        let second = Logs::start(&to_file(folder.path()));
        let error = second.failure().await;
        assert!(error.contains("state") && error.contains(&format!("pid {}", std::process::id())), "{error}");
        first.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_broken_checkpoint_means_the_beginning_again() {
    local(async {
        let (folder, mut app) = stage();
        let out = folder.path().join("out.jsonl");
        let yaml = to_file(folder.path()).replace("rotateWait", "readFrom: end, rotateWait");
        app.lines(5);
        let logs = Logs::start(&yaml);
        logs.status("ready", "").await;
        eventually(|| if folder.path().join("state/checkpoint.json").exists() { Ok(()) } else { Err(String::new()) })
            .await;
        app.raw(b"new\n");
        eventually(|| if messages(&out) == ["new"] { Ok(()) } else { Err(format!("{:?}", messages(&out))) }).await;
        logs.stop().await;
        fs::write(folder.path().join("state/checkpoint.json"), "{\"vers").unwrap();
        let logs = Logs::start(&yaml);
        eventually(|| if messages(&out).len() == 7 { Ok(()) } else { Err(format!("{:?}", messages(&out))) }).await;
        logs.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_reload_changes_the_graph_without_loss_or_repetition() {
    local(async {
        let (folder, mut app) = stage();
        let first = to_file(folder.path());
        let out = folder.path().join("out.jsonl");
        let logs = Logs::start(&first);
        app.lines(100);
        arrived(&out, 100).await;
        // Another sink gets what comes from now on; the other goes on.
        let both = format!(
            "{first}    - {{name: second, inputs: [app], file: {{path: {}/second.jsonl}}}}\n",
            folder.path().display()
        );
        let both = both.replace("sinks: [{name: out", "sinks:\n    - {name: out").replace("10ms}}]", "10ms}}");
        app.lines(100);
        logs.reload(&both);
        app.lines(100);
        arrived(&out, 300).await;
        let second = folder.path().join("second.jsonl");
        eventually(|| {
            if messages(&second).last().is_some_and(|last| last == "line 300") { Ok(()) } else { Err(String::new()) }
        })
        .await;
        // The state moves to another folder, with all that is known.
        logs.reload(&both.replace("/state", "/state2"));
        app.lines(10);
        arrived(&out, 310).await;
        logs.reload(&first.replace("/state", "/state2").replace("10ms", "20ms"));
        app.rotate();
        app.lines(10);
        arrived(&out, 320).await;
        logs.stop().await;
        arrived(&out, 320).await;
        let logs = Logs::start(&first.replace("/state", "/state2"));
        app.lines(1);
        arrived(&out, 321).await;
        logs.stop().await;
        arrived(&out, 321).await;
    })
    .await;
}

#[tokio::test]
async fn parsed_lines_and_lines_that_cannot_be_parsed() {
    local(async {
        let (folder, mut app) = stage();
        let yaml = format!(
            "logs:
  stateDirectory: {0}/state
  sources: [{{name: app, file: {{path: {0}/logs/app.log, maxLine: 100}}}}]
  transforms:
    - {{name: parsed, inputs: [app], json: {{}}}}
    - {{name: strict, inputs: [app], json: {{onError: drop}}}}
  sinks:
    - {{name: kept, inputs: [parsed], file: {{path: {0}/kept.jsonl}}}}
    - {{name: strict, inputs: [strict], file: {{path: {0}/strict.jsonl}}}}
",
            folder.path().display()
        );
        let logs = Logs::start(&yaml);
        let long = "x".repeat(500_000);
        app.raw(
            format!("{{\"n\":1}}\nplain\n{{\"n\":2,\"big\":12345678901234567890123}}\n{long}\n{{\"n\":3}}\n")
                .as_bytes(),
        );
        let (kept, strict) = (folder.path().join("kept.jsonl"), folder.path().join("strict.jsonl"));
        eventually(|| if events(&kept).len() == 5 { Ok(()) } else { Err(String::new()) }).await;
        eventually(|| if events(&strict).len() == 3 { Ok(()) } else { Err(String::new()) }).await;
        let kept_events = events(&kept);
        assert_eq!(kept_events[0]["n"], 1);
        assert_eq!(kept_events[0]["outrigger"]["source"], "app");
        assert_eq!(kept_events[1]["message"], "plain");
        assert!(fs::read_to_string(&kept).unwrap().contains("12345678901234567890123"));
        assert_eq!(kept_events[3]["message"].as_str().unwrap().len(), 100);
        assert_eq!(kept_events[3]["truncated"], true);
        assert_eq!(kept_events[4]["n"], 3);
        logs.counted("outrigger_logs_dropped_total{component=\"app\",reason=\"parse_error\"}", 2.0).await;
        logs.stop().await;
        // A dropped last line is done with, too: nothing comes again.
        app.raw(b"no json\n");
        for _ in 0..2 {
            Logs::start(&yaml).stop().await;
        }
        assert_eq!((events(&kept).len(), events(&strict).len()), (6, 3));
    })
    .await;
}

#[tokio::test]
async fn a_sink_file_that_is_rotated_or_cannot_be_written_is_followed() {
    local(async {
        let (folder, mut app) = stage();
        let out = folder.path().join("out.jsonl");
        let logs = Logs::start(&to_file(folder.path()));
        app.lines(10);
        arrived(&out, 10).await;
        fs::rename(&out, folder.path().join("out.1")).unwrap();
        fs::create_dir(&out).unwrap();
        app.lines(10);
        logs.status("degraded", "sink `out`").await;
        fs::remove_dir(&out).unwrap();
        // What somebody else left there unterminated is not glued to.
        fs::write(&out, "{\"message\":\"line 11\"}").unwrap();
        eventually(|| if messages(&out).len() == 11 { Ok(()) } else { Err(format!("{:?}", messages(&out))) }).await;
        assert_eq!(messages(&out)[1], "line 11");
        logs.status("ready", "").await;
        logs.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_says_retry_at_once_is_not_hammered() {
    local(async {
        let (folder, mut app) = stage();
        app.lines(1);
        let receiver = Receiver::start(Box::new(|_| (503, "retry-after: 0\r\n")));
        let logs = Logs::start(&to_http(folder.path(), &receiver.url(), ""));
        eventually(|| if receiver.posts.lock().unwrap().is_empty() { Err(String::new()) } else { Ok(()) }).await;
        let begun = Instant::now();
        eventually(|| if begun.elapsed() > Duration::from_secs(1) { Ok(()) } else { Err(String::new()) }).await;
        let posts = receiver.posts.lock().unwrap().len();
        assert!(posts < 60, "{posts} tries in a second");
        logs.stop_within(Duration::from_millis(500)).await;
    })
    .await;
}

#[tokio::test]
async fn keys_of_batches_tell_contents_and_ways_apart() {
    local(async {
        let (folder, mut app) = stage();
        let receiver = Receiver::start(Box::new(|_| (200, "")));
        // The same lines on two ways to one sink, one event a batch.
        let yaml = to_http(folder.path(), &receiver.url(), "batch: {maxEvents: 1, timeout: 10ms}")
            .replace("inputs: [app]", "inputs: [app, parsed]")
            .replace("  sinks:", "  transforms: [{name: parsed, inputs: [app], json: {}}]\n  sinks:");
        let logs = Logs::start(&yaml);
        let count = |n: usize| {
            let taken = receiver.taken().len();
            if taken == n { Ok(()) } else { Err(format!("{taken} of {n}")) }
        };
        app.raw(b"first a\n");
        eventually(|| count(2)).await;
        // The same inode and the same offsets, other content.
        fs::OpenOptions::new().write(true).open(&app.path).unwrap().set_len(0).unwrap();
        let series = "outrigger_logs_oddities_total{component=\"app\",kind=\"copytruncate\"}";
        eventually(|| if logs.metric(series) == 1.0 { Ok(()) } else { Err("not noticed".into()) }).await;
        app.raw(b"other b\n");
        eventually(|| count(4)).await;
        logs.stop().await;
        let posts = receiver.posts.lock().unwrap();
        let keys: std::collections::HashSet<_> =
            posts.iter().map(|(post, _)| &post.headers["idempotency-key"]).collect();
        assert_eq!(keys.len(), 4, "{posts:?}");
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_is_exchanged_at_once_is_followed() {
    local(async {
        let (folder, mut app) = stage();
        let out = folder.path().join("out.jsonl");
        let logs = Logs::start(&to_file(folder.path()));
        app.lines(1);
        arrived(&out, 1).await;
        // The new one stands there before anybody can look: no moment without a folder tells of it.
        fs::create_dir(folder.path().join("fresh")).unwrap();
        let exchange = rustix::fs::RenameFlags::EXCHANGE;
        let (logs_folder, fresh) = (folder.path().join("logs"), folder.path().join("fresh"));
        rustix::fs::renameat_with(rustix::fs::CWD, &logs_folder, rustix::fs::CWD, &fresh, exchange).unwrap();
        eventually(|| if logs.outside.status().0 == "ready" { Ok(()) } else { Err(logs.outside.status().1) }).await;
        app.reopen();
        for _ in 0..2 {
            app.lines(1);
            arrived(&out, app.written).await;
            quiet().await;
        }
        logs.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_symlink_that_comes_later_or_leads_elsewhere_is_followed() {
    local(async {
        let (folder, _) = stage();
        let out = folder.path().join("out.jsonl");
        let link = folder.path().join("logs/app.log");
        let mut logs = Logs::start(&to_file(folder.path()));
        logs.outside.ready().await;
        let mut written = 0;
        for turn in 0..3 {
            let real = folder.path().join(format!("real-{turn}"));
            fs::create_dir(&real).unwrap();
            let mut app = App::new(&real.join("0.log"));
            app.written = written;
            app.lines(1);
            let fresh = folder.path().join("logs/.link");
            std::os::unix::fs::symlink(&app.path, &fresh).unwrap();
            fs::rename(&fresh, &link).unwrap();
            arrived(&out, app.written).await;
            quiet().await;
            app.lines(1);
            arrived(&out, app.written).await;
            written = app.written;
        }
        logs.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_full_disk_holds_lines_back_and_loses_none() {
    local(async {
        let (folder, mut app) = stage();
        let out = folder.path().join("out.jsonl");
        std::os::unix::fs::symlink("/dev/full", &out).unwrap();
        // The checkpoint's place is taken as well.
        fs::create_dir_all(folder.path().join("state/.checkpoint.new")).unwrap();
        let logs = Logs::start(&to_file(folder.path()));
        app.lines(10);
        logs.status("degraded", "No space left").await;
        logs.status("degraded", "checkpoint").await;
        fs::remove_file(&out).unwrap();
        fs::remove_dir(folder.path().join("state/.checkpoint.new")).unwrap();
        arrived(&out, 10).await;
        logs.status("ready", "").await;
        assert!(folder.path().join("state/checkpoint.json").exists());
        logs.stop().await;
        let logs = Logs::start(&to_file(folder.path()));
        app.lines(1);
        arrived(&out, 11).await;
        logs.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_sink_that_cannot_be_synced_does_not_stop_checkpoints() {
    local(async {
        let (folder, mut app) = stage();
        let yaml = to_file(folder.path()).replace(&format!("{}/out.jsonl", folder.path().display()), "/dev/null");
        let logs = Logs::start(&yaml);
        app.lines(10);
        let checkpoint = || fs::read_to_string(folder.path().join("state/checkpoint.json")).unwrap_or_default();
        let size = fs::metadata(&app.path).unwrap().len();
        eventually(|| if checkpoint().contains(&format!("\"out\":{size}")) { Ok(()) } else { Err(checkpoint()) }).await;
        logs.status("ready", "").await;
        logs.stop().await;
    })
    .await;
}

/// Run in a process of its own by `kill_9_at_any_moment`; does nothing otherwise.
#[test]
fn child() {
    let Ok(path) = std::env::var("OUTRIGGER_LOGS_CHILD") else { return };
    let yaml = fs::read_to_string(path).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(local(async {
        let logs = Logs::start(&yaml);
        // The parent's end of the pipe closes: an orderly stop.
        let closed = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        closed.await.unwrap().unwrap();
        logs.stop().await;
    }));
}

fn spawn_child(config: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env("OUTRIGGER_LOGS_CHILD", config)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn kill_9_at_any_moment() {
    let (folder, mut app) = stage();
    let out = folder.path().join("out.jsonl");
    let config = folder.path().join("logs.yaml");
    fs::write(&config, to_file(folder.path())).unwrap();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut first = spawn_child(&config);
    let begun = Instant::now();
    while !folder.path().join("state/checkpoint.json").exists() {
        assert!(begun.elapsed() < SOON, "no checkpoint");
    }
    first.kill().unwrap();
    first.wait().unwrap();
    for _ in 0..25 {
        let mut child = spawn_child(&config);
        let until = Instant::now() + Duration::from_millis(20 + random(500));
        while Instant::now() < until {
            app.lines(1 + random(200));
            if random(6) == 0 {
                app.rotate();
            }
            std::thread::sleep(Duration::from_millis(random(8)));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // While it is down, too.
        app.lines(random(50));
        if random(3) == 0 {
            app.rotate();
        }
    }
    let mut child = spawn_child(&config);
    app.lines(1);
    let begun = Instant::now();
    while (messages(&out).len() as u64) < app.written && begun.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    let got = messages(&out);
    let twice = at_least_once(&got, app.written);
    assert_eq!((twice, got.len() as u64), (0, app.written), "a file sink has each line once");
}

/// What happens to a log.
#[derive(Debug, Clone)]
enum Step {
    Lines(u64),
    /// The beginning of a line, continued by the next lines.
    Half,
    Rotate,
    CopyTruncate,
    /// Everything written so far arrives before the next step.
    Settle,
    Restart,
    /// Stopped, and started after the steps in between.
    Down,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u64..60).prop_map(Step::Lines),
        1 => Just(Step::Half),
        3 => Just(Step::Rotate),
        1 => Just(Step::CopyTruncate),
        2 => Just(Step::Settle),
        1 => Just(Step::Restart),
        1 => Just(Step::Down),
    ];
    proptest::collection::vec(step, 1..25)
}

/// Applies steps; the lines that must have arrived, in order, are those of the model.
async fn play(steps: &[Step]) {
    let (folder, mut app) = stage();
    let out = folder.path().join("out.jsonl");
    let yaml = to_file(folder.path());
    let mut logs = Some(Logs::start(&yaml));
    // What is rotated before the first start is not ours.
    logs.as_mut().unwrap().outside.ready().await;
    let mut half = false;
    for step in steps {
        match step {
            Step::Lines(count) => {
                if std::mem::take(&mut half) {
                    app.raw(format!("{}\n", app.written).as_bytes());
                }
                app.lines(*count);
            }
            Step::Half if !half => {
                app.written += 1;
                app.raw(b"line ");
                half = true;
            }
            Step::Rotate if !half => app.rotate(),
            // What is written between the copy and the truncation is lost by design; what was not read is in the copy.
            Step::CopyTruncate if !half && app.path.exists() && fs::metadata(&app.path).unwrap().len() > 0 => {
                if logs.is_some() {
                    arrived(&out, app.written).await;
                }
                app.copytruncate();
                // Two copies under one name would take the first one's rest with them.
                if logs.is_none() {
                    logs = Some(Logs::start(&yaml));
                }
                app.lines(1);
                arrived(&out, app.written).await;
            }
            Step::Settle if logs.is_some() => arrived(&out, app.written - u64::from(half)).await,
            Step::Restart if !half => {
                if let Some(logs) = logs.take() {
                    logs.stop().await;
                }
                logs = Some(Logs::start(&yaml));
            }
            Step::Down if !half => {
                if let Some(logs) = logs.take() {
                    logs.stop().await;
                }
            }
            _ => {}
        }
    }
    if half {
        app.raw(format!("{}\n", app.written).as_bytes());
    }
    let logs = logs.unwrap_or_else(|| Logs::start(&yaml));
    arrived(&out, app.written).await;
    logs.stop().await;
    in_order(&messages(&out), app.written);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 8, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_each_line_arrives_once_and_in_order(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(local(play(&steps)));
    }
}
