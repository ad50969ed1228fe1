//! In which number formats the tensors of a bundle are.

use preface_bundle::{Dtype, Role};

use crate::adapter::Adapter;

/// Number formats of prompt and head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// That of the prompt.
    pub prompt: Dtype,
    /// That of the head.
    pub head: Dtype,
    /// Where the scales of integers come from.
    pub scales: Scales,
}

/// Where the scale of integers that share one comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scales {
    /// It is the one of least squared error, which may clip the largest values.
    #[default]
    LeastError,
    /// It reaches to the largest value, and nothing is clipped: of use where a few large values count for more than
    /// their part of the error.
    Largest,
}

impl Scales {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::LeastError => "least-error",
            Self::Largest => "largest",
        }
    }
}

impl Encoding {
    /// The formats that [`Encoding::all`] tries, the most exact one last.
    const TRIED: [Dtype; 4] = [Dtype::I4, Dtype::I8, Dtype::F16, Dtype::F32];

    /// One format for prompt and head, and scales of least squared error.
    pub fn of(dtype: Dtype) -> Self {
        Self {
            prompt: dtype,
            head: dtype,
            scales: Scales::default(),
        }
    }

    /// Whether there are integers in it, so that scales count.
    pub fn has_scales(&self) -> bool {
        [self.prompt, self.head]
            .iter()
            .any(|dtype| matches!(dtype, Dtype::I4 | Dtype::I8))
    }

    /// Every way to pack an adapter in i4, i8, f16 and f32, the most exact one last. A head without a matrix has the
    /// format of the prompt.
    pub fn all(adapter: &Adapter) -> Vec<Self> {
        let [factor, _] = &adapter.head_factors;
        let is_alone = adapter.head_weight.is_empty() && factor.is_empty();
        let pairs = Self::TRIED
            .into_iter()
            .flat_map(|prompt| Self::TRIED.map(|head| (prompt, head)));
        let encodings = pairs
            .filter(|(prompt, head)| !is_alone || prompt == head)
            .flat_map(|(prompt, head)| {
                [Scales::LeastError, Scales::Largest].map(|scales| Self {
                    prompt,
                    head,
                    scales,
                })
            });
        encodings
            .filter(|encoding| encoding.has_scales() || encoding.scales == Scales::default())
            .collect()
    }

    /// The format that is wanted for tensors of this role.
    pub(crate) fn dtype(&self, role: Role) -> Dtype {
        match role {
            Role::Embeddings | Role::KeyValues | Role::Gate => self.prompt,
            _ => self.head,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_go_with_the_prompt_and_a_bias_with_the_head() {
        let encoding = Encoding {
            head: Dtype::F16,
            ..Encoding::of(Dtype::I4)
        };
        let table = [
            (Role::Embeddings, Dtype::I4),
            (Role::KeyValues, Dtype::I4),
            (Role::Gate, Dtype::I4),
            (Role::HeadWeight, Dtype::F16),
            (Role::HeadBias, Dtype::F16),
            (Role::HeadFactor, Dtype::F16),
        ];
        for (role, dtype) in table {
            assert_eq!(encoding.dtype(role), dtype, "{role:?}");
        }
    }
}
