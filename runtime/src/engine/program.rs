//! The program of an image: an ONNX graph whose weights are inputs, optimised as if they were there.
//!
//! Since the weights are inputs, every operation between a weight and a kernel, its packing last, is still a node
//! after optimisation. The compiler runs those nodes once and stores what comes out; the plan puts the stored panels
//! in their place. Both must see the same program, so both come through here.

use std::collections::HashSet;

use tract_core::{
    ops::matmul::{
        optimized::{OptMatMul, ProtoFusedSpec},
        pack::{DynPackedExoticFact, OptMatMulPack},
    },
    optim::{Optimizer, TypedPass},
};
use tract_linalg::{mmm::MMMInputFormat, pack::PackedFormat};
use tract_onnx::{
    pb::ModelProto,
    prelude::*,
    tract_core::internal::*,
    tract_hir::{infer::InferenceModelExt, tract_core},
};

/// An optimised program.
pub(super) struct Program {
    pub model: TypedModel,
    /// Nodes that stand for weights.
    pub weights: Vec<usize>,
}

/// A node that packs a weight for kernels, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packing {
    pub node: usize,
    pub name: String,
    pub kernels: Vec<String>,
    pub format: PackedFormat,
    pub k: usize,
    pub mn: usize,
    /// Dimensions of the packed tensor: ones only.
    pub batch: TVec<usize>,
}

impl Program {
    /// Parses and optimises `onnx`, whose inputs other than `inputs` are weights.
    pub fn optimise(onnx: &ModelProto, inputs: &HashSet<&str>) -> TractResult<Self> {
        let mut model = tract_onnx::onnx()
            .model_for_proto_model(onnx)?
            .into_typed()?;
        declutter().optimize(&mut model)?;
        model.optimize()?;
        let sources = model.inputs.iter().map(|outlet| outlet.node);
        let weights = sources
            .filter(|&node| !inputs.contains(&*model.node(node).name))
            .collect();
        Ok(Self { model, weights })
    }

    /// Every packing of a weight that panels in a map can stand in for, in the order of nodes.
    pub fn packings(&self) -> Vec<Packing> {
        let nodes = self.model.nodes().iter();
        nodes.filter_map(|node| self.packing(node)).collect()
    }

    /// The nodes from a weight to the one before `node`, where each has one input; the weight first.
    pub fn chain(&self, node: usize) -> Option<Vec<usize>> {
        let mut chain = Vec::new();
        let mut current = node;
        while !self.weights.contains(&current) {
            let [input] = self.model.node(current).inputs[..] else {
                return None;
            };
            current = input.node;
            chain.push(current);
        }
        chain.reverse();
        Some(chain)
    }

    /// Weights that a node still reads once the packings are replaced by constants.
    #[cfg(feature = "compile")]
    pub fn unpacked(&self) -> Vec<&str> {
        let packings: HashSet<usize> = self.packings().iter().map(|packing| packing.node).collect();
        let mut seen = HashSet::new();
        let mut pending: Vec<usize> = self
            .model
            .outputs
            .iter()
            .map(|outlet| outlet.node)
            .collect();
        while let Some(node) = pending.pop() {
            if seen.insert(node) && !packings.contains(&node) {
                pending.extend(
                    self.model
                        .node(node)
                        .inputs
                        .iter()
                        .map(|outlet| outlet.node),
                );
            }
        }
        let left = self.weights.iter().filter(|weight| seen.contains(weight));
        left.map(|&weight| self.model.node(weight).name.as_str())
            .collect()
    }

    fn packing(&self, node: &TypedNode) -> Option<Packing> {
        if !node.op_is::<OptMatMulPack>() || self.chain(node.id).is_none() {
            return None;
        }
        let fact = &node.outputs[0].fact;
        let packed = fact.exotic_fact()?.downcast_ref::<DynPackedExoticFact>()?;
        let batch: TVec<usize> = fact.shape.as_concrete()?.into();
        Some(Packing {
            node: node.id,
            name: node.name.clone(),
            kernels: self.kernels(node)?,
            format: merged(&packed.packers)?,
            k: packed.k.to_usize().ok()?,
            mn: packed.mn.to_usize().ok()?,
            batch: batch.iter().all(|&dim| dim == 1).then_some(batch)?,
        })
    }

    /// The kernels that read what `node` packs; `None` where one reads it in another way than panel by panel.
    fn kernels(&self, node: &TypedNode) -> Option<Vec<String>> {
        let mut names = Vec::new();
        for reader in &node.outputs[0].successors {
            let product = self.model.node(reader.node).op_as::<OptMatMul>()?;
            let extracts = product.micro_ops.iter().any(|step| match step {
                ProtoFusedSpec::AddMatMul { packings, .. } => {
                    packings.iter().any(|(_, extractor)| extractor.is_some())
                }
                _ => false,
            });
            if extracts {
                return None;
            }
            names.extend(product.mmm.iter().map(|kernel| kernel.name().to_owned()));
        }
        names.dedup();
        Some(names)
    }
}

/// tract's own passes but one: `FoldUniformMask` takes a mask apart whose values follow from positions, and what it
/// puts in its place has fewer rows than the mask had. Reading it through a broadcast hides that; joining a prefix to
/// it does not.
fn declutter() -> Optimizer {
    let mut optimizer = Optimizer::declutter();
    let folds = |pass: &dyn TypedPass| format!("{pass:?}").starts_with("FoldUniformMask");
    optimizer.passes.retain(|pass| !folds(&**pass));
    optimizer
}

/// The one layout that serves all of `packers`.
fn merged(packers: &[Box<dyn MMMInputFormat>]) -> Option<PackedFormat> {
    let (first, rest) = packers.split_first()?;
    let merged = rest
        .iter()
        .try_fold(&**first, |merged, next| merged.merge_with(&**next))?;
    let format = merged.downcast_ref::<PackedFormat>()?;
    (format.dt == f32::datum_type()).then(|| format.clone())
}
