use preface_bundle::{HeadKind, Id, Positions};

use super::*;
use crate::{
    Choice,
    task::{KeyValues, LayerKeyValues, Place, RowHead},
    testing::{HIDDEN, POSITIONS, WORDS, image, numbers},
    text::Template,
};

fn task(id: &str, form: Form, base: &Description) -> Task {
    Task {
        id: id.into(),
        base_id: base.base_id,
        tokenizer_id: base.tokenizer_id,
        form,
        head: Head::Rows(RowHead::linear(numbers(70, 3 * HIDDEN), numbers(71, 3))),
        answer: AnswerPlan::of_head(HeadKind::Linear),
        labels: ["a", "b", "c"].map(str::to_owned).to_vec(),
        template: Template::parse("{text}").unwrap(),
        pooling: Pooling::Last,
    }
}

fn embeddings(image: &Image, tokens: &[u32]) -> Form {
    let mut rows = vec![0.0; tokens.len() * HIDDEN];
    for (row, &token) in rows.chunks_exact_mut(HIDDEN).zip(tokens) {
        image.embedding(token, row).unwrap();
    }
    Form::Embeddings {
        tokens: tokens.len(),
        rows,
        place: Place::BeforeText,
    }
}

fn nothing() -> Form {
    Form::KeyValues(KeyValues::default())
}

/// The one label that the active task gives.
fn best<'a>(session: &'a mut Session, text: &str) -> Choice<'a> {
    match session.answer(text, None).unwrap() {
        Answer::Label { best, .. } => best,
        other => panic!("another kind of answer: {other:?}"),
    }
}

fn score(session: &mut Session, text: &str) -> f32 {
    best(session, text).score
}

fn with_session(options: Options, check: impl FnOnce(Image, Session)) {
    let folder = tempfile::tempdir().unwrap();
    let image = image(&folder.path().join("tiny.base"));
    let session = Session::open(&image, options).unwrap();
    check(image, session);
}

#[test]
fn a_prompt_stands_before_the_text() {
    with_session(Options::default(), |image, mut session| {
        let base = session.description().clone();
        let prompted = session
            .add(task("prompted", embeddings(&image, &[1, 2]), &base))
            .unwrap();
        let spoken = session.add(task("spoken", nothing(), &base)).unwrap();
        session.activate(spoken).unwrap();
        let whole = score(&mut session, "turn on heat light");
        session.activate(prompted).unwrap();
        assert_eq!(score(&mut session, "heat light"), whole);
        assert_ne!(score(&mut session, "light heat"), whole);
    });
}

#[test]
fn a_swap_changes_nothing_else() {
    with_session(Options::default(), |image, mut session| {
        let base = session.description().clone();
        let one = session
            .add(task("one", embeddings(&image, &[1]), &base))
            .unwrap();
        let two = session
            .add(task("two", embeddings(&image, &[3, 4]), &base))
            .unwrap();
        let mut answer = |task| {
            session.activate(task).unwrap();
            score(&mut session, "turn off heat")
        };
        let (first, second) = (answer(one), answer(two));
        assert_ne!(first, second);
        assert_eq!(
            (answer(one), answer(two), answer(one)),
            (first, second, first)
        );
    });
}

#[test]
fn a_task_of_the_same_name_replaces_the_old() {
    with_session(Options::default(), |image, mut session| {
        let base = session.description().clone();
        let old = session
            .add(task("t", embeddings(&image, &[1]), &base))
            .unwrap();
        session.activate(old).unwrap();
        let before = score(&mut session, "heat");
        let new = session
            .add(task("t", embeddings(&image, &[5]), &base))
            .unwrap();
        assert_eq!((old, session.tasks().count()), (new, 1));
        assert_ne!(score(&mut session, "heat"), before);
    });
}

#[test]
fn without_a_task_there_is_no_answer() {
    with_session(Options::default(), |_, mut session| {
        let token = Encoded::of_ids(&[1]);
        assert!(matches!(session.answer("heat", None), Err(Error::NoTask)));
        assert!(matches!(session.answer_encoded(&token), Err(Error::NoTask)));
        assert!(matches!(session.encode("heat", None), Err(Error::NoTask)));
        assert!(matches!(
            session.activate(TaskHandle(0)),
            Err(Error::NoTask)
        ));
    });
}

#[test]
fn an_answer_that_is_no_number_is_refused() {
    with_session(Options::default(), |image, mut session| {
        let base = session.description().clone();
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut damaged = task("t", embeddings(&image, &[1]), &base);
            let Head::Rows(head) = &mut damaged.head else {
                unreachable!("the head is linear")
            };
            head.bias_mut()[1] = number;
            let handle = session.add(damaged).unwrap();
            session.activate(handle).unwrap();
            let error = session.answer("heat", None).unwrap_err();
            assert!(matches!(error, Error::NotANumber), "{number}: {error}");
        }
    });
}

#[test]
fn a_text_that_does_not_fit_is_refused() {
    let long = "heat ".repeat(POSITIONS - 1);
    with_session(Options::default(), |image, mut session| {
        let base = session.description().clone();
        let prompt = session
            .add(task("t", embeddings(&image, &[1, 2]), &base))
            .unwrap();
        session.activate(prompt).unwrap();
        let error = session.answer(&long, None).unwrap_err();
        assert!(
            matches!(error, Error::TooLong { tokens, limit, can_be_cut: true } if tokens == POSITIONS - 1 && limit == POSITIONS - 2)
        );
        assert!(matches!(session.answer("", None), Err(Error::Empty)));
        let id = WORDS.len() as u32;
        assert!(matches!(
            session.answer_encoded(&Encoded::of_ids(&[id])),
            Err(Error::Token { .. })
        ));
    });
    let options = Options {
        max_tokens: Some(4),
        overlength: Overlength::Truncate,
        ..Options::default()
    };
    with_session(options, |image, mut session| {
        let base = session.description().clone();
        let prompt = session
            .add(task("t", embeddings(&image, &[1, 2]), &base))
            .unwrap();
        session.activate(prompt).unwrap();
        assert_eq!(
            session
                .encode("turn on heat heat heat off", None)
                .unwrap()
                .ids(),
            [1, 2, 5, 5]
        );
        session.answer(&long, None).unwrap();
        assert!(matches!(
            session.answer_encoded(&Encoded::of_ids(&[1; 5])),
            Err(Error::TooLong { .. })
        ));
    });
}

fn layer(seed: u32, tokens: usize, gate: f32) -> LayerKeyValues {
    LayerKeyValues {
        shape: crate::image::Layer {
            kv_heads: 1,
            head_dim: HIDDEN,
        },
        keys: numbers(seed, tokens * HIDDEN).into(),
        values: numbers(seed + 1, tokens * HIDDEN).into(),
        gate,
    }
}

#[test]
fn gates_weigh_the_prefix_of_their_layer() {
    with_session(Options::default(), |_, mut session| {
        let base = session.description().clone();
        let mut score = |layers: &[(usize, u32, f32)]| {
            let layers = layers
                .iter()
                .map(|&(index, seed, gate)| (index, layer(seed, 3, gate)));
            let form = Form::KeyValues(KeyValues {
                tokens: 3,
                layers: layers.collect(),
                ..KeyValues::default()
            });
            let handle = session.add(task("t", form, &base)).unwrap();
            session.activate(handle).unwrap();
            score(&mut session, "turn on heat")
        };
        let near = |one: f32, other: f32| (one - other).abs() < 1e-6;
        let open = score(&[(0, 80, 0.0), (1, 90, 0.0)]);
        let shut = score(&[(0, 80, -1e4), (1, 90, -1e4)]);
        let half = score(&[(0, 80, 0.0), (1, 90, 1.5)]);
        assert!(near(shut, score(&[])), "shut gates are as no prefix");
        assert!(!near(open, shut) && !near(open, half) && !near(half, shut));
        for upper in [0.0, 1.5] {
            let (partial, whole) = (
                score(&[(1, 90, upper)]),
                score(&[(0, 80, -1e4), (1, 90, upper)]),
            );
            assert!(near(partial, whole), "{upper}: {partial} {whole}");
            assert!(!near(partial, open) && !near(partial, shut));
        }
    });
}

#[test]
fn a_prefix_before_a_decoders_tokens_is_refused_where_no_encoder_stands_before_them() {
    with_session(Options::default(), |_, mut session| {
        let base = session.description().clone();
        let form = Form::KeyValues(KeyValues {
            tokens: 3,
            positions: Positions::DecoderAfterPrompt,
            layers: [(0, layer(80, 3, 0.0)), (1, layer(90, 3, 0.0))].into(),
        });
        let refused = session.add(task("t", form, &base)).unwrap_err().to_string();
        assert!(refused.contains("a decoder behind an encoder"), "{refused}");
    });
}

#[test]
fn prefixes_of_some_layers_or_of_encoder_and_decoder_take_no_positions() {
    with_session(Options::default(), |_, session| {
        for (kind, first, reason) in [
            (Kind::Encoder, 1, "only one of all layers"),
            (Kind::EncoderDecoder, 0, "of which only a decoder's"),
        ] {
            let base = Description {
                kind,
                ..session.description().clone()
            };
            let refusal = |positions| {
                let form = Form::KeyValues(KeyValues {
                    tokens: 3,
                    positions,
                    layers: (first..2).map(|index| (index, layer(80, 3, 0.0))).collect(),
                });
                let checked = task("t", form, &base).check(&base, EngineKind::Executor);
                checked.err().map(|error| error.to_string())
            };
            assert_eq!(refusal(Positions::TextFromZero), None);
            let said = refusal(Positions::AfterPrompt).unwrap();
            assert!(said.contains(reason), "{said}");
        }
    });
}

#[test]
fn images_without_gates_take_whole_open_prefixes_alone() {
    with_session(Options::default(), |_, session| {
        let mut base = session.description().clone();
        let prefix = |layers: &[(usize, f32)]| {
            let layers = layers
                .iter()
                .map(|&(index, gate)| (index, layer(80, 2, gate)));
            Form::KeyValues(KeyValues {
                tokens: 2,
                layers: layers.collect(),
                ..KeyValues::default()
            })
        };
        let refusal = |form, base: &Description| {
            let checked = task("t", form, base).check(base, EngineKind::Plan);
            checked.err().map(|error| error.to_string())
        };
        let (whole, gated, upper) = (
            prefix(&[(0, 0.0), (1, 0.0)]),
            prefix(&[(0, 0.0), (1, 1.0)]),
            prefix(&[(1, 0.0)]),
        );
        base.inputs.partial = false;
        assert_eq!(refusal(gated.clone(), &base), None);
        let said = refusal(upper.clone(), &base).unwrap();
        assert!(said.contains("takes a prefix as its cache"), "{said}");
        base.inputs
            .prefixes
            .iter_mut()
            .for_each(|layer| layer.gate = None);
        assert_eq!(refusal(whole, &base), None);
        for form in [gated, upper] {
            let said = refusal(form, &base).unwrap();
            assert!(said.contains("compile the base again"), "{said}");
        }
    });
}

#[test]
fn a_prompt_stands_where_its_task_says() {
    with_session(Options::default(), |image, session| {
        let mut room = Room::default();
        let text = session
            .encoder()
            .unwrap()
            .texts("turn on", Some("heat"))
            .unwrap();
        let rows = |ids: &[u32]| {
            let Form::Embeddings { rows, .. } = embeddings(&image, ids) else {
                unreachable!()
            };
            rows
        };
        let placeholder = i64::from(image.description().placeholder);
        for (place, order, ids, types) in [
            (
                Place::BeforeText,
                [3, 1, 2, 5],
                [placeholder, 1, 2, 5],
                [0, 0, 0, 1],
            ),
            (
                Place::AfterText,
                [1, 2, 5, 3],
                [1, 2, 5, placeholder],
                [0, 0, 1, 0],
            ),
        ] {
            let prompt = Form::Embeddings {
                tokens: 1,
                rows: rows(&[3]),
                place,
            };
            assert_eq!(
                prompt.rows_before_text(),
                usize::from(place == Place::BeforeText)
            );
            room.clear(image.description());
            room.push(&image, Some(&prompt), &text).unwrap();
            assert_eq!(room.rows, rows(&order), "{place:?}");
            assert_eq!(
                (&room.ids[..], &room.types[..]),
                (&ids[..], &types[..]),
                "{place:?}"
            );
        }
    });
}

#[test]
fn labels_speak_for_themselves() {
    with_session(Options::default(), |_, mut session| {
        let base = session.description().clone();
        let labels = ["turn_on", "light-off", "heat.heat"];
        let spoken = Task {
            head: Head::Rows(RowHead::label_text(vec![0.0; 3])),
            labels: labels.map(str::to_owned).to_vec(),
            pooling: Pooling::Mean,
            ..task("spoken", nothing(), &base)
        };
        let handle = session.add(spoken).unwrap();
        session.activate(handle).unwrap();
        for (class, text) in ["turn on", "light off", "heat heat"]
            .into_iter()
            .enumerate()
        {
            let choice = best(&mut session, text);
            assert_eq!((choice.class, choice.label), (class, labels[class]));
            assert!((session.room.logits[class] - 20.0).abs() < 1e-3);
        }
    });
}

#[test]
fn a_task_is_asked_about_as_many_texts_as_it_reads() {
    with_session(Options::default(), |image, mut session| {
        let base = session.description().clone();
        let kind = AnswerKind::Label;
        let pair = Task {
            answer: AnswerPlan::new(kind, Inputs::Pair, None),
            template: Template::parse("turn {text} light").unwrap(),
            ..task("pair", embeddings(&image, &[1]), &base)
        };
        let pair = session.add(pair).unwrap();
        let one = session
            .add(task("one", embeddings(&image, &[1]), &base))
            .unwrap();
        assert_eq!(session.plan(pair).unwrap().inputs, Inputs::Pair);
        session.activate(pair).unwrap();
        let encoded = session.encode("on", Some("heat off")).unwrap();
        assert_eq!(
            (encoded.ids(), encoded.types()),
            (&[1, 2, 4, 5, 3][..], &[0, 0, 0, 1, 1][..])
        );
        session.answer("on", Some("heat off")).unwrap();
        let error = session.answer("on", None).unwrap_err();
        assert!(matches!(error, Error::OneText { .. }), "{error}");
        session.activate(one).unwrap();
        let error = session.answer("on", Some("heat")).unwrap_err();
        assert!(matches!(error, Error::TwoTexts { .. }), "{error}");
    });
}

#[test]
fn what_is_around_a_text_is_not_cut() {
    let options = Options {
        max_tokens: Some(5),
        overlength: Overlength::Truncate,
        ..Options::default()
    };
    with_session(options, |image, mut session| {
        let base = session.description().clone();
        let [handle, wide] =
            ["turn {text} light", "turn turn turn {text} light light"].map(|text| {
                let pair = Task {
                    answer: AnswerPlan::new(AnswerKind::Label, Inputs::Pair, None),
                    template: Template::parse(text).unwrap(),
                    ..task(text, embeddings(&image, &[1]), &base)
                };
                session.add(pair).unwrap()
            });
        session.activate(handle).unwrap();
        for (text, second, ids) in [
            ("on off heat", "heat", [1, 2, 3, 4, 5]),
            ("on", "heat heat heat heat", [1, 2, 4, 5, 5]),
            ("on off heat", "heat off on", [1, 2, 4, 5, 3]),
        ] {
            let encoded = session.encode(text, Some(second)).unwrap();
            assert_eq!(encoded.ids(), ids, "{text}, {second}");
        }
        session.activate(wide).unwrap();
        let error = session.encode("on", Some("heat"));
        let whole = Error::TooLong {
            tokens: 7,
            limit: 5,
            can_be_cut: false,
        };
        assert_eq!(error.unwrap_err().to_string(), whole.to_string());
    });
}

#[test]
fn every_word_is_tagged() {
    with_session(Options::default(), |image, mut session| {
        let base = session.description().clone();
        let tagging = Task {
            answer: AnswerPlan::of_head(HeadKind::TokenLinear),
            ..task("tags", embeddings(&image, &[1]), &base)
        };
        let handle = session.add(tagging).unwrap();
        session.activate(handle).unwrap();
        let encoded = session.encode(" turn  on\theat", None).unwrap();
        let places = [Some(0), Some(1), Some(2)];
        assert_eq!(
            (encoded.ids(), encoded.words()),
            (&[1, 2, 5][..], &places[..])
        );
        let Answer::Tags(tags) = session.answer_encoded(&encoded).unwrap() else {
            panic!("another kind of answer");
        };
        assert_eq!(tags.iter().flatten().count(), 3);
        assert!(matches!(session.encode(" ", None), Err(Error::Empty)));
    });
}

#[test]
fn a_decoders_last_row_is_that_of_the_prompt_behind_a_text() {
    with_session(Options::default(), |image, mut session| {
        let base = session.description().clone();
        let Form::Embeddings { tokens, rows, .. } = embeddings(&image, &[3, 4]) else {
            unreachable!()
        };
        let form = Form::Embeddings {
            tokens,
            rows,
            place: Place::AfterText,
        };
        let after = session.add(task("after", form, &base)).unwrap();
        let spoken = session.add(task("spoken", nothing(), &base)).unwrap();
        session.activate(spoken).unwrap();
        let (bare, whole) = (
            score(&mut session, "turn on"),
            score(&mut session, "turn on off light"),
        );
        session.activate(after).unwrap();
        let expected = match base.kind {
            Kind::Decoder => whole,
            _ => bare,
        };
        assert_ne!(bare, whole);
        assert_eq!(score(&mut session, "turn on"), expected);
    });
}

#[test]
fn a_task_for_another_base_is_refused() {
    type Change = fn(&mut Task);
    let table: [(&str, Change); 5] = [
        ("trained for base", |task| task.base_id = Id([0; 32])),
        ("with tokenizer", |task| task.tokenizer_id = Id([0; 32])),
        ("its head", |task| task.labels.truncate(2)),
        ("its prompt is not rows", |task| {
            task.form = Form::Embeddings {
                tokens: 1,
                rows: vec![0.0; 5],
                place: Place::BeforeText,
            }
        }),
        ("other layers", |task| {
            let shape = crate::image::Layer {
                kv_heads: 1,
                head_dim: HIDDEN,
            };
            let layer = LayerKeyValues {
                shape,
                keys: vec![0.0; HIDDEN].into(),
                values: vec![0.0; HIDDEN].into(),
                gate: 0.0,
            };
            task.form = Form::KeyValues(KeyValues {
                tokens: 1,
                layers: [(2, layer)].into(),
                ..KeyValues::default()
            })
        }),
    ];
    with_session(Options::default(), |image, mut session| {
        let base = session.description().clone();
        for (text, change) in table {
            let mut task = task("t", embeddings(&image, &[1]), &base);
            change(&mut task);
            let error = session.add(task).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    });
}
