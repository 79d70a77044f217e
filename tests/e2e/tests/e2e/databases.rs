//! Databases and their own clients, through listeners that find out by themselves what is spoken.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Stdio;

use anyhow::ensure;
use outrigger_e2e::{
    Authority, Mariadb, Place, Postgres, Redis, Sidecars, Spoken, eventually, listen_on, mariadb, psql, redis, run,
    tool,
};

/// Rows of a large result, each a MiB with its line feed.
const ROWS: usize = 64;

/// The lines of a large result: their numbers, led by dots.
#[track_caller]
fn expect_rows(text: &str) {
    assert_eq!(text.len(), ROWS << 20);
    for (number, line) in (1..).zip(text.lines()) {
        assert!(line.trim_start_matches('.') == format!("{number}"), "row {number} is damaged");
    }
}

/// Connections that Outrigger has carried to their end as bytes.
fn carried(way: &Sidecars) -> f64 {
    let text = way.first.get("/metrics").unwrap().ok().unwrap();
    let lines = text.lines().filter(|line| line.starts_with("outrigger_tcp_connections_closed_total{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn postgresql_is_carried() {
    postgresql(&Place::Here);
}

#[test]
fn postgresql_is_carried_between_pods() {
    postgresql(&Place::pods());
}

#[track_caller]
fn postgresql(place: &Place) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = place.at_server(|| Postgres::start(folder.path(), None));
    let upload = folder.path().join("upload");
    fs::write(&upload, (0..1_000_000).map(|number| format!("{number}\n")).collect::<String>()).unwrap();
    let ways = place.ways(folder.path(), Spoken::ANYTHING, server.port);
    for way in &ways {
        let ask = |command: &str| way.at_client(|| psql(way.at, "sslmode=prefer", command));
        assert_eq!(ask("select 6 * 7").unwrap(), "42\n");
        expect_rows(&ask(&format!("select lpad(i::text, 1048575, '.') from generate_series(1, {ROWS}) i")).unwrap());
        ask("create table given (number int)").unwrap();
        ask(&format!("\\copy given from '{}'", upload.display())).unwrap();
        assert_eq!(ask("select count(*), sum(number) from given").unwrap(), "1000000|499999500000\n");
        ask("drop table given").unwrap();
        let error = format!("{:#}", ask("select nothing from nowhere").unwrap_err());
        assert!(error.contains("relation \"nowhere\" does not exist"), "{error}");
        assert!(carried(way) >= 6.0);
    }
    // A session whose server goes away is told so, and does not wait for ever.
    let sessions = ways.iter().map(|way| {
        let (host, port) = (way.at.ip(), way.at.port());
        let place = format!("host={host} port={port} user=postgres dbname=postgres sslmode=disable");
        let mut session = tool("psql");
        session.args([&place, "--no-psqlrc", "-Atq", "-v", "ON_ERROR_STOP=1"]);
        session.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut session = way.at_client(|| session.spawn()).unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"select 'begun';\n").unwrap();
        let mut begun = [0; 6];
        session.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
        assert_eq!(&begun, b"begun\n");
        (session, stdin)
    });
    let sessions: Vec<_> = sessions.collect();
    place.at_server(|| server.restart(folder.path()));
    for (session, mut stdin) in sessions {
        stdin.write_all(b"select 'again';\n").unwrap();
        drop(stdin);
        let output = session.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        assert!(said.contains("terminat") || said.contains("closed the connection"), "{said}");
    }
    for way in &ways {
        eventually("the restarted server", || way.at_client(|| psql(way.at, "sslmode=disable", "select 1")));
    }
}

#[test]
fn postgresql_keeps_its_own_tls() {
    own_tls(&Place::Here);
}

#[test]
fn postgresql_keeps_its_own_tls_between_pods() {
    own_tls(&Place::pods());
}

#[track_caller]
fn own_tls(place: &Place) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ca"));
    let leaf = authority.issue_server("postgres", "db.example");
    let server = place.at_server(|| Postgres::start(folder.path(), Some(&leaf)));
    for way in place.ways(folder.path(), Spoken::ANYTHING, server.port) {
        // The client checks the server's certificate: nothing on the way has looked inside.
        let named = format!("hostaddr={} host=db.example", way.at.ip());
        let how = format!("{named} sslmode=verify-full sslrootcert={}", authority.bundle().display());
        let ask = |command: &str| way.at_client(|| psql(way.at, &how, command));
        let version = ask("select version from pg_stat_ssl where pid = pg_backend_pid()").unwrap();
        assert_eq!(version, "TLSv1.3\n");
        let large = format!("select lpad(i::text, 1048575, '.') from generate_series(1, {ROWS}) i");
        expect_rows(&ask(&large).unwrap());
    }
}

#[test]
fn mariadb_speaks_first() {
    speaks_first(&Place::Here);
}

#[test]
fn mariadb_speaks_first_between_pods() {
    speaks_first(&Place::pods());
}

#[track_caller]
fn speaks_first(place: &Place) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = place.at_server(|| Mariadb::start(folder.path()));
    let ways = place.ways(folder.path(), Spoken::ANYTHING, server.port);
    for way in &ways {
        let ask = |statement: &str| way.at_client(|| mariadb(way.at, statement));
        assert_eq!(ask("select 6 * 7").unwrap(), "42\n");
        // Remembered now: the next one need not wait.
        let large = format!("select lpad(seq, 1048575, '.') from seq_1_to_{ROWS}");
        expect_rows(&ask(&large).unwrap());
        let error = format!("{:#}", ask("select nothing from mysql.nowhere").unwrap_err());
        assert!(error.contains("nowhere' doesn't exist"), "{error}");
    }
    place.at_server(|| server.restart(folder.path()));
    for way in &ways {
        eventually("the restarted server", || way.at_client(|| mariadb(way.at, "select 1")));
    }
}

#[test]
fn redis_is_carried() {
    carries_redis(&Place::Here);
}

#[test]
fn redis_is_carried_between_pods() {
    carries_redis(&Place::pods());
}

#[track_caller]
fn carries_redis(place: &Place) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = place.at_server(|| Redis::start(folder.path()));
    let value = folder.path().join("value");
    let text: String = (0..7_000_000).map(|number| format!("{number:07}\n")).collect();
    fs::write(&value, &text).unwrap();
    let ways = place.ways(folder.path(), Spoken::ANYTHING, server.port);
    for way in &ways {
        let (host, port) = (way.at.ip().to_string(), way.at.port().to_string());
        let ask = |command: &[&str]| way.at_client(|| redis(way.at, command));
        assert_eq!(ask(&["set", "answer", "42"]).unwrap(), "OK\n");
        assert_eq!(ask(&["get", "answer"]).unwrap(), "42\n");
        // A large one, there and back.
        let mut command = tool("redis-cli");
        command.args(["-x", "-h", &host, "-p", &port, "set", "large"]).stdin(fs::File::open(&value).unwrap());
        assert_eq!(way.at_client(|| run(&mut command)).unwrap(), "OK\n");
        let back = ask(&["get", "large"]).unwrap();
        assert!(back.trim_end() == text.trim_end(), "{} bytes came back, or others", back.len());
        // Many commands without waiting for their answers.
        let mut command = tool("redis-benchmark");
        command.args(["-h", &host, "-p", &port, "-n", "20000", "-c", "20", "-P", "16", "-t", "set,get", "-q"]);
        let said = way.at_client(|| run(&mut command)).unwrap();
        assert!(said.contains("SET:") && said.contains("GET:") && !said.contains("rror"), "{said}");
    }
    place.at_server(|| server.restart(folder.path()));
    for way in &ways {
        let gone = eventually("the restarted server", || way.at_client(|| redis(way.at, &["get", "answer"])));
        assert_eq!(gone.trim(), "");
    }
}

#[test]
fn each_direction_ends_by_itself() {
    ends_by_itself(&Place::Here);
}

#[test]
fn each_direction_ends_by_itself_between_pods() {
    ends_by_itself(&Place::pods());
}

#[track_caller]
fn ends_by_itself(place: &Place) {
    let listener = place.at_server(|| TcpListener::bind((listen_on(), 0))).unwrap();
    let server = listener.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let ways = place.ways(folder.path(), Spoken::ANYTHING, server);
    let count = ways.len();
    let counting = std::thread::spawn(move || {
        for _ in 0..count {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            // Only the client's end of its direction tells that this is all.
            stream.read_to_end(&mut all).unwrap();
            for count in 0..3 {
                stream.write_all(format!("{} bytes, {count}\n", all.len()).as_bytes()).unwrap();
            }
            stream.write_all(&all).unwrap();
        }
    });
    for way in &ways {
        let mut stream = way.at_client(|| TcpStream::connect(way.at)).unwrap();
        let sent: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
        // What begins like no protocol we know.
        stream.write_all(b"\x01\x02").unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let head = "8000002 bytes, 0\n8000002 bytes, 1\n8000002 bytes, 2\n\x01\x02";
        assert!(answer.starts_with(head.as_bytes()) && answer.ends_with(&sent), "{} bytes", answer.len());
        assert_eq!(answer.len(), head.len() + sent.len());
        // Both ends closed whole, which is no error.
        eventually("the connection's end", || {
            let text = way.first.get("/metrics")?.ok()?;
            let whole = text
                .lines()
                .any(|line| line.starts_with("outrigger_tcp_connections_closed_total{") && !line.contains("flags="));
            ensure!(whole, "{text}");
            Ok(())
        });
    }
    counting.join().unwrap();
}
