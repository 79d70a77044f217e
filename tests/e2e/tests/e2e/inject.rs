//! `outrigger inject` and `uninject` as a stranger meets them, and the probes that an injected sidecar asks.

use std::io::Write;
use std::process::{Output, Stdio};

use outrigger_e2e::{Application, outrigger_command, request, start_outrigger_as};
use serde_json::Value;

const SHOP: &str = "\
# The shop.
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  template:
    metadata: {labels: {app: shop}}   # a remark
    spec:
      containers:
      - {name: app, image: shop, livenessProbe: {httpGet: {port: 8080}}}
---
apiVersion: v1
kind: Service
metadata:   {name: shop}
";

fn outrigger(arguments: &[&str], input: &str) -> Output {
    let mut command = outrigger_command();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the executable can be started");
    let mut stdin = child.stdin.take().expect("it is piped");
    // It may refuse its arguments before it reads.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("all that is printed is UTF-8")
}

#[test]
fn manifests_are_injected_and_given_back() {
    let done = outrigger(&["inject", "-f", "-", "--image", "registry.example/outrigger:1"], SHOP);
    let (out, said) = (text(&done.stdout), text(&done.stderr));
    assert_eq!(done.status.code(), Some(0), "{said}");
    assert!(
        out.starts_with("# The shop.\napiVersion: apps/v1\n") && out.contains("image: registry.example/outrigger:1\n"),
        "{out}"
    );
    assert!(out.ends_with("---\napiVersion: v1\nkind: Service\nmetadata:   {name: shop}\n"), "{out}");
    assert!(said.contains("document 1 was written anew, without its comments"), "{said}");
    let again = outrigger(&["inject", "-f", "-", "--image", "registry.example/outrigger:1"], &out);
    assert_eq!(text(&again.stdout), out);
    let back = outrigger(&["uninject", "-f", "-"], &out);
    let back = text(&back.stdout);
    assert!(!back.contains("outrigger") && back.contains("port: 8080"), "{back}");
}

#[test]
fn what_goes_wrong_has_its_exit_code_and_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("the test's folder can be written");
        path.display().to_string()
    };
    let refused =
        write("refused.yaml", &SHOP.replace("{labels: {app: shop}}", "{annotations: {outrigger.dev/cpu-limit: lots}}"));
    let broken = write("broken.yaml", "a: 1\n---\nb: [\n");
    let profile = write("profile.yaml", "imgae: x\n");
    let shop = write("shop.yaml", SHOP);
    for (arguments, code, expected) in [
        (
            &["inject", "-f", &refused][..],
            3,
            "document 1 (Deployment/shop): annotation `outrigger.dev/cpu-limit` has the value `lots`",
        ),
        (&["inject", "-f", &broken], 1, "broken.yaml: document 2 (line "),
        (&["inject", "-f", "/nowhere"], 1, "cannot read /nowhere"),
        (&["inject", "-f", &shop, "--profile", &profile], 2, "unknown field `imgae`"),
        (&["inject", "-f", &shop, "--interception", "magic"], 2, "invalid value 'magic'"),
        (&["inject", "-f", &shop, "-n", "No Such"], 2, "lower-case letters"),
        (&["inject"], 2, "--filename <FILE>"),
        (&["inject", "-f", &shop, "-n", "kube-system"], 0, "is never injected"),
    ] {
        let done = outrigger(arguments, "");
        let said = text(&done.stderr);
        assert!(
            done.status.code() == Some(code) && said.contains(expected),
            "{arguments:?}: {:?}: {said}",
            done.status
        );
        assert!(code == 0 || done.stdout.is_empty(), "{arguments:?}: nothing that could be applied");
    }
    let told = outrigger(&["inject", "-f", &refused, "--explain"], "");
    assert_eq!(told.status.code(), Some(3));
    assert!(text(&told.stdout).contains("(Deployment/shop): refused\n  x annotation"), "{}", text(&told.stdout));
    let told = outrigger(&["inject", "-f", &shop, "--explain", "--format", "json"], "");
    let told: Value = serde_json::from_slice(&told.stdout).expect("it is JSON");
    let one = &told["objects"][0];
    assert_eq!((&one["kind"], &one["outcome"]), (&"Deployment".into(), &"injected".into()));
    assert!(one["reasons"].to_string().contains("livenessProbe through port 15021"), "{one}");
}

#[test]
fn an_injected_config_and_its_probes_run() {
    let folder = tempfile::tempdir().unwrap();
    let application = Application::start();
    let port = application.address.port();
    let mut command = outrigger_command();
    let probes = format!(
        "{{\"/app-health/app/livez\":{{\"httpGet\":{{\"path\":\"/alive\",\"port\":{port}}},\"timeoutSeconds\":20}}}}"
    );
    command.env("OUTRIGGER_PROBES", probes);
    let mut outrigger = start_outrigger_as(command, folder.path(), "", &[]);
    outrigger.wait_ready();
    let ask = |path: &str| {
        request("GET", &format!("{}{path}", outrigger.health), &[("user-agent", "kube-probe/1.34")], "").unwrap()
    };
    assert_eq!(ask("/app-health/app/livez").status, 200);
    let seen = application.seen();
    assert!(
        seen.iter().any(|one| one.line == "GET /alive HTTP/1.1"
            && one.headers.contains(&("user-agent".to_owned(), "kube-probe/1.34".to_owned()))),
        "{seen:?}"
    );
    assert_eq!(ask("/app-health/other/livez").status, 404);
    assert_eq!(ask("/config").status, 404, "nothing else of the admin API is at the health port");
    drop(application);
    assert_eq!(ask("/app-health/app/livez").status, 503);
    // What cannot be asked keeps the start back, with the reason.
    let mut command = outrigger_command();
    command.env("OUTRIGGER_PROBES", "{\"/app-health/app/livez\":{}}");
    let wrong = tempfile::tempdir().unwrap();
    let mut outrigger = start_outrigger_as(command, wrong.path(), "", &[]);
    assert!(!outrigger.process.wait(std::time::Duration::from_secs(20)).success());
    assert!(
        outrigger.process.log().contains("exactly one of httpGet, tcpSocket and grpc"),
        "{}",
        outrigger.process.log()
    );
}
