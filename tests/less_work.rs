//! Graphs that do less work and compute the same: chosen rows, cached layers, hidden prompts.

#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::HashMap, path::Path};

use preface_graph::{
    Base, Kind, SIZES,
    attention::{Layout, Site},
    builder::Builder,
    cut,
    facts::Facts,
    hidden,
    inputs::Size,
    onnx::{GraphProto, ModelProto, ValueInfoProto, data_type},
    rows, splice,
    splice::Prefix,
    wiring::Wiring,
};
use preface_trainer::{
    autodiff::backward,
    engine::{Array, Session},
};
use support::{base_folder, exports, library, skip};

/// Added to the embedding rows: what the gradients are taken of.
const DELTA: &str = "delta";
const CHOOSE: &str = "choose";
const COTANGENT: &str = "cotangent";
/// Rows that are chosen of each text.
const ROWS: i64 = 2;

/// A shape at a size.
type Shape = Box<dyn Fn(Size) -> Vec<i64>>;

/// A base's graph under edit, with float inputs of its own.
struct Bench<'a> {
    base: &'a Base,
    model: ModelProto,
    extra: Vec<(String, Shape)>,
}

impl<'a> Bench<'a> {
    fn new(base: &'a Base) -> Self {
        Self {
            base,
            model: base.model.clone(),
            extra: Vec::new(),
        }
    }

    fn graph(&mut self) -> &mut GraphProto {
        self.model.graph.as_mut().unwrap()
    }

    /// Adds the input [`DELTA`] to the embedding rows.
    fn move_embeddings(&mut self) {
        let hidden = self.base.description.hidden as i64;
        self.take(DELTA, move |size| vec![size.batch, size.sequence, hidden]);
        let description = self.base.description.clone();
        let graph = self.graph();
        let (place, looked_up) = splice::cut_embedding(graph, &description).unwrap();
        let mut builder = Builder::beside(graph, "moved", 0);
        builder.write(
            "Add",
            &[&looked_up, DELTA],
            &[&description.embedding_rows],
            &[],
        );
        builder.insert_into(graph, place);
    }

    /// Declares a float input of the shape that it has at each size.
    fn take(&mut self, name: &str, shape: impl Fn(Size) -> Vec<i64> + 'static) {
        let symbols: Vec<String> = shape(SIZES[0])
            .iter()
            .zip(shape(SIZES[1]))
            .enumerate()
            .map(|(axis, (one, other))| match *one == other {
                true => one.to_string(),
                false => format!("{name}_{axis}"),
            })
            .collect();
        let dims: Vec<&str> = symbols.iter().map(String::as_str).collect();
        let input = ValueInfoProto::tensor(name, data_type::FLOAT, &dims);
        self.graph().input.push(input);
        self.extra.push((name.into(), Box::new(shape)));
    }

    fn shapes(&self, size: Size) -> HashMap<String, Vec<i64>> {
        let wiring = Wiring::of(self.model.graph.as_ref().unwrap());
        let mut shapes = self.base.description.inputs.shapes(&wiring, size);
        shapes.extend(
            self.extra
                .iter()
                .map(|(name, shape)| (name.clone(), shape(size))),
        );
        shapes
    }

    fn facts(&self) -> Facts {
        let graph = self.model.graph.as_ref().unwrap();
        Facts::of(graph, &SIZES.map(|size| self.shapes(size)))
    }

    /// Makes `outputs` the graph's, drops the rest and counts its nodes.
    fn keep(&mut self, outputs: &[String]) -> usize {
        let output = |name: &String| ValueInfoProto::untyped(name);
        let graph = self.graph();
        splice::prune(graph, outputs.iter().map(output).collect());
        graph.node.len()
    }

    /// Appends the gradients of `value` for the input [`COTANGENT`].
    fn differentiate(&mut self, value: &str, wanted: &[&str]) -> Vec<String> {
        let facts = self.facts();
        let fact = facts.get(value).unwrap();
        let decoded = fact.shapes[0][1] == SIZES[0].decoder_sequence;
        let dims: Vec<_> = (1..fact.rank())
            .map(|axis| fact.constant_dim(axis))
            .collect();
        self.take(COTANGENT, move |size| {
            let tokens = if decoded {
                size.decoder_sequence
            } else {
                size.sequence
            };
            let rest = dims.iter().map(|dim| dim.unwrap_or(tokens));
            std::iter::once(size.batch).chain(rest).collect()
        });
        let facts = self.facts();
        let opset = self.model.opset();
        let mut builder = Builder::beside(self.graph(), "gradient", opset);
        let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
        let seeds = [(value.to_owned(), COTANGENT.to_owned())];
        let gradients = backward(&mut self.model, &facts, &mut builder, &seeds, &wanted).unwrap();
        builder.append_to(self.graph());
        gradients
    }

    /// `rows` of each text's `value`, by [`rows::select`] or by a product behind everything.
    fn choose(&mut self, value: &str, early: bool, rows: i64) -> String {
        let decoder = self.base.description.kind == Kind::EncoderDecoder;
        self.take(CHOOSE, move |size| {
            let tokens = if decoder {
                size.decoder_sequence
            } else {
                size.sequence
            };
            vec![size.batch, rows, tokens]
        });
        let facts = self.facts();
        let opset = self.model.opset();
        let graph = self.graph();
        if early {
            return rows::select(graph, opset, &facts, value, CHOOSE).unwrap();
        }
        let mut builder = Builder::beside(graph, "late", opset);
        let chosen = builder.apply("MatMul", &[CHOOSE, value], &[]);
        builder.append_to(graph);
        chosen
    }

    fn session(&self, threads: usize) -> Session {
        let folder = &self.base.folder;
        library().session(&self.model, folder, threads).unwrap()
    }

    fn run(&self, feeds: &HashMap<String, Array>) -> Vec<Array> {
        let declared = &self.model.graph.as_ref().unwrap().input;
        let feeds: Vec<(&str, &Array)> = declared
            .iter()
            .filter_map(|input| Some((input.name(), feeds.get(input.name())?)))
            .collect();
        self.session(2).run(&feeds).unwrap()
    }

    /// Numbers for every input at one size; the second half of the last text is padding.
    fn feeds(&self, size: Size) -> HashMap<String, Array> {
        let inputs = &self.base.description.inputs;
        let vocabulary = self.base.description.vocabulary as i64;
        let feed = |(name, shape): (String, Vec<i64>)| {
            let count = shape.iter().product::<i64>();
            let noise = |index: i64| ((index * 7919 + 13) % 101) as f32 / 50.5 - 1.0;
            let part = |own: &Option<String>| own.as_deref() == Some(&name);
            let array = if name == CHOOSE {
                Array::Floats(shape.clone(), choice(&shape))
            } else if name == DELTA || self.extra.iter().any(|(own, _)| *own == name) {
                Array::Floats(shape, (0..count).map(|index| 0.1 * noise(index)).collect())
            } else if inputs.past.contains(&name) {
                Array::Floats(shape, (0..count).map(noise).collect())
            } else {
                let width = shape[1];
                let ints = (0..count).map(|index| match index {
                    _ if part(&inputs.token_types) => 0,
                    at if part(&inputs.positions) => at % width,
                    at if part(&inputs.mask) => i64::from(at < count - width / 2),
                    at => 3 + (at * 31 + 5) % (vocabulary - 3),
                });
                Array::Ints(shape.clone(), ints.collect())
            };
            (name, array)
        };
        self.shapes(size).into_iter().map(feed).collect()
    }
}

/// Row `r` of text `b` chooses token `b + 2 r`; the last row of the last text chooses none.
fn choice(shape: &[i64]) -> Vec<f32> {
    let [batch, rows, sequence] = [0, 1, 2].map(|axis| shape[axis]);
    let mut values = Vec::new();
    for (text, row) in (0..batch).flat_map(|text| (0..rows).map(move |row| (text, row))) {
        let none = (text, row) == (batch - 1, rows - 1) && rows > 1;
        let chosen = (text + 2 * row) % sequence;
        values.extend((0..sequence).map(|at| f32::from(u8::from(at == chosen && !none))));
    }
    values
}

fn distance(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    assert!(one.iter().chain(other).all(|number| number.is_finite()));
    let largest = one
        .iter()
        .fold(0.0, |most: f32, number| most.max(number.abs()));
    let pairs = one.iter().zip(other);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest.max(1e-30)
}

fn floats(arrays: Vec<Array>) -> Vec<Vec<f32>> {
    arrays
        .into_iter()
        .map(|array| array.into_floats().unwrap())
        .collect()
}

/// A base with moved embeddings and chosen rows of `value`.
fn chosen<'a>(base: &'a Base, value: &str, early: bool, rows: i64) -> (Bench<'a>, String) {
    let mut bench = Bench::new(base);
    bench.move_embeddings();
    let chosen = bench.choose(value, early, rows);
    (bench, chosen)
}

/// Multiplications of all matrix products between free values and weights.
fn products(bench: &Bench, size: Size) -> i64 {
    let graph = bench.model.graph.as_ref().unwrap();
    let facts = Facts::of(graph, &[bench.shapes(size)]);
    let count = |node: &preface_graph::onnx::NodeProto| {
        let shape = |name: &str| facts.get(name).map(|fact| fact.shapes[0].clone());
        let (left, output) = (
            shape(&node.input[0]).unwrap(),
            shape(&node.output[0]).unwrap(),
        );
        let turned = node.int("transA", 0) == 1;
        let inner = left[left.len() - if turned { 2 } else { 1 }];
        output.iter().product::<i64>() * inner
    };
    let products = graph
        .node
        .iter()
        .filter(|node| matches!(node.op_type(), "MatMul" | "Gemm" | "FusedMatMul"));
    products.map(count).sum()
}

#[test]
fn chosen_rows_are_those_of_the_whole_and_so_are_their_gradients() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let mut folders: Vec<(String, &Path)> = exports
        .iter()
        .map(|export| (export.name.clone(), export.folder()))
        .collect();
    let minilm = base_folder();
    folders.push(("MiniLM".into(), &minilm));
    let size = Size {
        batch: 3,
        sequence: 16,
        decoder_sequence: 9,
        past: 0,
    };
    for (name, folder) in folders {
        let base = Base::open(folder).unwrap();
        let mut values = vec![base.description.hidden_rows.clone()];
        let output = base.model.graph.as_ref().unwrap().output[0]
            .name()
            .to_owned();
        if base.facts.get(&output).is_some_and(|fact| fact.rank() == 3) && output != values[0] {
            values.push(output);
        }
        for value in values {
            let mut results = Vec::new();
            let mut work = Vec::new();
            for early in [false, true] {
                let (mut bench, chosen) = chosen(&base, &value, early, ROWS);
                let gradients = bench.differentiate(&chosen, &[DELTA]);
                let nodes = bench.keep(&[chosen, gradients[0].clone()]);
                work.push((products(&bench, size), nodes));
                let mut feeds = bench.feeds(SIZES[0]);
                if base.description.inputs.past.is_empty() {
                    feeds = bench.feeds(SIZES[1]);
                }
                results.push(floats(bench.run(&feeds)));
            }
            let errors: Vec<f32> = results[0]
                .iter()
                .zip(&results[1])
                .map(|(late, early)| distance(late, early))
                .collect();
            eprintln!(
                "{name} {value}: rows {:.0e}, gradients {:.0e}, products {:.3} of {:.0}k, nodes {} of {}",
                errors[0],
                errors[1],
                work[1].0 as f64 / work[0].0 as f64,
                work[0].0 as f64 / 1e3,
                work[1].1,
                work[0].1
            );
            assert!(work[1].0 < work[0].0 * 9 / 10, "{name} {value}: {work:?}");
            assert!(errors[0] < 1e-6, "{name} {value}: {errors:?}");
            assert!(errors[1] < 2e-6, "{name} {value}: {errors:?}");
        }
    }
}

/// Rows of a prefix.
const TOKENS: i64 = 3;

/// A base with a prefix on its last `top` layers, and the names of the prefix's tensors.
fn prefixed(base: &Base, top: usize) -> (Bench<'_>, Vec<String>) {
    let mut bench = Bench::new(base);
    let layers = base.description.layers.len();
    let mut names = Vec::new();
    let mut prefixes = Vec::new();
    for (index, layer) in base.description.layers.iter().enumerate() {
        prefixes.push((index + top >= layers).then(|| {
            let [key, value] = ["keys", "values"].map(|part| format!("{part}.{index}"));
            for name in [&key, &value] {
                let (heads, width) = (layer.kv_heads as i64, layer.head_dim as i64);
                bench.take(name, move |size| vec![size.batch, heads, TOKENS, width]);
                names.push(name.clone());
            }
            Prefix {
                key,
                value,
                gate: None,
            }
        }));
    }
    let opset = bench.model.opset();
    let graph = bench.graph();
    splice::join_prefix(graph, opset, &base.description, &base.facts, &prefixes).unwrap();
    (bench, names)
}

/// Chosen hidden rows and gradients with everything run and with cuts of at most `width` numbers a token run once.
struct Halves {
    whole: Vec<Vec<f32>>,
    cached: Vec<Vec<f32>>,
    /// Nodes of both.
    nodes: [usize; 2],
    cuts: usize,
}

fn whole_and_cached(base: &Base, top: usize, size: Size, width: usize) -> Halves {
    let (mut whole, names) = prefixed(base, top);
    let (mut rest, _) = prefixed(base, top);
    let rows = [&mut whole, &mut rest]
        .map(|bench| bench.choose(&base.description.hidden_rows, true, ROWS));
    let facts = rest.facts();
    let graph = rest.model.graph.as_ref().unwrap();
    let cuts = cut::find(graph, &facts, &base.description, &names, width);
    let mut below = Bench::new(base);
    let values: Vec<String> = cuts.iter().map(|cut| cut.value.clone()).collect();
    below.keep(&values);
    let computed = below.run(&below.feeds(size));

    let opset = rest.model.opset();
    cut::behind(rest.graph(), opset, &facts, &cuts).unwrap();
    for cut in &cuts {
        let (name, cut) = (cut.value.clone(), cut.clone());
        let shape = move |size: Size| {
            let shape = cut.shape(size.batch as usize, size.sequence as usize);
            shape.into_iter().map(|dim| dim as i64).collect()
        };
        rest.extra.push((name, Box::new(shape)));
    }
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(rows[0], rows[1]);
    let mut nodes = [0; 2];
    for (bench, nodes) in [&mut whole, &mut rest].into_iter().zip(&mut nodes) {
        let mut outputs = vec![rows[0].clone()];
        outputs.extend(bench.differentiate(&rows[0], &wanted));
        *nodes = bench.keep(&outputs);
    }
    let mut feeds = rest.feeds(size);
    feeds.extend(values.into_iter().zip(computed));
    Halves {
        whole: floats(whole.run(&whole.feeds(size))),
        cached: floats(rest.run(&feeds)),
        nodes,
        cuts: cuts.len(),
    }
}

#[test]
fn what_the_lowest_prefix_leaves_alone_is_run_once() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let mut folders: Vec<(String, &Path, usize)> = exports
        .iter()
        .map(|export| (export.name.clone(), export.folder(), 1))
        .collect();
    let minilm = base_folder();
    folders.push(("MiniLM".into(), &minilm, 2));
    for (name, folder, top) in folders {
        let base = Base::open(folder).unwrap();
        let size = Size {
            past: 0,
            ..SIZES[1]
        };
        let rows = whole_and_cached(&base, top, size, base.description.hidden);
        let all = whole_and_cached(&base, top, size, usize::MAX);
        let errors = [&rows, &all].map(|halves| {
            let pairs = halves.whole.iter().zip(&halves.cached);
            pairs
                .map(|(whole, cached)| distance(whole, cached))
                .fold(0.0, f32::max)
        });
        eprintln!(
            "{name}: {} values within {:.0e}, rows within {:.0e}, nodes {} and {} of {}",
            all.cuts, errors[1], errors[0], all.nodes[1], rows.nodes[1], rows.nodes[0]
        );
        assert!(
            errors.iter().all(|error| *error < 3e-6),
            "{name}: {errors:?}"
        );
        assert_eq!(rows.cuts, 1, "{name}");
        assert!(rows.nodes[1] < rows.nodes[0], "{name}: {:?}", rows.nodes);
        // Queries, keys and values beside the rows, where they have the text's tokens alone.
        if base.description.kind != Kind::EncoderDecoder && base.description.inputs.past.is_empty()
        {
            assert_eq!(all.cuts, 4, "{name}");
            assert!(all.nodes[1] < rows.nodes[1], "{name}: {:?}", all.nodes);
        }
    }
}

#[test]
fn nothing_is_cached_below_the_first_layer_or_a_prompt() {
    let base = Base::open(&base_folder()).unwrap();
    let (bench, names) = prefixed(&base, base.description.layers.len());
    let found = |bench: &Bench, free: &[String]| {
        let graph = bench.model.graph.as_ref().unwrap();
        cut::find(graph, &bench.facts(), &base.description, free, usize::MAX)
    };
    assert_eq!(found(&bench, &names), []);
    let mut bench = Bench::new(&base);
    bench.move_embeddings();
    assert_eq!(found(&bench, &[DELTA.into()]), []);
}

/// Hidden prompts that are a text's own hidden states make its own keys and values; rotated keys are refused.
#[test]
fn hidden_prompts_take_the_layers_own_path() {
    let Some(exports) = exports() else {
        return skip("the exports of ../shared");
    };
    let mut folders: Vec<(String, &Path)> = exports
        .iter()
        .map(|export| (export.name.clone(), export.folder()))
        .collect();
    let minilm = base_folder();
    folders.push(("MiniLM".into(), &minilm));
    for (name, folder) in folders {
        let base = Base::open(folder).unwrap();
        let rotary = ["llama", "qwen", "stories"]
            .iter()
            .any(|family| name.contains(family));
        let sites: Vec<_> = base.description.prefix_sites().collect();
        let own = |site: &&&Site| site.direction == sites[0].direction;
        for site in sites.iter().filter(own).skip(1) {
            let mut bench = Bench::new(&base);
            let hidden = base.description.hidden as i64;
            bench.take("rows", move |size| vec![1, size.sequence, hidden]);
            let facts = bench.facts();
            let opset = bench.model.opset();
            let result = hidden::key_values(bench.graph(), opset, &facts, site, "rows");
            if rotary {
                let error = result.unwrap_err().to_string();
                assert!(
                    error.contains("hidden prompts cannot enter"),
                    "{name}: {error}"
                );
                continue;
            }
            let (key, value) = result.unwrap_or_else(|error| panic!("{name}: {error}"));
            let free = [site.key.value.clone()];
            let graph = bench.model.graph.as_ref().unwrap();
            let width = base.description.hidden;
            let cuts = cut::find(graph, &facts, &base.description, &free, width);
            let size = Size {
                batch: 1,
                past: 0,
                ..SIZES[1]
            };
            let own = [
                cuts[0].value.clone(),
                site.key.value.clone(),
                site.value.value.clone(),
            ];
            let mut real = Bench::new(&base);
            real.keep(&own);
            let real = real.run(&real.feeds(size));
            bench.keep(&[key, value]);
            let made = bench.run(&HashMap::from([("rows".to_owned(), real[0].clone())]));
            for ((real, made), joint) in real[1..].iter().zip(&made).zip([&site.key, &site.value]) {
                let real = heads_first(real, joint.layout);
                assert_eq!(real.shape(), made.shape(), "{name} {}", site.node);
                let error = distance(
                    &real.into_floats().unwrap(),
                    &made.clone().into_floats().unwrap(),
                );
                assert!(error < 1e-6, "{name} {}: {error}", site.node);
            }
        }
    }
}

fn heads_first(array: &Array, layout: Layout) -> Array {
    let (Layout::TokensFirst, Array::Floats(shape, values)) = (layout, array) else {
        return array.clone();
    };
    let [batch, tokens, heads, width] = [0, 1, 2, 3].map(|axis| shape[axis] as usize);
    let mut turned = Vec::new();
    for at in 0..batch * heads * tokens {
        let (text, head, token) = (at / (heads * tokens), at / tokens % heads, at % tokens);
        let start = ((text * tokens + token) * heads + head) * width;
        turned.extend(&values[start..start + width]);
    }
    Array::floats(&[batch, heads, tokens, width], turned)
}
