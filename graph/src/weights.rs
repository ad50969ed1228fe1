//! Where a model's large tensors lie: in their files, which an engine maps, and never in memory beside them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use prost::Message;

use crate::{
    Error,
    onnx::{ModelProto, TensorProto},
};

/// Bytes from which a tensor that lies in the model file is left there.
const LARGE: usize = 64 << 10;

/// Makes every large tensor of `model`, decoded from `files`, a reference into the file that holds it: one of those or one
/// beside them. Links are followed, as model hubs keep their files behind them.
///
/// Returns the model, which holds nothing of `files` any more, and the folder in which the references are.
///
/// # Errors
/// When a file is missing.
pub(crate) fn leave_in_files(
    mut model: ModelProto,
    files: &[(Bytes, PathBuf)],
) -> Result<(ModelProto, PathBuf), Error> {
    let path = files.first().map_or(Path::new(""), |(_, path)| path);
    let beside = path.parent().unwrap_or(Path::new(""));
    let own = files.iter().map(|(_, path)| canonical(path));
    let own = own.collect::<Result<Vec<_>, _>>()?;
    let mut places: Vec<PathBuf> = Vec::new();
    for tensor in tensors(&mut model) {
        if tensor.is_external() {
            places.push(canonical(&tensor.external_path(beside)?)?);
            continue;
        }
        let mut files = files.iter().zip(&own);
        let found = files.find_map(|((file, _), own)| Some((own, range(tensor, file)?)));
        if let Some((own, (offset, length))) = found {
            tensor.refer(&[("offset", offset), ("length", length)]);
            places.push(own.clone());
        }
    }
    let first = own.first().and_then(|own| own.parent());
    let mut folder = first.unwrap_or(Path::new("/"));
    while let Some(outside) = folder.parent() {
        if places.iter().all(|place| place.starts_with(folder)) {
            break;
        }
        folder = outside;
    }
    let external = tensors(&mut model).filter(|tensor| tensor.is_external());
    for (tensor, place) in external.zip(&places) {
        tensor.relocate(place.strip_prefix(folder).unwrap_or(place))?;
    }
    let small = Bytes::from(model.encode_to_vec());
    let model = ModelProto::decode(small).map_err(|source| Error::Decode {
        path: path.into(),
        source,
    })?;
    Ok((model, folder.to_owned()))
}

fn canonical(path: &Path) -> Result<PathBuf, Error> {
    fs::canonicalize(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })
}

/// The initializers, and the tensors in attributes, which `Constant` nodes hold.
fn tensors(model: &mut ModelProto) -> impl Iterator<Item = &mut TensorProto> {
    let graph = model.graph.get_or_insert_default();
    let attributes = graph.node.iter_mut().flat_map(|node| &mut node.attribute);
    let constants = attributes.filter_map(|attribute| attribute.t.as_mut());
    graph.initializer.iter_mut().chain(constants)
}

/// Where a large tensor's bytes lie in the file that they are a slice of, and how many they are.
fn range(tensor: &TensorProto, file: &Bytes) -> Option<(usize, usize)> {
    let raw = tensor.raw_data.as_ref().filter(|raw| raw.len() >= LARGE)?;
    let offset = (raw.as_ptr() as usize).checked_sub(file.as_ptr() as usize)?;
    (offset.checked_add(raw.len())? <= file.len()).then_some((offset, raw.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{GraphProto, data_type};

    fn floats(name: &str, count: usize) -> TensorProto {
        let values: Vec<f32> = (0..count).map(|index| index as f32).collect();
        TensorProto::of_floats(name, &[count as i64], &values)
    }

    /// A model with a small and two large tensors, the last in a file of its own.
    fn model(folder: &Path) -> ModelProto {
        let mut beside = floats("beside", 3 * LARGE);
        fs::write(folder.join("data"), beside.raw_data.take().unwrap()).unwrap();
        beside.refer(&[("offset", 4), ("length", LARGE)]);
        beside.relocate(Path::new("data")).unwrap();
        beside.dims = vec![LARGE as i64 / 4];
        let graph = GraphProto {
            initializer: vec![floats("small", 3), floats("large", LARGE), beside],
            ..GraphProto::default()
        };
        ModelProto {
            graph: Some(graph),
            ..ModelProto::default()
        }
    }

    fn open(path: &Path) -> (ModelProto, PathBuf) {
        let file = Bytes::from(fs::read(path).unwrap());
        let model = ModelProto::decode(file.clone()).unwrap();
        leave_in_files(model, &[(file, path.to_owned())]).unwrap()
    }

    fn read(opened: (ModelProto, PathBuf)) -> Vec<(bool, Bytes)> {
        let (model, folder) = opened;
        let tensors = model.graph.unwrap().initializer;
        let bytes = tensors.iter().map(|tensor| tensor.little_endian(&folder));
        let external = tensors.iter().map(TensorProto::is_external);
        external.zip(bytes.map(Result::unwrap)).collect()
    }

    #[test]
    fn large_tensors_are_references_and_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let model = model(folder.path());
        let before = model.graph.as_ref().unwrap().initializer.iter();
        let before = before.map(|tensor| tensor.little_endian(folder.path()).unwrap());
        let before: Vec<Bytes> = before.collect();
        let path = folder.path().join("model.onnx");
        fs::write(&path, model.encode_to_vec()).unwrap();
        let after = read(open(&path));
        let external: Vec<bool> = after.iter().map(|(external, _)| *external).collect();
        assert_eq!(external, [false, true, true]);
        assert!(
            after
                .iter()
                .zip(&before)
                .all(|((_, after), before)| after == before)
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_to_a_common_folder() {
        let hub = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (hub.path().join("blobs"), hub.path().join("snapshots/1"));
        fs::create_dir_all(blobs.join("deep")).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        let model = model(&blobs);
        fs::write(blobs.join("deep/a1"), model.encode_to_vec()).unwrap();
        fs::rename(blobs.join("data"), blobs.join("b2")).unwrap();
        let link = std::os::unix::fs::symlink::<&str, PathBuf>;
        link("../../blobs/deep/a1", snapshot.join("model.onnx")).unwrap();
        link("../../blobs/b2", snapshot.join("data")).unwrap();
        let (model, folder) = open(&snapshot.join("model.onnx"));
        assert_eq!(folder, fs::canonicalize(&blobs).unwrap());
        let element = model.graph.as_ref().unwrap().initializer[2].data_type();
        assert_eq!(element, data_type::FLOAT);
        assert_eq!(read((model, folder))[2].1[..4], 1f32.to_le_bytes());
    }
}
