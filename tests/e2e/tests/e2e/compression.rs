//! Compressed bodies as curl asks for them and unpacks them, with nginx behind: byte for byte, over both versions of HTTP.

use std::fs;

use outrigger_e2e::{Nginx, free_port, run, start_outrigger, tool};

#[test]
fn curl_unpacks_what_nginx_sent_plain() {
    let folder = tempfile::tempdir().unwrap();
    let (home, root) = (folder.path().join("nginx"), folder.path().join("files"));
    [&home, &root].iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
    let page: String = (0..40_000).map(|number| format!("<li>article {number}</li>\n")).collect();
    fs::write(root.join("page.html"), &page).unwrap();
    fs::create_dir(root.join("up")).unwrap();
    fs::write(root.join("logo.png"), vec![7; 20_000]).unwrap();
    // nginx's worker gives up root.
    run(tool("chmod").arg("-R").arg("a+rwX").arg(folder.path())).unwrap();
    let locations = format!(
        "root {root}; types {{ text/html html; image/png png; }}\n\
         location /zipped/ {{ alias {root}/; gzip on; gzip_types text/html; gzip_proxied any; gzip_http_version 1.0; }}\n\
         location /up/ {{ dav_methods PUT; }}\n",
        root = root.display()
    );
    let nginx = Nginx::start(&home, &locations);
    let port = free_port();
    let proxy = start_outrigger(
        folder.path(),
        &format!(
            "proxy:\n  listeners:\n    - name: in\n      direction: inbound\n      address: 127.0.0.1:{port}\n      routes:\n        \
             - name: all\n          filters:\n            - {{ type: Compressor, compressor: {{}} }}\n            \
             - {{ type: Decompressor, decompressor: {{}} }}\n          backendRefs: [{{ name: app }}]\n  \
             clusters:\n    - {{ name: app, endpoints: [\"127.0.0.1:{}\"] }}\n",
            nginx.port
        ),
    );
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let body = folder.path().join("body");
    let curl = |arguments: &[&str], path: &str| {
        let head = folder.path().join("head");
        let outcome = run(tool("curl")
            .args(["-sS", "--max-time", "20", "-w", "%{size_download}", "-D"])
            .arg(&head)
            .arg("-o")
            .arg(&body)
            .args(arguments)
            .arg(url(path)));
        (fs::read_to_string(&head).unwrap().to_lowercase(), outcome.unwrap().trim().parse::<usize>().unwrap())
    };
    for http in ["--http1.1", "--http2-prior-knowledge"] {
        for coding in ["gzip", "br", "zstd"] {
            let accepts = format!("accept-encoding: {coding}");
            let (head, sent) = curl(&[http, "--compressed", "-H", &accepts], "/page.html");
            assert!(head.contains(&format!("content-encoding: {coding}\r\n")), "{http}: {head}");
            assert!(head.contains("etag: w/") && head.contains("vary: accept-encoding\r\n"), "{head}");
            assert!(fs::read_to_string(&body).unwrap() == page, "{http} {coding}: the page is another one");
            assert!(sent < page.len() / 4, "{http} {coding}: {sent} of {}", page.len());
        }
        // The weak tag is good enough to ask whether anything is new.
        let (head, _) = curl(&[http, "--compressed"], "/page.html");
        let tag = head.lines().find_map(|line| line.strip_prefix("etag: w/")).unwrap().trim().to_owned();
        let (head, _) = curl(&[http, "--compressed", "-H", &format!("if-none-match: W/{tag}")], "/page.html");
        assert!(head.contains(" 304"), "{head}");
        for (name, arguments, path) in [
            ("what does not ask", &["-H", "accept:"][..], "/page.html"),
            ("an image", &["--compressed"], "/logo.png"),
            ("a part", &["--compressed", "-r", "0-9"], "/page.html"),
        ] {
            let (head, _) = curl(&[&[http], arguments].concat(), path);
            assert!(!head.contains("content-encoding"), "{http} {name}: {head}");
        }
        // What nginx has compressed is not compressed again.
        let (head, _) = curl(&[http, "--compressed", "-H", "accept-encoding: gzip, br"], "/zipped/page.html");
        assert!(head.contains("content-encoding: gzip\r\n") && fs::read_to_string(&body).unwrap() == page, "{head}");
        // A request that gzip has packed arrives without.
        let packed = folder.path().join("packed.gz");
        fs::write(folder.path().join("packed"), "a=1&".repeat(500)).unwrap();
        run(tool("gzip").args(["-k", "-f"]).arg(folder.path().join("packed"))).unwrap();
        let packed = packed.to_str().unwrap();
        let (head, _) = curl(&[http, "-T", packed, "-H", "content-encoding: gzip"], "/up/file");
        assert!(head.contains(" 201") || head.contains(" 204"), "{head}");
        assert_eq!(fs::read_to_string(root.join("up/file")).unwrap(), "a=1&".repeat(500));
        let (head, _) = curl(&[http, "-T", packed, "-H", "content-encoding: compress"], "/up/file");
        assert!(head.contains(" 415") && head.contains("accept-encoding: gzip, br, zstd\r\n"), "{head}");
    }
    let series = r#"outrigger_coded_bodies_total{listener="in",route="all",work="compress-response",coding="zstd"}"#;
    proxy.counts_at_least(series, 2.0);
}
