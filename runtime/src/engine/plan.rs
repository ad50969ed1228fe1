//! tract's own plan, with its packed weights in the map.

use std::collections::HashMap;

use tract_core::{internal::*, ops::konst::Const};
use tract_linalg::mmm::{MMMInputValue, PackedMatrixStorage};
use tract_onnx::prelude::Framework;

use super::{
    Input, failed,
    panels::{self, MappedPanels},
    program::{Packing, Program},
};
use crate::{
    Error, Image,
    image::{Description, Inputs, Layer, Packed},
    task::KeyValues,
};

/// A plan and the state of its runs.
#[derive(Debug)]
pub(crate) struct Plan {
    state: TypedSimpleState,
    /// What each input of the plan is given and of which type, in the plan's order.
    inputs: Vec<(Role, DatumType)>,
    hidden: usize,
    embedding_width: usize,
    layers: Vec<Layer>,
    /// The hidden rows of the last run.
    made: Vec<f32>,
}

/// Keys, values and gate of every layer.
#[derive(Debug)]
pub(crate) struct Prefix(Vec<KeyValue>);

#[derive(Debug)]
struct KeyValue {
    /// `[1, kv_heads, prefix, head_dim]`, as are the values.
    key: Arc<Tensor>,
    value: Arc<Tensor>,
    /// `[1]`.
    gate: Arc<Tensor>,
}

/// What an input is given.
#[derive(Clone, Copy, Debug)]
enum Role {
    Rows,
    Ids,
    Ones,
    Types,
    Positions,
    Key(usize),
    Value(usize),
    Gate(usize),
}

/// A gate that shuts a layer's prefix out: what it is added to is no weight under softmax.
const SHUT: f32 = -1e9;

impl Plan {
    pub fn open(image: &Image) -> Result<Self, Error> {
        let description = image.description();
        let roles = roles(&description.inputs);
        let mut program = optimise(image).map_err(failed("optimising the program"))?;
        let packings = program.packings();
        let pairs = pair(image, &packings)?;
        attach(image, &mut program, &pairs)
            .map_err(failed("putting mapped weights into the program"))?;
        Self::ready(program.model, &roles, description).map_err(failed("planning the program"))
    }

    fn ready(
        model: TypedModel,
        roles: &HashMap<&str, Role>,
        description: &Description,
    ) -> TractResult<Self> {
        let inputs = model.input_outlets()?.iter().map(|&input| {
            let name = &*model.node(input.node).name;
            let role = roles
                .get(name)
                .with_context(|| format!("the program has an input {name} that nothing fills"))?;
            Ok((*role, model.outlet_fact(input)?.datum_type))
        });
        let inputs = inputs.collect::<TractResult<_>>()?;
        Ok(Self {
            state: SimplePlan::new(model)?.spawn()?,
            inputs,
            hidden: description.hidden,
            embedding_width: description.embedding_width(),
            layers: description.layers.clone(),
            made: Vec::new(),
        })
    }

    pub fn prepare(&self, prefix: &KeyValues) -> Result<Prefix, Error> {
        laid_out(prefix, &self.layers).map_err(failed("laying a prefix out"))
    }

    /// Runs texts one after the other, each behind `prefix` of its number.
    pub fn run<'p>(
        &mut self,
        input: Input<'_>,
        prefix: &dyn Fn(usize) -> &'p Prefix,
    ) -> Result<(), Error> {
        self.made.clear();
        let mut first = 0;
        for (index, &rows) in input.lengths.iter().enumerate() {
            let text = first..first + rows;
            first += rows;
            let text = Input {
                rows: &input.rows
                    [text.start * self.embedding_width..text.end * self.embedding_width],
                ids: &input.ids[text.clone()],
                types: &input.types[text],
                lengths: &[rows],
            };
            match self.output(text, prefix(index)) {
                Ok(output) => {
                    let made = floats(&output).map_err(failed("reading hidden rows"))?;
                    self.made.extend_from_slice(made);
                }
                Err(error) => {
                    self.state.reset_turn().map_err(failed("starting afresh"))?;
                    return Err(failed("running the program")(error));
                }
            }
        }
        Ok(())
    }

    /// The hidden rows of the last run, `[rows, hidden]`.
    pub fn hidden_rows(&self) -> &[f32] {
        &self.made
    }

    fn output(&mut self, input: Input<'_>, prefix: &Prefix) -> TractResult<Tensor> {
        let values = self.inputs.iter().map(|&(role, dtype)| {
            let value = self.value(role, input, prefix)?;
            let fits = value.datum_type() == dtype;
            if fits {
                Ok(value)
            } else {
                Ok(value.cast_to_dt(dtype)?.into_owned().into_tvalue())
            }
        });
        let values = values.collect::<TractResult<_>>()?;
        let output = self
            .state
            .run(values)?
            .into_iter()
            .next()
            .context("the program has no output")?;
        let expected = [1, input.ids.len(), self.hidden];
        ensure!(
            output.shape() == expected,
            "hidden rows of shape {:?} instead of {expected:?}",
            output.shape()
        );
        Ok(output.into_tensor())
    }

    fn value(&self, role: Role, input: Input<'_>, prefix: &Prefix) -> TractResult<TValue> {
        let sequence = input.ids.len();
        let shape = [1, sequence];
        let layer = |index: usize| prefix.0.get(index).context("a prefix without that layer");
        Ok(match role {
            Role::Rows => {
                Tensor::from_shape(&[1, sequence, self.embedding_width], input.rows)?.into_tvalue()
            }
            Role::Ids => Tensor::from_shape(&shape, input.ids)?.into_tvalue(),
            Role::Ones => tensor1(&vec![1i64; sequence])
                .into_shape(&shape)?
                .into_tvalue(),
            Role::Types => Tensor::from_shape(&shape, input.types)?.into_tvalue(),
            Role::Positions => {
                let positions: Vec<i64> = (0i64..).take(sequence).collect();
                Tensor::from_shape(&shape, &positions)?.into_tvalue()
            }
            Role::Key(index) => layer(index)?.key.clone().into_tvalue(),
            Role::Value(index) => layer(index)?.value.clone().into_tvalue(),
            Role::Gate(index) => layer(index)?.gate.clone().into_tvalue(),
        })
    }
}

fn roles(inputs: &Inputs) -> HashMap<&str, Role> {
    let mut roles = HashMap::from([(&*inputs.embeddings, Role::Rows)]);
    let optional = [
        (&inputs.ids, Role::Ids),
        (&inputs.mask, Role::Ones),
        (&inputs.token_types, Role::Types),
        (&inputs.positions, Role::Positions),
    ];
    roles.extend(
        optional
            .into_iter()
            .filter_map(|(name, role)| Some((name.as_deref()?, role))),
    );
    for (index, layer) in inputs.prefixes.iter().enumerate() {
        roles.insert(&layer.key, Role::Key(index));
        roles.insert(&layer.value, Role::Value(index));
        let gate = layer.gate.iter();
        roles.extend(gate.map(|gate| (&**gate, Role::Gate(index))));
    }
    roles
}

fn optimise(image: &Image) -> TractResult<Program> {
    let onnx = tract_onnx::onnx().proto_model_for_read(&mut image.program())?;
    Program::optimise(&onnx, &image.description().inputs.names())
}

/// Finds the panels of every packing; the image must hold just those that this machine would pack.
fn pair<'a>(
    image: &'a Image,
    packings: &'a [Packing],
) -> Result<Vec<(&'a Packing, &'a Packed)>, Error> {
    let recorded: HashMap<&str, &Packed> = image
        .packed()
        .iter()
        .map(|packed| (&*packed.name, packed))
        .collect();
    if recorded.len() != packings.len() {
        let (here, there) = (packings.len(), recorded.len());
        return Err(image.unfit(format!(
            "{here} weights would be packed here, it holds {there}"
        )));
    }
    let pairs = packings.iter().map(|packing| {
        let name = &packing.name;
        let packed = recorded.get(&**name);
        let packed =
            *packed.ok_or_else(|| image.unfit(format!("it lacks the packed weight {name}")))?;
        let shape = (packed.k, packed.mn) == (packing.k, packing.mn);
        if shape && panels::format(packed) == packing.format && packed.kernels == packing.kernels {
            return Ok((packing, packed));
        }
        let here = format!("{:?} for {}", packing.format, packing.kernels.join(", "));
        let there = format!(
            "{:?} for {}",
            panels::format(packed),
            packed.kernels.join(", ")
        );
        Err(image.unfit(format!(
            "{name} would be packed here as {here}, it holds {there}"
        )))
    });
    pairs.collect()
}

/// Replaces every packing by its panels in the map, and forgets the weights.
fn attach(image: &Image, program: &mut Program, pairs: &[(&Packing, &Packed)]) -> TractResult<()> {
    let model = &mut program.model;
    let mut patch = TypedModelPatch::new("mapped weights");
    for (packing, packed) in pairs {
        let outlet = OutletId::new(packing.node, 0);
        let value: Box<dyn MMMInputValue> =
            Box::new(MappedPanels::new(image, packed, packed.panels()));
        let storage = PackedMatrixStorage::new_batched(&packing.batch, tvec!(value));
        let tensor = storage.into_tensor(f32::datum_type()).into_arc_tensor();
        let fact = model.outlet_fact(outlet)?.exotic_fact.clone();
        let constant = Const::new_with_opt_exotic_fact(tensor, fact)?;
        let wire = patch.wire_node(&packing.name, constant, &[])?;
        patch.shunt_outside(model, outlet, wire[0])?;
    }
    patch.apply(model)?;
    let mut inputs = model.input_outlets()?.to_vec();
    inputs.retain(|input| !program.weights.contains(&input.node));
    model.set_input_outlets(&inputs)?;
    model.compact()
}

/// Keys, values and gate of every layer of the base: rows of zeros, shut out, in a layer that has no prefix.
fn laid_out(prefix: &KeyValues, layers: &[Layer]) -> TractResult<Prefix> {
    let layers = layers.iter().enumerate().map(|(index, shape)| {
        let shape = [1, shape.kv_heads, prefix.tokens, shape.head_dim];
        let (key, value, gate) = match prefix.layers.get(&index) {
            Some(layer) => (
                Tensor::from_shape(&shape, &layer.keys)?,
                Tensor::from_shape(&shape, &layer.values)?,
                layer.gate,
            ),
            None => (
                Tensor::zero::<f32>(&shape)?,
                Tensor::zero::<f32>(&shape)?,
                SHUT,
            ),
        };
        Ok(KeyValue {
            key: key.into_arc_tensor(),
            value: value.into_arc_tensor(),
            gate: tensor1(&[gate]).into_arc_tensor(),
        })
    });
    Ok(Prefix(layers.collect::<TractResult<_>>()?))
}

fn floats(output: &Tensor) -> TractResult<&[f32]> {
    output.try_as_plain_ram()?.as_slice()
}

#[cfg(all(test, feature = "compile"))]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{
        task::LayerKeyValues,
        testing::{HIDDEN, numbers, source},
    };

    /// The whole graph, weights and all, on tract as it is.
    fn plain(rows: &[f32], prefix: &KeyValues) -> Tensor {
        let mut onnx = source().model;
        crate::engine::lower::spell_out_zeros(onnx.graph.as_mut().unwrap());
        let onnx = onnx.encode_to_vec();
        let onnx = tract_onnx::onnx()
            .proto_model_for_read(&mut &*onnx)
            .unwrap();
        let description = source().description;
        let model = Program::optimise(&onnx, &description.inputs.names())
            .unwrap()
            .model;
        let mut plan = Plan::ready(model, &roles(&description.inputs), &description).unwrap();
        let prefix = plan.prepare(prefix).unwrap();
        plan.output(input(rows, &ZEROS[..rows.len() / HIDDEN]), &prefix)
            .unwrap()
    }

    const ZEROS: [i64; 32] = [0; 32];

    fn input<'a>(rows: &'a [f32], ids: &'a [i64]) -> Input<'a> {
        Input {
            rows,
            ids,
            types: ids,
            lengths: LENGTHS[ids.len()..].split_at(1).0,
        }
    }

    const LENGTHS: [usize; 33] = {
        let mut lengths = [0; 33];
        let mut rows = 0;
        while rows < 33 {
            lengths[rows] = rows;
            rows += 1;
        }
        lengths
    };

    fn prefix(tokens: usize) -> KeyValues {
        let layer = |seed| LayerKeyValues {
            shape: source().description.layers[0],
            keys: numbers(seed, tokens * HIDDEN).into(),
            values: numbers(seed + 1, tokens * HIDDEN).into(),
            gate: 0.0,
        };
        KeyValues {
            tokens,
            layers: [(0, layer(50)), (1, layer(60))].into(),
            ..KeyValues::default()
        }
    }

    #[test]
    fn mapped_weights_answer_as_weights_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let image = crate::testing::image(&folder.path().join("tiny.base"));
        let mut plan = Plan::open(&image).unwrap();
        for (sequence, tokens) in [(1, 0), (1, 3), (7, 0), (7, 1), (2, 16), (20, 5)] {
            let rows = numbers(9, sequence * HIDDEN);
            let prepared = plan.prepare(&prefix(tokens)).unwrap();
            let text = input(&rows, &ZEROS[..sequence]);
            plan.run(text, &|_| &prepared).unwrap();
            let expected = plain(&rows, &prefix(tokens));
            assert_eq!(
                plan.hidden_rows(),
                super::floats(&expected).unwrap(),
                "{sequence} rows, {tokens} tokens"
            );
        }
    }

    #[test]
    fn a_failed_run_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let image = crate::testing::image(&folder.path().join("tiny.base"));
        let mut plan = Plan::open(&image).unwrap();
        let none = plan.prepare(&KeyValues::default()).unwrap();
        let rows = numbers(9, 3 * HIDDEN);
        let text = input(&rows, &ZEROS[..3]);
        plan.run(text, &|_| &none).unwrap();
        let good = plan.hidden_rows().to_vec();
        let mut odd = plan.prepare(&prefix(2)).unwrap();
        odd.0.pop();
        plan.run(text, &|_| &odd).unwrap_err();
        plan.run(text, &|_| &none).unwrap();
        assert_eq!(plan.hidden_rows(), good);
    }

    #[test]
    fn an_image_packed_otherwise_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let image = crate::testing::image(&folder.path().join("tiny.base"));
        let program = optimise(&image).unwrap();
        let mut packings = program.packings();
        assert_eq!(packings.len(), 4);
        packings[1].format.r += 1;
        let name = packings[1].name.clone();
        let error = pair(&image, &packings).unwrap_err().to_string();
        assert!(
            error.contains(&name) && error.contains("preface compile BASE -o"),
            "{error}"
        );
        packings.pop();
        assert!(
            pair(&image, &packings)
                .unwrap_err()
                .to_string()
                .contains("3 weights")
        );
    }
}
