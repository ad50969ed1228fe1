//! Debian's docker-registry on a free port of loopback, with a folder of its own, and Debian's skopeo.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use base64ct::{Base64, Encoding};
use tempfile::TempDir;

pub const USER: &str = "fleet";
pub const PASSWORD: &str = "open sesame";
/// bcrypt of the password.
const HASH: &str = "$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW";

/// Whether a registry asks for a password, and speaks TLS.
#[derive(Clone, Copy, PartialEq)]
pub enum Doors {
    Open,
    Locked,
    /// Locked, and over TLS alone, with a certificate that an authority of its own has signed.
    Secure,
}

/// A registry that runs.
pub struct Hub {
    process: Child,
    address: String,
    folder: TempDir,
}

impl Hub {
    /// Starts it.
    pub fn open(doors: Doors) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {:?}}}}}\nhttp:\n  addr: 127.0.0.1:0\n",
            at("data")
        );
        if doors == Doors::Secure {
            certify(folder.path());
            let (certificate, key) = (at("hub.pem"), at("hub.key"));
            config += &format!("  tls: {{certificate: {certificate:?}, key: {key:?}}}\n");
        }
        if doors != Doors::Open {
            fs::write(at("users"), format!("{USER}:{HASH}\n")).unwrap();
            config += &format!(
                "auth: {{htpasswd: {{realm: fleet, path: {:?}}}}}\n",
                at("users")
            );
        }
        fs::write(at("config.yml"), config).unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(at("config.yml"))
            .env_clear()
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("docker-registry does not start: {error}; install Debian's package docker-registry"));
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let address = loop {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("docker-registry ended: {said}"))
                .unwrap();
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ',']).next().unwrap().to_owned();
            }
            said += &line;
        };
        // Whoever does not read lets it wait.
        thread::spawn(move || lines.for_each(drop));
        Self {
            process,
            address,
            folder,
        }
    }

    /// A place in it.
    pub fn place(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// The certificate of the authority behind it.
    pub fn authority(&self) -> String {
        self.folder.path().join("ca.pem").to_str().unwrap().into()
    }

    /// What `docker login` leaves.
    pub fn docker_config(&self) -> String {
        let auth = Base64::encode_string(format!("{USER}:{PASSWORD}").as_bytes());
        serde_json::json!({"auths": {&self.address: {"auth": auth}}}).to_string()
    }
}

/// Makes an authority, and a certificate of it for this address of loopback.
fn certify(folder: &Path) {
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        let output = command.args(arguments).current_dir(folder).output();
        let output = output.unwrap_or_else(|error| {
            panic!("openssl does not start: {error}; install Debian's package openssl")
        });
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    };
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let new = [&["req", "-x509", "-nodes", "-days", "2"][..], &curve].concat();
    let authority = [
        "-subj",
        "/CN=authority",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
    ];
    openssl(&[&new[..], &authority].concat());
    let signed = ["-CA", "ca.pem", "-CAkey", "ca.key"];
    let named = ["-subj", "/CN=hub", "-addext", "subjectAltName=IP:127.0.0.1"];
    let leaf = ["-addext", "basicConstraints=critical,CA:FALSE"];
    let files = ["-keyout", "hub.key", "-out", "hub.pem"];
    openssl(&[&new[..], &signed, &named, &leaf, &files].concat());
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What skopeo says.
pub fn skopeo(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("skopeo").args(arguments).output();
    let output = output.unwrap_or_else(|error| {
        panic!("skopeo does not start: {error}; install Debian's package skopeo")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    output.stdout
}
