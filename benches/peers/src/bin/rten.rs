//! rten: an ONNX file whose weights lie beside it, mapped; `--packed` lays them out at load.

use std::sync::Arc;

use peers::{Arguments, Failure};
use rten::{ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView};
use rten_tensor::NdTensor;

fn main() -> Result<(), Failure> {
    let arguments = Arguments::read()?;
    let mut options = ModelOptions::with_all_ops();
    options.prepack_weights(arguments.packed);
    // SAFETY: the benches write the model before they start this program and leave it alone while it runs.
    let model = unsafe { options.load_mmap(&arguments.model) }?;
    let threads = Arc::new(ThreadPool::with_num_threads(arguments.threads));
    let mut inputs: Vec<(NodeId, Value)> = Vec::new();
    for &id in model.input_ids() {
        let node = model
            .node_info(id)
            .and_then(|node| node.name().map(str::to_owned));
        let values = arguments.input(&node.ok_or("an input has no name")?);
        let values: Vec<i32> = values
            .into_iter()
            .map(i32::try_from)
            .collect::<Result<_, _>>()?;
        inputs.push((
            id,
            NdTensor::from_data([1, arguments.tokens], values).into(),
        ));
    }
    arguments.measure(|| {
        let feeds: Vec<(NodeId, ValueOrView)> = inputs
            .iter()
            .map(|(id, value)| (*id, value.as_view().into()))
            .collect();
        let run = RunOptions::default().with_thread_pool(Some(threads.clone()));
        model.run(feeds, model.output_ids(), Some(run))?;
        Ok(())
    })
}
