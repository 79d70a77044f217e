//! Certificates made by `openssl`, so that ours are never judged by themselves.
//!
//! In: SPIFFE IDs and lifetimes. Out: PEM files. Promise: an authority per test; what
//! is expired, foreign or mismatched here really is.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::{run, tool};

/// A certificate authority in a folder.
#[derive(Debug, Clone)]
pub struct Authority {
    folder: PathBuf,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM (PKCS#8).
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority in `folder`.
    ///
    /// # Panics
    /// When openssl fails.
    pub fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("the test's folder can be written");
        let authority = Self { folder: folder.to_path_buf() };
        run(tool("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"])
            .args(["-subj", "/O=Outrigger tests", "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout"])
            .arg(folder.join("ca.key"))
            .arg("-out")
            .arg(authority.bundle()))
        .expect("openssl makes an authority");
        authority
    }

    /// The authority of a folder, made when there is none.
    ///
    /// # Panics
    /// When openssl fails.
    pub fn of(folder: &Path) -> Self {
        match folder.join("ca.pem").exists() {
            true => Self { folder: folder.to_path_buf() },
            false => Self::new(folder),
        }
    }

    /// A new revocation list with these, and all that were revoked before, on it.
    ///
    /// # Panics
    /// When openssl fails.
    pub fn revoke(&self, leaves: &[&Leaf]) -> PathBuf {
        let path = |name: &str| self.folder.join(name);
        if !path("index").exists() {
            let config = format!(
                "[ca]\ndefault_ca=d\n[d]\ndatabase={0}/index\ncrlnumber={0}/number\ndefault_md=sha256\n\
                 default_crl_days=1\ncrl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid\n",
                self.folder.display()
            );
            for (name, text) in [("index", ""), ("number", "01"), ("ca.cnf", &config)] {
                fs::write(path(name), text).expect("the test's folder can be written");
            }
        }
        let ca = || {
            let mut command = tool("openssl");
            command.args(["ca", "-config"]).arg(path("ca.cnf")).arg("-keyfile").arg(path("ca.key"));
            command.arg("-cert").arg(self.bundle());
            command
        };
        for leaf in leaves {
            run(ca().arg("-revoke").arg(&leaf.certificate)).expect("openssl revokes");
        }
        let list = path("new.crl");
        run(ca().args(["-gencrl", "-out"]).arg(&list)).expect("openssl makes a revocation list");
        list
    }

    /// The trust bundle, PEM.
    pub fn bundle(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Issues an X.509-SVID valid for a day.
    ///
    /// # Panics
    /// When openssl fails.
    pub fn issue(&self, name: &str, spiffe_id: &str) -> Leaf {
        self.issue_with(name, &format!("URI:{spiffe_id}"), &["-days", "1"])
    }

    /// Issues an ordinary server's certificate for 127.0.0.1 and a DNS name, valid for a day.
    ///
    /// # Panics
    /// When openssl fails.
    pub fn issue_server(&self, name: &str, dns: &str) -> Leaf {
        self.issue_with(name, &format!("IP:127.0.0.1,DNS:{dns}"), &["-days", "1"])
    }

    /// Issues an X.509-SVID that has expired.
    ///
    /// # Panics
    /// When openssl fails.
    pub fn issue_expired(&self, name: &str, spiffe_id: &str) -> Leaf {
        // openssl 3.0 takes no dates here, but a negative number of days.
        self.issue_with(name, &format!("URI:{spiffe_id}"), &["-days", "-1"])
    }

    fn issue_with(&self, name: &str, alternative_name: &str, lifetime: &[&str]) -> Leaf {
        let path = |suffix: &str| self.folder.join(format!("{name}{suffix}"));
        let leaf = Leaf { certificate: path(".pem"), key: path(".key") };
        run(tool("openssl")
            .args([
                "req",
                "-new",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-subj",
                "/O=SPIRE",
            ])
            .arg("-keyout")
            .arg(&leaf.key)
            .arg("-out")
            .arg(path(".csr")))
        .expect("openssl makes a key");
        let extensions = format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
             extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=critical,{alternative_name}\n"
        );
        fs::write(path(".ext"), extensions).expect("the test's folder can be written");
        run(tool("openssl")
            .args(["x509", "-req", "-in"])
            .arg(path(".csr"))
            .arg("-CA")
            .arg(self.bundle())
            .arg("-CAkey")
            .arg(self.folder.join("ca.key"))
            .args(["-CAcreateserial", "-extfile"])
            .arg(path(".ext"))
            .args(lifetime)
            .arg("-out")
            .arg(&leaf.certificate))
        .expect("openssl issues a certificate");
        leaf
    }
}
