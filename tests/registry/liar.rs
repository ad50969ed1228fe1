//! A registry that answers something else than it is asked for.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use preface_bundle::Id;
use serde_json::{Value, json};

use crate::{BUNDLE_TYPE, bundles::Scene, run};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// More than the program, the system and its buffers can have taken in of a body that it refuses.
const TAKEN_BYTES: u64 = 48 << 20;

/// What an answer is.
#[derive(Clone)]
struct Page {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Sized(Vec<u8>),
    /// Goes on until nobody reads it.
    Endless,
}

impl Page {
    fn of(kind: &str, body: Vec<u8>) -> Self {
        Self {
            status: "200 OK",
            headers: vec![("Content-Type", kind.to_owned())],
            body: Body::Sized(body),
        }
    }
}

struct Liar {
    address: String,
    sent: Arc<AtomicU64>,
}

impl Liar {
    fn open(manifest: Page, blob: Page) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let sent = Arc::new(AtomicU64::new(0));
        let count = sent.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (manifest, blob, count) = (manifest.clone(), blob.clone(), count.clone());
                thread::spawn(move || answer(stream, &manifest, &blob, &count));
            }
        });
        Self { address, sent }
    }
}

/// Answers one request; who goes away before the end is no failure.
fn answer(mut stream: TcpStream, manifest: &Page, blob: &Page, sent: &AtomicU64) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    while !lines.next()?.ok()?.is_empty() {}
    let page = match request {
        request if request.contains("/manifests/") => manifest.clone(),
        request if request.contains("/blobs/") => blob.clone(),
        _ => Page::of("text/plain", Vec::new()),
    };
    let mut head = format!("HTTP/1.1 {}\r\nConnection: close\r\n", page.status);
    for (name, value) in &page.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if let Body::Sized(body) = &page.body {
        if !head.contains("Content-Length") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(b"\r\n").ok()?;
        return stream.write_all(body).ok();
    }
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(b"\r\n").ok()?;
    loop {
        stream.write_all(&[b' '; 1 << 16]).ok()?;
        sent.fetch_add(1 << 16, Ordering::SeqCst);
    }
}

/// A port at which nobody listens.
pub fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn manifest(bundle: &[u8]) -> Value {
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": "application/vnd.preface.fleet.v1",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": format!("sha256:{}", Id::of(b"{}")), "size": 2},
        "layers": [{
            "mediaType": BUNDLE_TYPE, "digest": format!("sha256:{}", Id::of(bundle)), "size": bundle.len(),
            "annotations": {"vnd.preface.task": "intent"},
        }],
    })
}

fn page(manifest: &Value) -> Page {
    Page::of(MANIFEST_TYPE, manifest.to_string().into_bytes())
}

/// What a lie is: what it is called, the answers, exit code, and a part of what is said.
type Lie = (&'static str, Page, Page, i32, &'static str);

fn changed(honest: &Value, at: &str, value: Value) -> Page {
    let mut lie = honest.clone();
    *lie.pointer_mut(at).unwrap() = value;
    page(&lie)
}

fn lies_about_manifests(honest: &Value, blob: &Page) -> Vec<Lie> {
    let good = page(honest);
    let with = |name: &'static str, value: &str| {
        let mut page = good.clone();
        page.headers.push((name, value.to_owned()));
        page
    };
    let layer = |field: &str, value: Value| changed(honest, &format!("/layers/0/{field}"), value);
    let redirect = |to: &str| Page {
        status: "307 Temporary Redirect",
        headers: vec![("Location", to.to_owned())],
        body: Body::Sized(Vec::new()),
    };
    let html = Page::of("text/html", b"<p>log in</p>".to_vec());
    let many = vec![honest["layers"][0].clone(); 65];
    let endless = Page {
        body: Body::Endless,
        ..good.clone()
    };
    let failing = Page {
        status: "500 Internal Server Error",
        ..endless.clone()
    };
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let zeros = format!("sha256:{}", "0".repeat(64));
    let sha512 = format!("sha512:{}", "0".repeat(128));
    let pages = [
        ("an endless manifest", endless, 1, "more than 262144 bytes"),
        ("an endless complaint", failing, 2, "it answers 500"),
        ("a page for people", html, 1, "media type text/html"),
        (
            "another digest in the header",
            with("Docker-Content-Digest", &zeros),
            1,
            "it was changed",
        ),
        (
            "not JSON",
            Page::of(MANIFEST_TYPE, b"{".to_vec()),
            1,
            "its manifest is not one",
        ),
        (
            "another artifact",
            changed(honest, "/artifactType", json!("application/x-\u{1b}[31m")),
            1,
            "artifact type application/x- [31m",
        ),
        (
            "a layer of an image",
            layer("mediaType", json!(docker)),
            1,
            docker,
        ),
        (
            "a layer that is too large",
            layer("size", json!(1u64 << 40)),
            1,
            "1099511627776 bytes",
        ),
        (
            "a layer below nothing",
            layer("size", json!(-1)),
            1,
            "-1 bytes",
        ),
        (
            "a layer of nothing",
            layer("size", json!(0)),
            1,
            "of 0 bytes",
        ),
        (
            "a layer by another hash",
            layer("digest", json!(sha512)),
            1,
            "which is not sha256",
        ),
        (
            "a path in place of a digest",
            layer("digest", json!("../../../v2")),
            1,
            "which is not sha256",
        ),
        (
            "too many layers",
            changed(honest, "/layers", json!(many)),
            1,
            "more than 64 files",
        ),
        (
            "no layer",
            changed(honest, "/layers", json!([])),
            2,
            "it has nothing",
        ),
        (
            "another place",
            redirect("https://elsewhere.example/v2/"),
            1,
            "sends on to https://elsewhere.example/v2/",
        ),
        (
            "nowhere",
            Page {
                headers: Vec::new(),
                ..redirect("")
            },
            1,
            "sends on to",
        ),
    ];
    pages
        .into_iter()
        .map(|(name, page, code, part)| (name, page, blob.clone(), code, part))
        .collect()
}

fn lies_about_blobs(honest: &Value, bundle: &[u8]) -> Vec<Lie> {
    let binary = |bytes: Vec<u8>| Page::of("application/octet-stream", bytes);
    let mut other = bundle.to_vec();
    other[100] ^= 1;
    let length = |bytes: Vec<u8>, length: usize| Page {
        headers: vec![("Content-Length", length.to_string())],
        ..binary(bytes)
    };
    let endless = Page {
        body: Body::Endless,
        ..binary(Vec::new())
    };
    let redirect = Page {
        status: "302 Found",
        headers: vec![("Location", "http://127.0.0.1:1/x".to_owned())],
        body: Body::Sized(Vec::new()),
    };
    let missing = Page {
        status: "404 Not Found",
        ..binary(b"{\"errors\":[{\"code\":\"BLOB_UNKNOWN\"}]}".to_vec())
    };
    let partial = Page {
        status: "206 Partial Content",
        ..binary(bundle.to_vec())
    };
    let pages = [
        ("other bytes", binary(other), 1, "it was changed"),
        ("an endless file", endless, 1, "the file has more bytes"),
        (
            "a longer file",
            binary([bundle, b"x"].concat()),
            1,
            "the file has",
        ),
        (
            "a shorter file",
            binary(bundle[..99].to_vec()),
            1,
            "the file has 99 bytes",
        ),
        (
            "a file that breaks off",
            length(bundle[..99].to_vec(), bundle.len()),
            2,
            "the file breaks off",
        ),
        (
            "a file elsewhere without TLS",
            redirect,
            1,
            "over https alone",
        ),
        ("no file", missing, 2, "BLOB_UNKNOWN"),
        ("a part of the file", partial, 2, "it answers 206"),
    ];
    pages
        .into_iter()
        .map(|(name, blob, code, part)| (name, page(honest), blob, code, part))
        .collect()
}

#[test]
fn a_registry_that_lies_is_refused_by_name_and_nothing_is_written() {
    let scene = Scene::new();
    let bundle = scene.bundle();
    let (honest, blob) = (
        manifest(&bundle),
        Page::of("application/octet-stream", bundle.clone()),
    );
    let pull = |liar: &Liar, name: &str| {
        let place = format!("{}/{name}", liar.address);
        run(&scene, &["pull", &place, "-o", "pulled"])
    };
    let truth = Liar::open(page(&honest), blob.clone());
    let digest = format!("sha256:{}", Id::of(honest.to_string().as_bytes()));
    for name in ["intent:1".to_owned(), format!("intent@{digest}")] {
        let (code, said, _) = pull(&truth, &name);
        assert_eq!(code, 0, "without a lie it is read: {said}");
    }
    let mut lies = lies_about_manifests(&honest, &blob);
    lies.extend(lies_about_blobs(&honest, &bundle));
    fs::write(scene.at("pulled"), b"as it was").unwrap();
    for (name, manifest, blob, expected, part) in lies {
        let liar = Liar::open(manifest, blob);
        let (code, said, report) = pull(&liar, "intent:1");
        assert_eq!(code, expected, "{name}: {said}");
        assert!(
            said.contains(part) && said.contains(&liar.address),
            "{name}: {said}"
        );
        assert!(!said.contains('\u{1b}'), "{name}: {said}");
        assert!(
            report["error"].as_str().unwrap().contains(part),
            "{name}: {report}"
        );
        assert_eq!(
            fs::read(scene.at("pulled")).unwrap(),
            b"as it was",
            "{name}"
        );
        let sent = liar.sent.load(Ordering::SeqCst);
        assert!(sent < TAKEN_BYTES, "{name}: {sent} bytes were taken");
    }
    let pinned = format!("intent@sha256:{}", "0".repeat(64));
    let (code, said, _) = pull(&truth, &pinned);
    assert!(code == 1 && said.contains("it was changed"), "{said}");
}
