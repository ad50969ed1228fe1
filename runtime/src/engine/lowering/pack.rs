//! Weights of a lowered base as an image holds them.

use super::{Lowering, draft::Matrix};
use crate::{
    Error, Weights,
    engine::executor::{dots, kernels::kernels_for_weights, program::Step},
    image::{Packed, Span},
};

impl Lowering {
    /// Packs every weight for this machine's kernels and hands its panels to `store`, which says where it put them.
    ///
    /// # Errors
    /// When no kernel suits, numbers cannot be stored as `weights`, or `store` fails.
    pub fn pack(
        &self,
        weights: Weights,
        decodes: bool,
        mut store: impl FnMut(&[u8]) -> Result<Span, Error>,
    ) -> Result<Vec<Packed>, Error> {
        let (kernels, format) = kernels_for_weights(decodes).ok_or_else(|| Error::Compile {
            reason: "this machine has no kernel for 32-bit floats".into(),
        })?;
        let packed = self.weights.iter().enumerate();
        let packed = packed.map(|(index, (matrix, numbers))| {
            let Matrix {
                inputs, outputs, ..
            } = *matrix;
            let weights = match weights {
                Weights::I8A8 if self.scores(index) => Weights::I8,
                weights => weights,
            };
            let (kernels, r) = match weights {
                Weights::I8A8 => (vec![dots::NAME.to_owned()], dots::OUTPUTS),
                _ => (kernels.clone(), format.r),
            };
            if weights != Weights::F32 && weights.panel_bytes(inputs, r).is_none() {
                return Err(unstorable(&matrix.name, weights));
            }
            let length = match weights {
                Weights::F32 => format.single_panel_len(inputs),
                _ => inputs * r,
            };
            let panels = panels(matrix, numbers, r, length);
            let encoded = weights.encode(&panels, length, r);
            let encoded = encoded.ok_or_else(|| unstorable(&matrix.name, weights))?;
            Ok(Packed {
                name: matrix.name.clone(),
                kernels,
                dtype: weights,
                r,
                alignment: format.alignment_bytes,
                end_padding: format.end_padding_record,
                k: inputs,
                mn: outputs,
                panel_bytes: encoded.len() / outputs.div_ceil(r).max(1),
                span: store(&encoded)?,
            })
        });
        packed.collect()
    }

    /// Whether the weight `index` makes scores of the vocabulary.
    fn scores(&self, index: usize) -> bool {
        let mut steps = self.program.logits.iter().flat_map(|logits| &logits.steps);
        steps.any(|step| matches!(step, Step::Product(product) if product.weight == index))
    }

    /// The constants as an image holds them.
    pub fn constants(&self) -> Vec<u8> {
        let constants = self.constants.iter();
        constants.flat_map(|number| number.to_le_bytes()).collect()
    }
}

/// What is wrong with a tensor that has a number which `weights` cannot store.
pub(crate) fn unstorable(name: &str, weights: Weights) -> Error {
    Error::Compile {
        reason: format!(
            "{name} has numbers that {weights} does not hold; compile it with other --weights"
        ),
    }
}

/// `matrix` in panels of `r` outputs, each panel `length` numbers long: the outputs of an input are neighbours.
fn panels(matrix: &Matrix, numbers: &[f32], r: usize, length: usize) -> Vec<f32> {
    let mut panels = vec![0.0f32; length * matrix.outputs.div_ceil(r)];
    for input in 0..matrix.inputs {
        for output in 0..matrix.outputs {
            let at = match matrix.turned {
                true => output * matrix.inputs + input,
                false => input * matrix.outputs + output,
            };
            panels[output / r * length + input * r + output % r] = numbers[at];
        }
    }
    panels
}
