use std::collections::HashMap;

use super::*;
use crate::{
    builder::{Attribute, Builder},
    onnx::{GraphProto, ValueInfoProto, data_type},
};

/// Keys `[batch, tokens, 2, 4]` that are turned by way of three dimensions, whose sizes are read from the keys before
/// (`early`) or behind the heads came first.
fn site(early: bool) -> Site {
    let dims = ["batch", "tokens", "2", "4"];
    let inputs = ["query", "key", "value"];
    let mut graph = GraphProto {
        input: inputs
            .map(|name| ValueInfoProto::tensor(name, data_type::FLOAT, &dims))
            .into(),
        ..GraphProto::default()
    };
    let mut builder = Builder::beside(&graph, "t", 17);
    let perm = |axes: &[i64]| [("perm", Attribute::Ints(axes.to_vec()))];
    let heads = inputs.map(|name| builder.apply("Transpose", &[name], &perm(&[0, 2, 1, 3])));
    let (sized, axis) = if early { ("key", 1) } else { (&*heads[1], 2) };
    let shape = builder.apply("Shape", &[sized], &[]);
    let place = builder.ints(&[axis]);
    let tokens = builder.apply("Gather", &[&shape, &place], &[]);
    let concat = [("axis", Attribute::Int(0))];
    let (ends, last) = (builder.ints(&[-1]), builder.ints(&[4]));
    let flat = builder.apply("Concat", &[&ends, &tokens, &last], &concat);
    let flat = builder.apply("Reshape", &[&heads[1], &flat], &[]);
    let turned = builder.apply("Transpose", &[&flat], &perm(&[0, 2, 1]));
    let first = builder.ints(&[-1, 2, 4]);
    let wide = builder.apply("Concat", &[&first, &tokens], &concat);
    let turned = builder.apply("Reshape", &[&turned, &wide], &[]);
    let scores = builder.apply("MatMul", &[&heads[0], &turned], &[]);
    let weights = builder.apply("Softmax", &[&scores], &[]);
    builder.apply("MatMul", &[&weights, &heads[2]], &[]);
    builder.append_to(&mut graph);
    let sizes = crate::base::SIZES;
    let shapes = sizes.map(|size| {
        let shape = vec![size.batch, size.sequence, 2, 4];
        inputs.map(|name| (name.to_owned(), shape.clone())).into()
    });
    let facts = Facts::of(&graph, &shapes as &[HashMap<_, _>]);
    let found = sites(&Wiring::of(&graph), &facts, &[], &sizes).unwrap();
    assert_eq!(found.len(), 1);
    found.into_iter().next().unwrap()
}

#[test]
fn a_prefix_joins_keys_before_their_tokens_are_counted() {
    assert_eq!(site(false).key.layout, Layout::HeadsFirst);
    let site = site(true);
    let expected = Joint {
        value: "key".into(),
        layout: Layout::TokensFirst,
    };
    assert_eq!(site.key, expected);
    assert_eq!((site.kv_heads, site.head_dim), (2, 4));
}

#[test]
fn a_cache_is_one_behind_a_cast_too() {
    let input = |name, tokens| {
        let dims = ["batch", "2", tokens, "4"];
        ValueInfoProto::tensor(name, data_type::FLOAT, &dims)
    };
    let mut graph = GraphProto {
        input: vec![
            input("query", "tokens"),
            input("past_keys", "past"),
            input("past_values", "past"),
        ],
        ..GraphProto::default()
    };
    let mut builder = Builder::beside(&graph, "t", 17);
    let tokens = [("axis", Attribute::Int(2))];
    let [keys, values] = ["past_keys", "past_values"].map(|past| {
        let cast = builder.cast(past, data_type::FLOAT);
        builder.apply("Concat", &[&cast, "query"], &tokens)
    });
    let turn = [("perm", Attribute::Ints(vec![0, 1, 3, 2]))];
    let turned = builder.apply("Transpose", &[&keys], &turn);
    let scores = builder.apply("MatMul", &["query", &turned], &[]);
    let weights = builder.apply("Softmax", &[&scores], &[]);
    builder.apply("MatMul", &[&weights, &values], &[]);
    builder.append_to(&mut graph);
    let sizes = crate::base::SIZES;
    let shapes = sizes.map(|size| {
        let inputs = [
            ("query", size.sequence),
            ("past_keys", size.past),
            ("past_values", size.past),
        ];
        let shaped = |(name, tokens): (&str, _)| (name.to_owned(), vec![size.batch, 2, tokens, 4]);
        inputs.map(shaped).into()
    });
    let facts = Facts::of(&graph, &shapes as &[HashMap<_, _>]);
    let past = ["past_keys", "past_values"].map(str::to_owned);
    let found = sites(&Wiring::of(&graph), &facts, &past, &sizes).unwrap();
    assert_eq!(found[0].past, Some(past.into()));
}

#[test]
fn scores_that_are_rounded_away_are_refused() {
    for (step, refused) in [(0.07, false), (1.3e36, true), (f64::INFINITY, true)] {
        let mut graph = GraphProto::default();
        let mut builder = Builder::beside(&graph, "t", 17);
        let scale = builder.scalar(data_type::FLOAT, step);
        builder.write("QuantizeLinear", &["scores", &scale], &["rounded"], &[]);
        builder.append_to(&mut graph);
        let found = tell_apart(&Wiring::of(&graph), &[(&graph.node[0], 0)]);
        assert_eq!(found.is_err(), refused, "{step}");
        if let Err(error) = found {
            assert!(error.to_string().contains("nodes_to_exclude"), "{error}");
        }
    }
}
