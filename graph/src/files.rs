//! The files of a base folder, by the names that exporters and model hubs give them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The one file of a model, or its encoder's and its decoder's.
pub(crate) fn model_files(folder: &Path) -> Option<Vec<PathBuf>> {
    if let Some(path) = find(folder, &["model.onnx", "onnx/model.onnx"]) {
        return Some(vec![path]);
    }
    ["", "onnx"].into_iter().find_map(|within| {
        let folder = folder.join(within);
        let decoders = ["decoder_model.onnx", "decoder_model_merged.onnx"];
        let decoder = find(&folder, &decoders)?;
        let encoder = find(&folder, &["encoder_model.onnx"]);
        Some(encoder.into_iter().chain([decoder]).collect())
    })
}

/// What to do with models of other names in `folder`; empty where there are none.
pub(crate) fn other_models(folder: &Path) -> String {
    let entries = [folder.to_owned(), folder.join("onnx")].map(fs::read_dir);
    let entries = entries.into_iter().flatten().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut names: Vec<String> = paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "onnx")
        })
        .filter_map(|path| Some(path.strip_prefix(folder).ok()?.display().to_string()))
        .collect();
    names.sort_unstable();
    match names.is_empty() {
        true => String::new(),
        false => format!(", or copy one of {} as model.onnx", names.join(", ")),
    }
}

/// The first of `names` that is a file in `folder`.
pub(crate) fn find(folder: &Path, names: &[&str]) -> Option<PathBuf> {
    let mut paths = names.iter().map(|name| folder.join(name));
    paths.find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_found_as_they_are_published() {
        let table: &[(&[&str], &[&str])] = &[
            (&["model.onnx", "onnx/model.onnx"], &["model.onnx"]),
            (
                &["onnx/model.onnx", "onnx/model_fp16.onnx"],
                &["onnx/model.onnx"],
            ),
            (
                &["onnx/encoder_model.onnx", "onnx/decoder_model.onnx"],
                &["onnx/encoder_model.onnx", "onnx/decoder_model.onnx"],
            ),
            (
                &["encoder_model.onnx", "decoder_model_merged.onnx"],
                &["encoder_model.onnx", "decoder_model_merged.onnx"],
            ),
            (
                &["onnx/decoder_model_merged.onnx"],
                &["onnx/decoder_model_merged.onnx"],
            ),
            (&["onnx/model_quantized.onnx"], &[]),
        ];
        for (files, expected) in table {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("onnx")).unwrap();
            for file in *files {
                fs::write(folder.path().join(file), []).unwrap();
            }
            let found = model_files(folder.path()).unwrap_or_default();
            let expected: Vec<PathBuf> = expected
                .iter()
                .map(|name| folder.path().join(name))
                .collect();
            assert_eq!(found, expected, "{files:?}");
            if found.is_empty() {
                let error = crate::Base::open(folder.path()).unwrap_err().to_string();
                assert!(
                    error.contains("onnx/model_quantized.onnx as model.onnx"),
                    "{error}"
                );
            }
        }
    }
}
