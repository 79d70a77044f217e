//! The client of the Kubernetes API against a real one: what it refuses, what is watched over its faults, who leads.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::collections::BTreeSet;
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use outrigger_config::MetricsRegistry;
use outrigger_e2e::{ApiServer, tool};
use outrigger_http::Resolver;
use outrigger_kubernetes::resources::{CONFIG_MAPS, LEASES, NAMESPACES, PODS};
use outrigger_kubernetes::{
    Access, ApiError, Client, Election, ElectionOptions, Event, Key, Leadership, Options, Patch, Recorder, Regarding,
    Resource, Selection, Store, Write, informer, resources,
};
use outrigger_runtime::Stop;
use outrigger_telemetry::{Format, Registry};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(60);

fn run_async(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

fn client(access: Access) -> Client {
    client_with(access, Options { timeout: Duration::from_secs(20), ..Options::default() })
}

fn client_with(access: Access, options: Options) -> Client {
    Client::new(access, Resolver::from_system(), options)
}

fn admin(api: &ApiServer) -> Client {
    client(Access::find(Some(&api.kubeconfig()), None).unwrap())
}

async fn eventually(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !probe().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn map(name: &str, value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "labels": { "test": "yes" } },
        "data": { "value": value, "ballast": "x".repeat(2000) },
    })
}

/// A way to a server that can be cut, and healed.
struct Relay {
    address: SocketAddr,
    open: watch::Sender<bool>,
    _task: JoinSet<()>,
}

impl Relay {
    async fn to(server: &str) -> Self {
        let target: SocketAddr =
            server.trim_start_matches("https://").replace("localhost", "127.0.0.1").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = watch::Sender::new(true);
        let receiver = open.subscribe();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let mut receiver = receiver.clone();
                connections.spawn(async move {
                    if !*receiver.borrow() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = receiver.wait_for(|open| !*open) => {}
                    }
                });
            }
        });
        Self { address, open, _task: task }
    }

    fn access(&self, folder: &Path) -> Access {
        Access::with_files(format!("https://{}", self.address), folder.join("api-ca.pem"), folder.join("api-token"))
    }
}

const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: reader, namespace: shop }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: reader, namespace: shop }
rules:
  - { apiGroups: [''], resources: [configmaps], verbs: [get, list, watch] }
  - { apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: reader, namespace: shop }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader }
subjects: [{ kind: ServiceAccount, name: reader, namespace: shop }]
";

fn start(folder: &Path) -> ApiServer {
    let api = ApiServer::start(folder);
    api.apply(OBJECTS);
    api.write_access(folder, "shop", "reader");
    api
}

#[test]
fn objects_are_read_written_and_refused_as_the_api_server_says() {
    let folder = tempfile::tempdir().unwrap();
    let api = start(folder.path());
    run_async(async {
        let admin = admin(&api);
        let path = CONFIG_MAPS.named("shop", "one");
        assert_eq!(admin.find(path).await.unwrap(), None);
        assert!(admin.get(path).await.unwrap_err().is_not_found());
        let dry = admin.create(path, &map("one", "1"), Write::DryRun).await.unwrap();
        assert_eq!(dry["data"]["value"], "1");
        assert_eq!(admin.find(path).await.unwrap(), None, "a dry run makes nothing");
        let mut made = admin.create(path, &map("one", "1"), Write::Real).await.unwrap();
        assert!(admin.create(path, &map("one", "1"), Write::Real).await.unwrap_err().is_conflict());
        made["data"]["value"] = json!("2");
        admin.update(path, &made, Write::Real).await.unwrap();
        assert!(admin.update(path, &made, Write::Real).await.unwrap_err().is_conflict(), "an old version");
        let merged =
            admin.patch(path, Patch::Merge, &json!({ "data": { "ballast": null } }), Write::Real).await.unwrap();
        assert_eq!(merged["data"], json!({ "value": "2" }));
        let operations = json!([{ "op": "replace", "path": "/data/value", "value": "3" }]);
        assert_eq!(admin.patch(path, Patch::Json, &operations, Write::Real).await.unwrap()["data"]["value"], "3");
        let applied =
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "one" }, "data": { "value": "4" } });
        let refused = admin.patch(path, Patch::Apply, &applied, Write::Real).await;
        // We changed it by other means before, under the same name, which is another manager to the API server.
        assert!(refused.as_ref().err().is_none_or(ApiError::is_conflict), "{refused:?}");
        let forced = admin.patch(path, Patch::ForceApply, &applied, Write::Real).await.unwrap();
        assert_eq!(forced["data"]["value"], "4");
        assert!(admin.delete(path, Some("another"), Write::Real).await.unwrap_err().is_conflict(), "another UID");
        assert!(admin.delete(path, None, Write::Real).await.unwrap());
        assert!(!admin.delete(path, None, Write::Real).await.unwrap());

        let bad = admin.create(PODS.within("shop"), &json!({ "apiVersion": "v1", "kind": "Pod" }), Write::Real).await;
        assert_eq!(bad.unwrap_err().status().unwrap().code, 422);

        let reader =
            client(Access::with_files(api.server(), folder.path().join("api-ca.pem"), folder.path().join("api-token")));
        let error = reader.list(PODS.within("shop"), &Selection::default()).await.unwrap_err();
        let forbidden = error.status().and_then(|status| status.forbidden()).unwrap();
        assert_eq!(forbidden.user, "system:serviceaccount:shop:reader");
        assert_eq!((forbidden.verb.as_str(), forbidden.resource.as_str()), ("list", "pods"));
        assert_eq!(forbidden.namespace.as_deref(), Some("shop"));
        assert!(error.to_string().contains("may not `list` `pods` in the namespace `shop`"), "{error}");
        let error = reader.list(NAMESPACES.all(), &Selection::default()).await.unwrap_err();
        assert!(error.to_string().contains("may not `list` `namespaces` in the whole cluster"), "{error}");

        let untrusted = Access::with_files(api.server(), api.kubeconfig(), folder.path().join("api-token"));
        let error = client(untrusted).get(path).await.unwrap_err();
        assert!(error.to_string().contains("admin.conf"), "{error}");

        std::fs::write(folder.path().join("api-token"), "nonsense").unwrap();
        let error = reader.get(path).await.unwrap_err();
        assert!(error.is_forbidden() && error.to_string().contains("does not accept our credentials"), "{error}");
        std::fs::remove_file(folder.path().join("api-token")).unwrap();
        let error = reader.get(path).await.unwrap_err();
        assert!(error.to_string().contains("api-token"), "{error}");
    });
}

#[test]
fn long_lists_come_in_pages_and_events_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let api = start(folder.path());
    run_async(async {
        let admin = admin(&api);
        let mut making = JoinSet::new();
        for number in 0..520 {
            let admin = admin.clone();
            making.spawn(async move {
                let name = format!("map-{number}");
                admin.create(CONFIG_MAPS.within("shop"), &map(&name, "x"), Write::Real).await.map(drop)
            });
        }
        while let Some(made) = making.join_next().await {
            made.unwrap().unwrap();
        }
        let all = admin.list(CONFIG_MAPS.within("shop"), &Selection::labels("test=yes")).await.unwrap();
        let names: BTreeSet<_> = all.iter().map(|map| map["metadata"]["name"].to_string()).collect();
        assert_eq!((all.len(), names.len()), (520, 520));

        let (recorder, writer) = Recorder::new(admin.clone(), "outrigger.dev/controller", "test-1");
        let mut writing = JoinSet::new();
        writing.spawn(async move { writer.run().await });
        let regarding = Regarding {
            api_version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            namespace: "shop".to_owned(),
            name: "map-0".to_owned(),
            uid: all[0]["metadata"]["uid"].as_str().unwrap().to_owned(),
        };
        for note in ["again", "again", "once"] {
            recorder.record(Event {
                regarding: regarding.clone(),
                warning: true,
                reason: "Tested",
                action: "Test",
                note: note.to_owned(),
            });
        }
        eventually("the events", async || {
            let events = admin.list(resources::EVENTS.within("shop"), &Selection::default()).await.unwrap();
            let ours: Vec<_> = events.iter().filter(|event| event["reason"] == "Tested").collect();
            ours.len() == 2 && ours.iter().any(|event| event["note"] == "again" && event["series"]["count"] == 2)
        })
        .await;
        assert_eq!(recorder.dropped(), 0);
    });
}

/// Whether a store holds what the API server does.
async fn agree(admin: &Client, store: &Store<String>) -> bool {
    let Ok(all) = admin.list(CONFIG_MAPS.within("shop"), &Selection::labels("test=yes")).await else { return false };
    let value = |map: &Value| map["data"]["value"].as_str().unwrap().to_owned();
    let there: BTreeSet<_> =
        all.iter().map(|map| (map["metadata"]["name"].as_str().unwrap().to_owned(), value(map))).collect();
    let known: BTreeSet<_> = store.all().into_iter().map(|(key, value)| (key.name, value.to_string())).collect();
    there == known
}

#[test]
fn nothing_is_missed_over_a_cut_a_compaction_and_a_restart_of_the_api_server() {
    let folder = tempfile::tempdir().unwrap();
    let api = Arc::new(start(folder.path()));
    run_async(async {
        let admin = admin(&api);
        let put = async |name: &str, value: &str| {
            // A connection may have ended with the API server.
            eventually(name, async || {
                let path = CONFIG_MAPS.named("shop", name);
                admin.patch(path, Patch::ForceApply, &map(name, value), Write::Real).await.is_ok()
            })
            .await;
        };
        let restart = async || {
            let api = Arc::clone(&api);
            let work = move || {
                api.stop_api();
                api.start_api();
            };
            tokio::task::spawn_blocking(work).await.unwrap();
        };
        put("stays", "1").await;
        put("goes", "1").await;
        let relay = Relay::to(&api.server()).await;
        let path = CONFIG_MAPS.within("shop");
        let project = |map: &Value| Some(map["data"]["value"].as_str()?.to_owned());
        let (informer, store) =
            informer(client(relay.access(folder.path())), path, Selection::labels("test=yes"), project);
        let mut running = JoinSet::new();
        running.spawn(async move { informer.run().await });
        store.synced().await;
        let mut changes = store.changes();
        assert_eq!(changes.next().await.len(), 2);
        put("new", "1").await;
        eventually("a new object", async || store.get(&Key::new("shop", "new")).is_some()).await;

        relay.open.send_replace(false);
        put("stays", "2").await;
        put("unseen", "1").await;
        admin.delete(CONFIG_MAPS.named("shop", "goes"), None, Write::Real).await.unwrap();
        eventually("the fault to be told", async || store.problem().is_some()).await;
        assert!(store.get(&Key::new("shop", "goes")).is_some(), "what is known stays until more is");
        api.compact();
        restart().await;
        relay.open.send_replace(true);
        eventually("everything", async || agree(&admin, &store).await && store.problem().is_none()).await;
        assert_eq!(store.get(&Key::new("shop", "stays")).as_deref(), Some(&"2".to_owned()));
        let mut told = BTreeSet::new();
        while told.len() < 4 {
            let some = tokio::time::timeout(PATIENCE, changes.next()).await.unwrap();
            told.extend(some.into_iter().map(|key| key.name));
        }
        assert_eq!(told.iter().map(String::as_str).collect::<Vec<_>>(), ["goes", "new", "stays", "unseen"]);

        // An API server that is killed while much changes.
        for number in 0..20 {
            put(&format!("many-{number}"), "1").await;
        }
        restart().await;
        put("after", "1").await;
        eventually("everything again", async || agree(&admin, &store).await).await;
    });
}

#[test]
fn a_version_that_is_forgotten_and_a_missing_right_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let api = start(folder.path());
    run_async(async {
        // Only now it cannot go on from the beginning: what it remembers begins with what etcd has then.
        api.compact();
        api.stop_api();
        api.start_api();
        let admin = admin(&api);
        let selection = Selection::default();
        let gone = admin.watch(CONFIG_MAPS.within("shop"), &selection, "1", Duration::from_secs(5)).await;
        // It is told at once, or as the first event.
        let error = match gone {
            Err(error) => error,
            Ok(mut watch) => watch.next().await.unwrap_err(),
        };
        assert!(error.is_gone(), "{error}");
        let access =
            Access::with_files(api.server(), folder.path().join("api-ca.pem"), folder.path().join("api-token"));
        let (informer, store) = informer(client(access), PODS.all(), selection, |_| Some(()));
        let mut running = JoinSet::new();
        running.spawn(async move { informer.run().await });
        eventually("the missing right", async || {
            store.problem().is_some_and(|problem| problem.contains("may not `list` `pods` in the whole cluster"))
        })
        .await;
        assert!(!store.is_synced());
    });
}

/// An API server that is too busy for one service account, by its own priority and fairness: what it may do at once for that account
/// is taken by one request after the other that waits for a webhook, which never answers.
pub(crate) struct Busy<'a> {
    api: &'a ApiServer,
    over: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl<'a> Busy<'a> {
    pub(crate) fn start(api: &'a ApiServer, namespace: &str, account: &str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        api.apply(
            &BUSY.replace("NAMESPACE", namespace).replace("ACCOUNT", account).replace("ADDRESS", &address.to_string()),
        );
        let over = Arc::new(AtomicBool::new(false));
        let (waits, waiting) = std::sync::mpsc::sync_channel(1);
        let silent = std::thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let mut connections = Vec::new();
                while !over.load(Relaxed) {
                    match listener.accept() {
                        Ok((connection, _)) => {
                            connections.push(connection);
                            let _ = waits.try_send(());
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(20)),
                    }
                }
            }
        });
        let lease = format!(
            "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {{ name: hold, namespace: {namespace}, labels: {{ hold: 'yes' }} }}\n"
        );
        let (user, config) = (format!("--as=system:serviceaccount:{namespace}:{account}"), api.kubeconfig());
        let asking = std::thread::spawn({
            let over = Arc::clone(&over);
            move || {
                while !over.load(Relaxed) {
                    let mut kubectl = tool("kubectl");
                    kubectl.env("KUBECONFIG", &config).args(["create", "--dry-run=server", "--filename=-", &user]);
                    kubectl.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
                    let mut child = kubectl.spawn().unwrap();
                    let _ = child.stdin.take().unwrap().write_all(lease.as_bytes());
                    let _ = child.wait();
                }
            }
        });
        waiting.recv_timeout(PATIENCE).expect("a request that waits");
        Self { api, over, threads: vec![silent, asking] }
    }

    pub(crate) fn end(self) {
        self.over.store(true, Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.api.kubectl(&["delete", "flowschema/busy", "validatingwebhookconfiguration/busy"]).unwrap();
    }
}

const BUSY: &str = "
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: PriorityLevelConfiguration
metadata: { name: nothing }
spec: { type: Limited, limited: { nominalConcurrencyShares: 0, lendablePercent: 0, borrowingLimitPercent: 0, limitResponse: { type: Reject } } }
---
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: FlowSchema
metadata: { name: busy }
spec:
  priorityLevelConfiguration: { name: nothing }
  matchingPrecedence: 2
  rules:
  - subjects: [{ kind: ServiceAccount, serviceAccount: { name: ACCOUNT, namespace: NAMESPACE } }]
    resourceRules: [{ verbs: ['*'], apiGroups: ['*'], resources: ['*'], namespaces: ['*'], clusterScope: true }]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: { name: busy }
webhooks:
- name: busy.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  timeoutSeconds: 30
  clientConfig: { url: 'https://ADDRESS/' }
  objectSelector: { matchLabels: { hold: 'yes' } }
  rules: [{ apiGroups: [coordination.k8s.io], apiVersions: [v1], operations: [CREATE], resources: [leases] }]
";

/// A program behind the API server that is not there.
const AWAY: &str = "
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: { name: v1.away.example }
spec: { group: away.example, version: v1, groupPriorityMinimum: 1, versionPriority: 1, insecureSkipTLSVerify: true, service: { name: away, namespace: shop } }
";

#[test]
fn an_api_server_that_is_too_busy_is_asked_again_and_one_that_fails_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let api = start(folder.path());
    run_async(async {
        let admin = admin(&api);
        let (path, relay) = (CONFIG_MAPS.within("shop"), Relay::to(&api.server()).await);
        admin.create(path, &map("before", "1"), Write::Real).await.unwrap();
        let project = |map: &Value| Some(map["data"]["value"].as_str()?.to_owned());
        let selection = Selection::labels("test=yes");
        let (informer, store) = informer(client(relay.access(folder.path())), path, selection, project);
        let mut running = JoinSet::new();
        running.spawn(async move { informer.run().await });
        store.synced().await;

        api.apply(AWAY);
        let busy = Busy::start(&api, "shop", "reader");
        let access =
            || Access::with_files(api.server(), folder.path().join("api-ca.pem"), folder.path().join("api-token"));
        let hasty = client_with(access(), Options { retries: 0, ..Options::default() });
        eventually("429", async || match hasty.get(CONFIG_MAPS.named("shop", "before")).await {
            Ok(_) => false,
            Err(error) => {
                let status = error.status().unwrap_or_else(|| panic!("{error}"));
                assert_eq!(status.code, 429, "{error}");
                assert!(status.retry_after.is_some_and(|wait| !wait.is_zero()), "{status:?}");
                assert!(error.is_too_many() && error.may_pass(), "{error}");
                true
            }
        })
        .await;
        // The watch that is under way is cut, and cannot begin anew.
        relay.open.send_replace(false);
        admin.create(path, &map("meanwhile", "1"), Write::Real).await.unwrap();
        admin.delete(CONFIG_MAPS.named("shop", "before"), None, Write::Real).await.unwrap();
        relay.open.send_replace(true);
        let registry = Registry::new(&MetricsRegistry::default(), 1);
        let options = Options { retries: 1000, ..Options::default() };
        let patient = Client::counted(access(), Resolver::from_system(), options, &registry);
        let mut asking = JoinSet::new();
        asking.spawn(async move { patient.get(CONFIG_MAPS.named("shop", "meanwhile")).await });
        eventually("it to have been asked again", async || {
            let mut text = Vec::new();
            registry.encode(Format::Text, &mut text);
            let text = String::from_utf8(text).unwrap();
            let series = "outrigger_kubernetes_requests_total{verb=\"get\",resource=\"configmaps\",code=\"429\"} ";
            let count = text.lines().find_map(|line| line.strip_prefix(series)?.parse::<f64>().ok());
            count.is_some_and(|count| count >= 2.0)
        })
        .await;
        assert!(store.get(&Key::new("shop", "before")).is_some(), "what is known stays until more is");
        busy.end();
        let answered = tokio::time::timeout(PATIENCE, asking.join_next()).await.unwrap().unwrap().unwrap();
        assert_eq!(answered.unwrap()["data"]["value"], "1");
        eventually("what was missed", async || agree(&admin, &store).await && store.problem().is_none()).await;

        // What another program serves through the API server is away: 503, which may pass, and is told at once.
        let thing =
            Resource { group: "away.example", version: "v1", plural: "things", kind: "Thing", namespaced: true };
        eventually("503", async || match admin.get(thing.named("shop", "one")).await {
            Ok(_) => false,
            Err(error) => {
                let code = error.status().map(|status| status.code);
                assert!(error.is_not_found() || (code == Some(503) && error.may_pass()), "{error}");
                code == Some(503)
            }
        })
        .await;
    });
}

struct Candidate {
    leadership: Leadership,
    stop: outrigger_runtime::StopSource,
    relay: Relay,
}

#[test]
fn never_two_lead_and_another_follows_one_that_is_cut_off_or_stops() {
    let folder = tempfile::tempdir().unwrap();
    let api = start(folder.path());
    run_async(async {
        let mut running = JoinSet::new();
        let mut candidates = Vec::new();
        for identity in ["a", "b", "c"] {
            let relay = Relay::to(&api.server()).await;
            let options = ElectionOptions {
                duration: Duration::from_secs(4),
                renew_deadline: Duration::from_secs(2),
                retry: Duration::from_millis(200),
                ..ElectionOptions::new("shop", "test", identity)
            };
            let (election, leadership) = Election::new(client(relay.access(folder.path())), options);
            let (source, stop) = Stop::channel();
            running.spawn(async move { election.run(&stop).await });
            candidates.push(Candidate { leadership, stop: source, relay });
        }
        // Looked at all the time, not only when the test looks.
        let all: Vec<Leadership> = candidates.iter().map(|one| one.leadership.clone()).collect();
        let most = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut watching = JoinSet::new();
        watching.spawn({
            let most = Arc::clone(&most);
            async move {
                loop {
                    let leaders = all.iter().filter(|one| one.leads()).count();
                    most.fetch_max(leaders, std::sync::atomic::Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
        let leader = async || {
            let mut found = 0;
            eventually("a leader", async || {
                let leads = candidates.iter().position(|one| one.leadership.leads());
                leads.inspect(|at| found = *at).is_some()
            })
            .await;
            found
        };
        let first = leader().await;
        candidates[first].relay.open.send_replace(false);
        candidates[first].leadership.lost().await;
        let second = leader().await;
        assert_ne!(first, second);
        candidates[first].relay.open.send_replace(true);
        eventually("the first one to follow", async || {
            let one = &candidates[first].leadership;
            let leads = candidates.iter().position(|one| one.leadership.leads());
            leads.is_some_and(|at| one.holder() == ["a", "b", "c"][at]) && one.problem().is_none()
        })
        .await;
        let second = leader().await;
        candidates[second].stop.request(Instant::now() + Duration::from_secs(30));
        candidates[second].leadership.lost().await;
        eventually("another one", async || {
            candidates.iter().enumerate().any(|(at, one)| at != second && one.leadership.leads())
        })
        .await;
        assert_eq!(most.load(std::sync::atomic::Ordering::Relaxed), 1, "two led at once");
        let lease = admin(&api).get(LEASES.named("shop", "test")).await.unwrap();
        assert!(lease["spec"]["leaseTransitions"].as_u64().unwrap() >= 2, "{lease}");
    });
}
