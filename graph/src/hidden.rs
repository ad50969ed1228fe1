//! Hidden prompts: rows at the input of a layer, seen by its attention through the frozen path to keys and values.

use std::collections::HashMap;

use crate::{
    Error,
    attention::{Joint, Layout, Site},
    builder::{Attribute, Builder},
    facts::Facts,
    onnx::GraphProto,
    rows::{Plan, Tokens},
    wiring::Wiring,
};

/// Appends the keys and values `[1, kv_heads, tokens, head_dim]` that the layer of `site` makes of `rows`
/// `[1, tokens, hidden]`, hidden states at its input, and returns their names.
///
/// The input of a layer is the last value of the residual stream before the keys: normalisation behind it is part of
/// the way.
///
/// # Errors
/// When keys or values depend on more than the layer's input, as those do that are rotated by position: the node
/// that reads it is named.
pub fn key_values(
    graph: &mut GraphProto,
    opset: i64,
    facts: &Facts,
    site: &Site,
    rows: &str,
) -> Result<(String, String), Error> {
    let mut builder = Builder::beside(graph, "hidden", opset);
    let wiring = Wiring::of(graph);
    let wanted = [&site.key, &site.value].map(|joint| {
        let tokens = Tokens::Along(joint.layout.token_axis() as usize);
        (text_alone(&wiring, joint, site).to_owned(), tokens)
    });
    let input = input_of(&wiring, facts, site)?;
    let plan = Plan::of(&wiring, facts, &wanted, |value| value == input);
    let source = (input.to_owned(), Tokens::Along(1));
    if let Some((other, _)) = plan.sources.iter().find(|found| **found != source) {
        let reader = plan.reader(&wiring, other);
        return Err(match reader.or(wiring.producer(other)) {
            Some(node) => Error::at(
                node,
                format!(
                    "keys and values depend on {other}, not on the layer's input {input} alone, as where positions turn keys: hidden prompts cannot enter here, a prefix of keys and values can (--method prefix-tuning)"
                ),
            ),
            None => Error::unusable(format!("keys and values depend on {other}")),
        });
    }
    let sizes = builder.apply("Shape", &[rows], &[]);
    let given = HashMap::from([(source, rows.to_owned())]);
    let made = plan.write(&wiring, facts, &mut builder, given, &sizes)?;
    let [key, value] = [(&site.key, &wanted[0]), (&site.value, &wanted[1])]
        .map(|(joint, wanted)| heads_first(&mut builder, joint.layout, &made[wanted]));
    builder.append_to(graph);
    Ok((key, value))
}

/// The value at the input of the layer of `site`: what [`key_values`] puts rows in place of.
///
/// # Errors
/// When there is none.
pub fn input_of<'a>(wiring: &Wiring<'a>, facts: &Facts, site: &'a Site) -> Result<&'a str, Error> {
    let [key, value] = [&site.key, &site.value].map(|joint| text_alone(wiring, joint, site));
    layer_input(wiring, facts, key, value).ok_or_else(|| {
        Error::unusable(format!(
            "no layer's input lies before keys {}",
            site.key.value
        ))
    })
}

/// Elements of a row at the input of the layer of `site`, where that is constant.
pub(crate) fn width(wiring: &Wiring, facts: &Facts, site: &Site) -> Option<usize> {
    let input = input_of(wiring, facts, site).ok()?;
    usize::try_from(facts.get(input)?.constant_dim(2)?).ok()
}

/// The keys or values of the text, without those of a cache.
fn text_alone<'a>(wiring: &Wiring<'a>, joint: &'a Joint, site: &Site) -> &'a str {
    let cached = |name: &&String| {
        let past = site.past.as_ref();
        past.is_none_or(|(key, value)| *name != key && *name != value)
    };
    match wiring.producer(&joint.value) {
        Some(node) if site.past.is_some() => node
            .input
            .iter()
            .find(cached)
            .map_or(&joint.value, |text| text),
        _ => &joint.value,
    }
}

/// The last value before both that is added to another of its shape: the residual stream.
fn layer_input<'a>(wiring: &Wiring<'a>, facts: &Facts, key: &str, value: &str) -> Option<&'a str> {
    let above = |value| {
        wiring
            .producer(value)
            .map(|node| wiring.ancestors(&node.output[0]))
    };
    let (keys, values) = (above(key)?, above(value)?);
    let carried = |name: &str| {
        let fact = facts.get(name).filter(|fact| fact.rank() == 3)?;
        let alike = |input: &String| facts.get(input).is_some_and(|other| other.same_shape(fact));
        wiring
            .consumers(name)
            .find(|node| node.op_type() == "Add" && node.input.iter().all(alike))
    };
    let nodes = wiring.graph.node.iter().rev();
    let mut outputs = nodes
        .filter_map(|node| node.output.first())
        .map(String::as_str);
    outputs.find(|name| keys.contains(name) && values.contains(name) && carried(name).is_some())
}

fn heads_first(builder: &mut Builder, layout: Layout, value: &str) -> String {
    match layout {
        Layout::HeadsFirst => value.to_owned(),
        Layout::TokensFirst => {
            let swap = [("perm", Attribute::Ints(vec![0, 2, 1, 3]))];
            builder.apply("Transpose", &[value], &swap)
        }
    }
}
