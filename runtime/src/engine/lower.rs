//! Lowering a graph to a program with packed weights: what the compiler asks of tract.

use std::collections::{HashMap, HashSet};

use preface_graph::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, attribute_type,
    data_type,
};
use prost::Message;
use tract_core::internal::*;
use tract_linalg::{
    mmm::{EagerPackedInput, MMMInputFormat},
    pack::PackedFormat,
};
use tract_onnx::prelude::Framework;

use super::{
    failed,
    program::{Packing, Program},
};
use crate::{
    Error, Weights,
    image::{Packed, Span},
};

/// Initializers smaller than this stay in the program.
const WEIGHT_BYTES: usize = 4096;
/// `AttributeProto.AttributeType.TENSOR`.
const TENSOR_ATTRIBUTE: i32 = 4;

/// A graph whose weights have become inputs, ready to be packed one by one.
pub(crate) struct Lowered {
    bytes: Vec<u8>,
    program: Program,
    packings: Vec<Packing>,
    weights: HashMap<String, TensorProto>,
}

impl Lowered {
    /// Takes the weights out of `model`, whose other inputs are `inputs`.
    ///
    /// A tensor that something other than a kernel reads stays in the program; so does a small one.
    pub fn new(mut model: ModelProto, inputs: &HashSet<&str>) -> Result<Self, Error> {
        model.metadata_props.clear();
        let graph = model.graph.get_or_insert_default();
        drop_unread(graph);
        spell_out_zeros(graph);
        strip(graph);
        let mut weights = take_candidates(graph);
        loop {
            let (bytes, program) =
                optimised(&model, &weights, inputs).map_err(failed("optimising the graph"))?;
            let unpacked: Vec<String> = program.unpacked().into_iter().map(str::to_owned).collect();
            if unpacked.is_empty() {
                let packings = program.packings();
                unique(&packings)?;
                return Ok(Self {
                    bytes,
                    program,
                    packings,
                    weights,
                });
            }
            let back = unpacked.iter().filter_map(|name| weights.remove(name));
            model.graph.get_or_insert_default().initializer.extend(back);
        }
    }

    /// The program, as an image stores it.
    pub fn program(&self) -> &[u8] {
        &self.bytes
    }

    /// The number of packed weights.
    pub fn len(&self) -> usize {
        self.packings.len()
    }

    /// Packs every weight and hands its panels to `store`, which says where it put them.
    pub fn pack(
        &self,
        mut store: impl FnMut(&[u8]) -> Result<Span, Error>,
    ) -> Result<Vec<Packed>, Error> {
        let packings = self.packings.iter();
        let packed = packings.map(|packing| {
            let value = self.value(packing).map_err(failed("packing a weight"))?;
            let span = store(&panels(packing, &value))?;
            Ok(record(packing, value.panel_bytes, span))
        });
        packed.collect()
    }

    /// The panels of one weight.
    fn value(&self, packing: &Packing) -> TractResult<EagerPackedInput> {
        let model = &self.program.model;
        let chain = self
            .program
            .chain(packing.node)
            .context("a packing hangs off a weight")?;
        let (&weight, between) = chain
            .split_first()
            .context("a chain begins with its weight")?;
        let mut value = tensor(&self.weights[&model.node(weight).name])?;
        for &node in between {
            let outputs = model
                .node(node)
                .op
                .eval(&EvalContext::out_of_plan(), tvec!(value.into_tvalue()))?;
            value = outputs
                .into_iter()
                .next()
                .context("an operation without output")?
                .into_tensor();
        }
        let (k_axis, mn_axis) = axes(model, packing.node)?;
        let packed = packing.format.prepare_one(&value, k_axis, mn_axis)?;
        packed
            .downcast_ref()
            .cloned()
            .context("packed into something other than panels")
    }
}

/// Removes initializers that no node reads.
fn drop_unread(graph: &mut GraphProto) {
    let mut read: HashSet<String> = graph
        .output
        .iter()
        .map(|output| output.name().to_owned())
        .collect();
    collect_read(graph, &mut read);
    graph
        .initializer
        .retain(|tensor| read.contains(tensor.name()));
}

fn collect_read(graph: &GraphProto, read: &mut HashSet<String>) {
    for node in &graph.node {
        read.extend(node.input.iter().cloned());
        let inner = node
            .attribute
            .iter()
            .filter_map(|attribute| attribute.g.as_ref());
        inner.for_each(|graph| collect_read(graph, read));
    }
}

/// Removes what no engine reads: notes of exporters, and shapes that the optimiser finds itself.
fn strip(graph: &mut GraphProto) {
    graph.value_info.clear();
    graph.metadata_props.clear();
    for node in &mut graph.node {
        node.doc_string = None;
        node.metadata_props.clear();
    }
}

/// Writes out the value of `ConstantOfShape` where it is left out: a 32-bit float zero in ONNX, a 64-bit one in tract.
pub(super) fn spell_out_zeros(graph: &mut GraphProto) {
    let implied = |node: &&mut NodeProto| {
        node.operator() == "ConstantOfShape" && node.attribute("value").is_none()
    };
    for node in graph.node.iter_mut().filter(implied) {
        node.attribute.push(AttributeProto {
            name: Some("value".into()),
            r#type: Some(TENSOR_ATTRIBUTE),
            t: Some(TensorProto::of_floats("", &[1], &[0.0])),
            ..AttributeProto::default()
        });
    }
}

/// Lets every CumSum of integers add floats; `data_type` is that of a value.
pub(crate) fn sum_in_floats(graph: &mut GraphProto, data_type: impl Fn(&str) -> Option<i32>) {
    for node in std::mem::take(&mut graph.node) {
        let integers = [data_type::INT32, data_type::INT64];
        let found = data_type(&node.output[0]).filter(|found| integers.contains(found));
        match found.filter(|_| node.op_type() == "CumSum") {
            Some(found) => graph.node.extend(in_floats(node, found)),
            None => graph.node.push(node),
        }
    }
}

/// A CumSum that adds floats, between casts from and to `data_type`: of integers tract adds only symbols.
pub(super) fn in_floats(mut sums: NodeProto, data_type: i32) -> [NodeProto; 3] {
    let cast = |input: &str, output: &str, to: i32| NodeProto {
        op_type: Some("Cast".into()),
        input: vec![input.to_owned()],
        output: vec![output.to_owned()],
        attribute: vec![AttributeProto {
            name: Some("to".into()),
            r#type: Some(attribute_type::INT),
            i: Some(to.into()),
            ..AttributeProto::default()
        }],
        ..NodeProto::default()
    };
    let [from, to] = ["summands", "sums"].map(|part| format!("{}.{part}", sums.output[0]));
    let before = cast(&sums.input[0], &from, data_type::FLOAT);
    let after = cast(&to, &sums.output[0], data_type);
    sums.input[0] = from;
    sums.output[0] = to;
    [before, sums, after]
}

/// Takes out the initializers that could be weights of a product.
fn take_candidates(graph: &mut GraphProto) -> HashMap<String, TensorProto> {
    let candidate = |tensor: &TensorProto| {
        let floats = tensor.data_type() == data_type::FLOAT && !tensor.is_external();
        floats && tensor.dims.len() >= 2 && tensor.elements() * size_of::<f32>() >= WEIGHT_BYTES
    };
    let (weights, kept) = std::mem::take(&mut graph.initializer)
        .into_iter()
        .partition(candidate);
    graph.initializer = kept;
    let named = |tensor: TensorProto| (tensor.name().to_owned(), tensor);
    let weights: HashMap<_, _> = Vec::into_iter(weights).map(named).collect();
    graph
        .input
        .retain(|input| !weights.contains_key(input.name()));
    weights
}

/// The program with `weights` as inputs: its bytes, and optimised.
fn optimised(
    model: &ModelProto,
    weights: &HashMap<String, TensorProto>,
    inputs: &HashSet<&str>,
) -> TractResult<(Vec<u8>, Program)> {
    let mut program = model.clone();
    let mut sorted: Vec<&TensorProto> = weights.values().collect();
    sorted.sort_by_key(|tensor| tensor.name());
    let graph = program.graph.get_or_insert_default();
    graph.input.extend(sorted.into_iter().map(|tensor| {
        let dims: Vec<String> = tensor.dims.iter().map(i64::to_string).collect();
        let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
        ValueInfoProto::tensor(tensor.name(), data_type::FLOAT, &dims)
    }));
    let bytes = program.encode_to_vec();
    let onnx = tract_onnx::onnx().proto_model_for_read(&mut &*bytes)?;
    Ok((bytes, Program::optimise(&onnx, inputs)?))
}

fn unique(packings: &[Packing]) -> Result<(), Error> {
    let mut names = HashSet::new();
    match packings.iter().find(|packing| !names.insert(&packing.name)) {
        None => Ok(()),
        Some(packing) => Err(Error::Compile {
            reason: format!("two products are both called {}", packing.name),
        }),
    }
}

fn tensor(weight: &TensorProto) -> TractResult<Tensor> {
    let numbers = weight.floats(std::path::Path::new(""))?;
    let shape: Vec<usize> = weight.dims.iter().map(|&dim| dim.max(0) as usize).collect();
    Tensor::from_shape(&shape, &numbers)
}

/// Which axes of its input the packing at `node` sums over and keeps.
fn axes(model: &TypedModel, node: usize) -> TractResult<(usize, usize)> {
    let (inputs, outputs) = model.node_facts(node)?;
    let mapping = model.node(node).op.axes_mapping(&inputs, &outputs)?;
    let axis = |name: char| -> TractResult<usize> {
        let axis = mapping.axis(name)?;
        axis.inputs[0]
            .first()
            .copied()
            .with_context(|| format!("a packing without axis {name}"))
    };
    Ok((axis('K')?, axis('M')?))
}

/// The panels with zeros in every place that packing left undefined.
fn panels(packing: &Packing, value: &EagerPackedInput) -> Vec<u8> {
    let defined = packing.k * packing.format.r * size_of::<f32>();
    let packed = value.packed.as_bytes();
    let mut bytes = vec![0; packed.len()];
    let panels = bytes.chunks_exact_mut(value.panel_bytes);
    for (panel, packed) in panels.zip(packed.chunks_exact(value.panel_bytes)) {
        panel[..defined].copy_from_slice(&packed[..defined]);
    }
    bytes
}

fn record(packing: &Packing, panel_bytes: usize, span: Span) -> Packed {
    let PackedFormat {
        r,
        alignment_bytes,
        end_padding_record,
        ..
    } = packing.format;
    Packed {
        name: packing.name.clone(),
        kernels: packing.kernels.clone(),
        dtype: Weights::F32,
        r,
        alignment: alignment_bytes,
        end_padding: end_padding_record,
        k: packing.k,
        mn: packing.mn,
        panel_bytes,
        span,
    }
}
