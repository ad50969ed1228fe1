//! What CUDA needs: its libraries, found in Python environments, and what to say where something is missing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ort::{
    ep::{self, ExecutionProvider, ExecutionProviderDispatch},
    util::preload_dylib,
};
use preface_graph::onnx::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type,
};

use super::{Array, Library, Place};
use crate::Error;

/// The PyPI package of an ONNX Runtime with CUDA.
const PACKAGE: &str = "onnxruntime-gpu";
/// The driver's library.
const DRIVER: &str = "libcuda";
/// Libraries of CUDA, each behind those that it depends on, and the PyPI package that has each for CUDA 13.
const LIBRARIES: &[(&str, &str)] = &[
    ("libcudart", "nvidia-cuda-runtime"),
    ("libnvrtc", "nvidia-cuda-nvrtc"),
    ("libcublasLt", "nvidia-cublas"),
    ("libcublas", "nvidia-cublas"),
    ("libcurand", "nvidia-curand"),
    ("libcufft", "nvidia-cufft"),
    ("libcudnn", "nvidia-cudnn-cu13"),
    ("libcudnn_graph", "nvidia-cudnn-cu13"),
    ("libcudnn_ops", "nvidia-cudnn-cu13"),
    ("libcudnn_heuristic", "nvidia-cudnn-cu13"),
    ("libcudnn_adv", "nvidia-cudnn-cu13"),
    ("libcudnn_cnn", "nvidia-cudnn-cu13"),
    ("libcudnn_engines_precompiled", "nvidia-cudnn-cu13"),
    ("libcudnn_engines_runtime_compiled", "nvidia-cudnn-cu13"),
];

/// A library of CUDA that may be wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaLibrary {
    /// Its name without a version.
    pub name: &'static str,
    /// The PyPI package that has it.
    pub package: &'static str,
    /// The files of it that were found, one for each version.
    pub files: Vec<PathBuf>,
}

/// The libraries of CUDA in the folders `nvidia/*/lib` of `packages`, each behind those that it depends on. The
/// packages are folders named `site-packages`.
pub fn cuda_libraries(packages: &[PathBuf]) -> Vec<CudaLibrary> {
    let vendors = packages
        .iter()
        .flat_map(|folder| entries(&folder.join("nvidia")));
    let mut files: Vec<PathBuf> = vendors
        .flat_map(|vendor| entries(&vendor.join("lib")))
        .collect();
    files.sort();
    files.dedup();
    let library = |&(name, package)| CudaLibrary {
        name,
        package,
        files: files
            .iter()
            .filter(|file| is_version_of(file, name))
            .cloned()
            .collect(),
    };
    LIBRARIES.iter().map(library).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Whether a file is called `NAME.so.VERSION`.
fn is_version_of(file: &Path, name: &str) -> bool {
    let found = file.file_name().and_then(|name| name.to_str());
    let version = found
        .and_then(|found| found.strip_prefix(name))
        .and_then(|rest| rest.strip_prefix(".so."));
    version.is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
}

/// Loads the libraries that were found, so that ONNX Runtime finds them wherever they lie.
pub(super) fn preload(libraries: &[CudaLibrary]) {
    for file in libraries.iter().flat_map(|library| &library.files) {
        // One that cannot be loaded is named by the loader once ONNX Runtime asks for it.
        let _ = preload_dylib(file);
    }
}

/// Whether the loaded library was built with CUDA.
pub(super) fn is_built_in() -> bool {
    ep::CUDA::is_available().unwrap_or(false)
}

/// The provider of a device: full 32-bit products, and no more memory than is asked for.
pub(super) fn provider(number: u16) -> ExecutionProviderDispatch {
    ep::CUDA::default()
        .with_device_id(i32::from(number))
        .with_tf32(false)
        .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested)
        .build()
        .error_on_failure()
}

/// Runs a small graph on `library`, so that what is missing shows before any work is done.
pub(super) fn trial(library: &Library) -> Result<(), Error> {
    let mut session = library.session(&small_model(), Path::new(""), 1)?;
    let ones = Array::floats(&[2, 2], vec![1.0; 4]);
    let found = session.run(&[("x", &ones)])?.into_iter().next();
    match found.map(Array::into_floats).transpose()?.as_deref() {
        Some([sum]) if (sum - 2.0).abs() < 1e-4 => Ok(()),
        other => Err(Error::Engine(format!(
            "a sum that should be 2 came out as {other:?}"
        ))),
    }
}

/// A product, a softmax and a sum: what uses cuBLAS and cuDNN.
fn small_model() -> ModelProto {
    let node = |operator: &str, inputs: &[&str], output: &str| NodeProto {
        op_type: Some(operator.into()),
        name: Some(output.into()),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("trial".into()),
        node: vec![
            node("MatMul", &["x", "weight"], "product"),
            node("Softmax", &["product"], "probabilities"),
            node("ReduceSum", &["probabilities"], "sum"),
        ],
        initializer: vec![TensorProto::of_floats("weight", &[2, 2], &[1.0; 4])],
        input: vec![ValueInfoProto::tensor("x", data_type::FLOAT, &["2", "2"])],
        output: vec![ValueInfoProto::untyped("sum")],
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto {
            version: Some(17),
            ..OperatorSetIdProto::default()
        }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

/// Why `place` cannot be used, and the way out.
pub(super) fn explained(place: Place, reason: &str) -> Error {
    let (reason, way_out) = match missing(reason) {
        Some(library) => (format!("{library} is missing"), remedy(library)),
        None => (
            last_part(reason).to_owned(),
            "look at nvidia-smi and preface doctor, or pass --device cpu".into(),
        ),
    };
    Error::Device {
        device: place.to_string(),
        reason,
        way_out,
    }
}

/// The error of a library without CUDA.
pub(super) fn not_built_in(place: Place) -> Error {
    Error::Device {
        device: place.to_string(),
        reason: "this libonnxruntime was built without CUDA".into(),
        way_out: format!(
            "install the PyPI package {PACKAGE} in place of onnxruntime, with {}; or pass --device cpu",
            packages()
        ),
    }
}

/// The shared library that a loader's message says is missing.
fn missing(message: &str) -> Option<&str> {
    let (before, _) = message.split_once(": cannot open shared object file")?;
    let name = before.rsplit([' ', '/', ':']).next()?;
    (!name.is_empty()).then_some(name)
}

fn remedy(library: &str) -> String {
    let stem = library.split(".so").next().unwrap_or(library);
    if stem == DRIVER {
        return "install NVIDIA's driver (580 or newer for CUDA 13), or pass --device cpu".into();
    }
    if stem.starts_with("libonnxruntime") {
        return format!(
            "it lies beside libonnxruntime.so in the PyPI package {PACKAGE}; or pass --device cpu"
        );
    }
    let known = LIBRARIES.iter().find(|(name, _)| *name == stem);
    match known {
        Some((_, package)) => format!(
            "install the PyPI package {package} into the Python environment of {PACKAGE} (it wants {}), or pass --device cpu",
            packages()
        ),
        None => "install it, or pass --device cpu".into(),
    }
}

/// The PyPI packages of all libraries.
fn packages() -> String {
    let mut packages: Vec<&str> = LIBRARIES.iter().map(|&(_, package)| package).collect();
    packages.dedup();
    packages.join(", ")
}

/// What stands behind the last of ONNX Runtime's own prefixes.
fn last_part(message: &str) -> &str {
    let behind = message.rsplit("ONNXRuntimeError] : ").next();
    behind.unwrap_or(message).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ONNX Runtime 1.31.1 says where a library of CUDA is missing.
    fn message(library: &str) -> String {
        format!(
            "onnxruntime: /onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2195 onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library /venv/lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: {library}: cannot open shared object file: No such file or directory "
        )
    }

    #[test]
    fn every_missing_library_names_its_package() {
        let cases = LIBRARIES
            .iter()
            .map(|&(name, package)| (format!("{name}.so.13"), package))
            .chain([
                ("libcuda.so.1".into(), "NVIDIA's driver"),
                ("libonnxruntime_providers_shared.so".into(), PACKAGE),
                ("libstrange.so.1".into(), "install it"),
            ]);
        for (library, remedy) in cases {
            let error = explained(Place::Cuda(0), &message(&library)).to_string();
            let missing = format!("cannot run on cuda:0: {library} is missing; ");
            assert!(error.starts_with(&missing), "{error}");
            assert!(error.contains(remedy), "{error}");
            assert!(error.contains("--device cpu"), "{error}");
        }
    }

    #[test]
    fn other_failures_are_told_without_prefixes() {
        let reason = "onnxruntime: /src/cuda_call.cc:129 [ONNXRuntimeError] : 1 : FAIL : CUDA failure 35: CUDA driver version is insufficient ";
        let error = explained(Place::Cuda(0), reason).to_string();
        assert_eq!(
            error,
            "cannot run on cuda:0: 1 : FAIL : CUDA failure 35: CUDA driver version is insufficient; look at nvidia-smi and preface doctor, or pass --device cpu"
        );
    }

    #[test]
    fn libraries_are_found_behind_those_that_they_depend_on() {
        let folder = tempfile::tempdir().unwrap();
        for file in [
            "nvidia/cu13/lib/libcublas.so.13",
            "nvidia/cu13/lib/libcublasLt.so.13",
            "nvidia/cu13/lib/libnvblas.so.13",
            "nvidia/cudnn/lib/libcudnn.so.9",
            "nvidia/cudnn/lib/libcudnn_ops.so.9",
            "nvidia/cudnn/lib/libcudnn.so",
            "nvidia/cudnn/include/cudnn.h",
        ] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let found = cuda_libraries(&[folder.path().to_owned(), "/nowhere".into()]);
        let names: Vec<String> = found
            .iter()
            .flat_map(|library| &library.files)
            .map(|file| file.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            names,
            [
                "libcublasLt.so.13",
                "libcublas.so.13",
                "libcudnn.so.9",
                "libcudnn_ops.so.9"
            ]
        );
        preload(&found);
    }
}
