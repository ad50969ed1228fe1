//! A folder with a base image, a key, a trust store and bundles of adapters, all made by the program.

use std::{
    path::Path,
    process::{Command, Output},
};

use preface_runtime::{Image, Trust};
use preface_trainer::adapter::Adapter;

/// The folder.
pub struct Scene(tempfile::TempDir);

impl Scene {
    /// Compiles the base in `folder`, its weights stored as `compile --weights` names it.
    pub fn new(folder: &Path, weights: &str) -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        let (image, keys) = (scene.at("x.base"), scene.at("keys"));
        let (public, trust) = (scene.at("keys/k.pub"), scene.at("trust"));
        let compile = ["compile", folder.to_str().unwrap(), "-o", &image];
        preface(&[&compile[..], &["--weights", weights]].concat());
        preface(&["keygen", "--no-passphrase", "-o", &keys, "--name", "k"]);
        preface(&["trust", "new", "-o", &trust, "--key", &public]);
        scene
    }

    /// The path of a file in it: `x.base` and `trust` are there.
    pub fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// The image, mapped.
    pub fn image(&self) -> Image {
        // SAFETY: nobody else knows the file.
        #[allow(unsafe_code)]
        let image = unsafe { Image::open(Path::new(&self.at("x.base"))) };
        image.unwrap()
    }

    /// The trust store.
    pub fn trust(&self) -> Trust {
        Trust::read(Path::new(&self.at("trust"))).unwrap()
    }

    /// Packs and signs an adapter, with more arguments of `pack`; returns the bundle's path.
    pub fn packed(&self, adapter: &Adapter, task: &str, more: &[&str]) -> String {
        let (folder, bundle) = (self.at("adapter"), self.at(task));
        adapter.write(Path::new(&folder)).unwrap();
        let key = self.at("keys/k.key");
        let pack = ["pack", &folder, "--task", task, "--sequence", "1"];
        preface(&[&pack[..], &["--key", &key, "-o", &bundle], more].concat());
        bundle
    }
}

/// Runs the program, which does as it is told.
pub fn preface(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_preface"))
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    output
}
