//! An installation of the executable under test, as a platform engineer makes it.
//!
//! Promise: it goes with its guard. There is one at a time: see `the_only_controllers`.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::process::{Output, Stdio};

use outrigger_e2e::{KubeNamespace, outrigger_command, outrigger_image};

/// Controllers in a namespace of the test's own. The webhook and the cluster's roles go with it.
pub(crate) struct Installation {
    pub(crate) home: KubeNamespace,
    values: tempfile::NamedTempFile,
}

impl Installation {
    pub(crate) fn new() -> Self {
        let home = KubeNamespace::new("pod-security.kubernetes.io/enforce: restricted");
        let values = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "namespace: {}\ncreateNamespace: false\nimage: \"{}\"\nimagePullPolicy: Never\nreplicas: 2\n",
            home.name,
            outrigger_image()
        );
        std::fs::write(values.path(), text).unwrap();
        let this = Self { home, values };
        this.home.apply(&this.printed("install"));
        this
    }

    pub(crate) fn outrigger(&self, arguments: &[&str]) -> Output {
        let mut command = outrigger_command();
        command.env("KUBECONFIG", self.home.kubeconfig()).args(arguments).arg("-f").arg(self.values.path());
        command.stdin(Stdio::null()).output().expect("the executable can be started")
    }

    /// Waits until all of it is well; the report.
    #[track_caller]
    pub(crate) fn checked(&self) -> String {
        let checked = self.outrigger(&["check", "--wait", "80s"]);
        let report = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert_eq!(checked.status.code(), Some(0), "{report}{}", String::from_utf8_lossy(&checked.stderr));
        report
    }

    fn printed(&self, verb: &str) -> String {
        let output = self.outrigger(&[verb]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn remove(&self) -> anyhow::Result<String> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), self.printed("uninstall"))?;
        let path = file.path().display().to_string();
        self.home.kubectl(&["delete", "--ignore-not-found", "--wait=false", "--filename", &path])
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        // Or pods of later tests would wait for controllers that have gone.
        if let Err(error) = self.remove() {
            eprintln!("the installation does not go: {error:#}");
        }
    }
}
