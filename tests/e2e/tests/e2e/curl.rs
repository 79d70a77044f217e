//! Ordinary HTTP as curl speaks it, with nginx behind: every body byte for byte.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_e2e::{Nghttpd, Nginx, Place, Sidecars, Spoken, run, tool};

/// A large file's bytes, none of which look like their neighbours.
const LARGE: u32 = 8_000_000;

struct Site {
    _servers: [Nginx; 2],
    ways: Vec<Sidecars>,
    folder: tempfile::TempDir,
    _places: [Place; 2],
}

impl Site {
    #[track_caller]
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("files");
        fs::create_dir_all(root.join("up")).unwrap();
        fs::write(root.join("large"), (0..LARGE).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
        fs::write(root.join("small.txt"), "0123456789\n").unwrap();
        fs::write(root.join("parts.shtml"), "<!--#echo var=\"request_method\" --> in parts\n".repeat(3)).unwrap();
        // nginx's worker gives up root.
        let open = |path: &Path| run(tool("chmod").arg("-R").arg("a+rwX").arg(path)).unwrap();
        open(folder.path());
        let locations = format!(
            "root {root}; default_type text/html; client_max_body_size 64m;\n\
             location /up/ {{ dav_methods PUT DELETE; }}\n\
             location /refuses/ {{ client_max_body_size 10; dav_methods PUT; }}\n\
             location = /parts.shtml {{ ssi on; }}\n\
             location = /seen {{ return 200 '$request_method $server_protocol $http_host'; }}\n\
             location = /moved {{ return 301 /seen; }}\n",
            root = root.display()
        );
        let places = [Place::Here, Place::pods()];
        let mut ways = Vec::new();
        let servers = places.each_ref().map(|place| {
            let home = tempfile::tempdir_in(folder.path()).unwrap().keep();
            let start = || Nginx::start_with(&home, "", "client_body_buffer_size 64k;", &locations);
            let nginx = place.at_server(start);
            open(&home);
            ways.extend(place.ways(folder.path(), Spoken::HTTP, nginx.port));
            nginx
        });
        Self { _servers: servers, ways, folder, _places: places }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }

    /// Runs a test with curl for each way and each version of HTTP.
    fn each(&self, test: impl Fn(&dyn Fn(&[&str], &str) -> String)) {
        for way in &self.ways {
            for version in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
                // This nginx knows HTTP/1 only.
                if version == "--http2-prior-knowledge" && way.keeps_the_protocol() {
                    continue;
                }
                test(&|arguments, path| {
                    let mut curl = curl();
                    curl.arg(version).args(arguments).arg(format!("{}{path}", way.address()));
                    way.at_client(|| run(&mut curl)).unwrap()
                });
            }
        }
    }
}

fn curl() -> Command {
    let mut curl = tool("curl");
    curl.args(["-sS", "--max-time", "30"]);
    curl
}

fn sha256(path: &Path) -> String {
    let said = run(tool("sha256sum").arg(path)).unwrap();
    said.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn downloads_come_whole_in_every_version() {
    let site = Site::start();
    let back = site.folder.path().join("back");
    let expected = sha256(&site.file("large"));
    site.each(|curl| {
        curl(&["--fail", "-o", &back.display().to_string()], "/large");
        assert_eq!(sha256(&back), expected);
        // Without a length: in chunks, by the connection's end, or in frames.
        assert_eq!(curl(&["--fail"], "/parts.shtml"), "GET in parts\n".repeat(3));
        // Parts of files.
        assert_eq!(curl(&["--fail", "-r", "2-5"], "/small.txt"), "2345");
        assert_eq!(curl(&["-o", "/dev/null", "-w", "%{http_code}", "-r", "-3"], "/small.txt"), "206");
        assert_eq!(curl(&["-o", "/dev/null", "-w", "%{http_code}", "-r", "100-"], "/small.txt"), "416");
        // A head alone.
        let head = curl(&["--fail", "-I"], "/large").to_ascii_lowercase();
        assert!(head.contains(&format!("content-length: {}\r\n", LARGE * 4)), "{head}");
        assert_eq!(curl(&["-o", "/dev/null", "-w", "%{http_code}"], "/moved"), "301");
        assert_eq!(curl(&["-o", "/dev/null", "-w", "%{http_code}"], "/nothing"), "404");
    });
}

#[test]
fn uploads_arrive_whole_in_every_version() {
    let site = Site::start();
    let large = site.file("large");
    let expected = sha256(&large);
    let from = large.display().to_string();
    site.each(|curl| {
        let sent = curl(&["-T", &from, "-o", "/dev/null", "-w", "%{http_code} %{size_upload}"], "/up/whole");
        assert!(sent == format!("201 {}", LARGE * 4) || sent == format!("204 {}", LARGE * 4), "{sent}");
        assert_eq!(sha256(&site.file("up/whole")), expected);
        assert_eq!(curl(&["-X", "DELETE", "-o", "/dev/null", "-w", "%{http_code}"], "/up/whole"), "204");
    });
    for way in &site.ways {
        let mut chunked = curl();
        chunked
            .args(["--fail", "-H", "transfer-encoding: chunked", "-T", &from])
            .arg(format!("{}/up/chunked", way.address()));
        way.at_client(|| run(&mut chunked)).unwrap();
        assert_eq!(sha256(&site.file("up/chunked")), expected);
        let mut delete = curl();
        delete.args(["--fail", "-X", "DELETE"]).arg(format!("{}/up/chunked", way.address()));
        way.at_client(|| run(&mut delete)).unwrap();
    }
}

#[test]
fn a_client_that_waits_for_consent_is_given_it() {
    let site = Site::start();
    let from = site.file("large").display().to_string();
    for way in &site.ways {
        // Without `100 Continue` curl would wait longer than it may take.
        let waits = ["-v", "-H", "expect: 100-continue", "--expect100-timeout", "60", "-o", "/dev/null", "-T", &from];
        let ask = |path: &str| {
            let mut curl = curl();
            curl.args(waits).args(["-w", "%{http_code} %{size_upload}", "--stderr", "-"]);
            curl.arg(format!("{}{path}", way.address()));
            way.at_client(|| run(&mut curl)).unwrap()
        };
        let said = ask("/up/awaited");
        assert!(said.contains("HTTP/1.1 100") && said.contains(&format!("201 {}", LARGE * 4)), "{said}");
        let mut delete = curl();
        delete.args(["--fail", "-X", "DELETE"]).arg(format!("{}/up/awaited", way.address()));
        way.at_client(|| run(&mut delete)).unwrap();
        // Refused before a byte of the body was sent.
        let said = ask("/refuses/it");
        assert!(said.ends_with("413 0"), "{said}");
    }
}

#[test]
fn a_connection_is_kept_for_many_requests() {
    let site = Site::start();
    for way in &site.ways {
        // Of HTTP/1.1 only: this curl fails the second request on a connection of HTTP/2, whoever the server is.
        let mut many = curl();
        many.args(["--fail", "-w", "\\n%{num_connects}\\n"]);
        for _ in 0..5 {
            many.arg(format!("{}/seen", way.address()));
        }
        let said = way.at_client(|| run(&mut many)).unwrap();
        let connects: Vec<&str> = said.lines().skip(1).step_by(2).collect();
        assert_eq!(connects, ["1", "0", "0", "0", "0"], "{said}");
        let host = format!("GET HTTP/1.1 {}", way.at);
        assert_eq!(said.lines().step_by(2).filter(|line| *line == host).count(), 5, "{said}");
        // Between the sidecars and to nginx, connections are kept, too.
        for (outrigger, cluster) in way.each() {
            let series = format!("outrigger_upstream_connections_total{{cluster=\"{cluster}\",result=\"ok\"}}");
            outrigger.counts(&series, 1.0);
        }
    }
}

#[test]
fn trailers_reach_every_client() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("htdocs");
    fs::create_dir(&pages).unwrap();
    fs::write(pages.join("page"), "a page\n").unwrap();
    for place in [Place::Here, Place::pods()] {
        let nghttpd = place.at_server(|| Nghttpd::start(folder.path(), &["--trailer", "x-sum: 42"]));
        // Between pods the client's own choice is enough.
        let spoken = if matches!(place, Place::Here) { Spoken::HTTP2 } else { Spoken::HTTP };
        for way in place.ways(folder.path(), spoken, nghttpd.port) {
            let page = format!("{}/page", way.address());
            let expect_trailer = |mut command: Command| {
                let said = way.at_client(|| run(&mut command)).unwrap();
                let (body, trailer) = (said.find("a page\n"), said.find("x-sum: 42"));
                assert!(body.is_some() && trailer > body, "{said}");
            };
            // Of HTTP/2's trailers this curl says nothing, nghttp does.
            let mut nghttp = tool("nghttp");
            nghttp.args(["-v", &page]);
            expect_trailer(nghttp);
            if !way.keeps_the_protocol() {
                let mut curl = curl();
                curl.args(["--fail", "--http1.1", "-D", "-", &page]);
                expect_trailer(curl);
            }
        }
    }
}
