//! Per-layer hidden prompts: rows `[tokens, hidden]` before each layer, of which the frozen projections make its keys
//! and values (Petals' deep prompt tuning, Borzunov et al. 2023, section 2.2): half the numbers of a prefix.

use preface_graph::{FormKind, Kind, builder::Attribute, hidden};

use super::{Method, Parameter};
use crate::{Error, form::Form};

pub(super) const METHOD: Method = Method {
    name: "hidden-prompts",
    form: FormKind::KeyValues,
    gated: false,
    learning_rate: 3e-2,
    parameters: |sizes| {
        let layers = sizes.form.shapes().len();
        let name = |layer| format!("hidden.{layer}");
        (0..layers)
            .map(|layer| Parameter::new(name(layer), &[1, sizes.form.tokens(), sizes.hidden]))
            .collect()
    },
    initial: |sizes, seedbed| seedbed.layer_inputs(&sizes.form),
    subgraph: |sizes, canvas, parameters| {
        let Form::KeyValues {
            first_layer,
            layers,
            ..
        } = &sizes.form
        else {
            return Err(Error::Options(
                "hidden prompts become keys and values".into(),
            ));
        };
        if canvas.base.description.kind == Kind::EncoderDecoder {
            let reason = "hidden prompts stand before the layers of one stack; an encoder-decoder takes prefix-tuning at all its attentions";
            return Err(Error::Options(reason.into()));
        }
        let sites: Vec<_> = canvas.base.description.prefix_sites().collect();
        let mut tensors = Vec::new();
        for (index, _) in layers.iter().enumerate() {
            let site = sites[first_layer + index];
            let facts = &canvas.base.facts;
            let (key, value) =
                hidden::key_values(canvas.graph, canvas.opset, facts, site, &parameters[index])?;
            tensors.push(canvas.builder.apply(
                "Concat",
                &[&key, &value],
                &[("axis", Attribute::Int(0))],
            ));
        }
        Ok(tensors)
    },
    peft_type: "PREFIX_TUNING",
};
