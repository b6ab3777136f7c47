//! What was put in comes out, from memory and from a mapped file.

use super::*;

fn sample(tokens: &[u32], trained: &[u8], weights: Option<&[f32]>) -> Sample {
    Sample {
        tokens: tokens.to_vec(),
        trained: trained.iter().map(|&t| t == 1).collect(),
        weights: weights.map(<[_]>::to_vec),
        preferred: None,
    }
}

fn samples() -> Vec<Sample> {
    vec![
        sample(&[5, 6, u32::MAX], &[0, 1, 1], None),
        sample(&[], &[], None),
        sample(&[1, 2, 3, 4, 5, 6, 7], &[0, 0, 0, 1, 0, 0, 1], None),
        sample(
            &[9, 8, 7, 6, 5, 4, 3, 2],
            &[0, 1, 1, 1, 0, 0, 1, 1],
            Some(&[1.0, 0.5, 0.5, 0.25, 1.0, 1.0, 2.0, 1.0]),
        ),
        sample(&[1, 2], &[0, 1], None),
    ]
}

fn store(samples: &[Sample], place: Place) -> Arc<Store> {
    let mut writer = Writer::new(place, &[0; 32]).unwrap();
    for sample in samples {
        writer.push(sample, false).unwrap();
    }
    Arc::new(match writer.finish(b"a report").unwrap() {
        Written::Memory(store) => store,
        Written::Unnamed(file, layout) => Store::mapped(file, layout).unwrap(),
        Written::Cache(file, layout) => Store::mapped(file.into_file(), layout).unwrap(),
    })
}

/// In memory and in a file.
fn both(samples: &[Sample]) -> [Arc<Store>; 2] {
    let directory = std::env::temp_dir();
    [Place::Memory, Place::Unnamed(directory)].map(|place| store(samples, place))
}

fn all(store: &Arc<Store>) -> Corpus {
    let max_length = usize::MAX;
    Corpus::new(vec![Part {
        store: Arc::clone(store),
        cut: Cut::Each { max_length },
        train_on_prompt: false,
        chosen: None,
    }])
}

#[test]
fn samples_come_out_as_they_went_in() {
    for store in both(&samples()) {
        assert!(store.is_sound());
        assert_eq!(store.report(), b"a report");
        let corpus = all(&store);
        assert_eq!(corpus.iter().collect::<Vec<_>>(), samples());
        for (i, sample) in samples().iter().enumerate() {
            assert_eq!(corpus.n_inputs(i), sample.n_inputs(), "{i}");
            assert_eq!(corpus.n_trained(i), sample.n_trained(), "{i}");
        }
        assert_eq!(corpus.get(5), None);
    }
}

#[test]
fn no_samples_are_none() {
    for store in both(&[]) {
        assert!(store.is_sound());
        let corpus = all(&store);
        assert!(corpus.is_empty() && corpus.iter().next().is_none());
    }
}

#[test]
fn trained_tokens_are_counted_in_any_range() {
    let trained: Vec<_> = (0..40_u32).map(|i| u8::from(i * i % 3 == 1)).collect();
    let tokens: Vec<_> = (0..40).collect();
    for store in both(&[sample(&tokens, &trained, None)]) {
        for start in 0..40 {
            for end in start..=40 {
                let expected: usize = trained[start..end].iter().map(|&t| usize::from(t)).sum();
                assert_eq!(store.n_trained(start..end), expected, "{start}..{end}");
            }
        }
    }
}

#[test]
fn longer_ones_are_cut_and_those_without_anything_trained_are_left_out() {
    for store in both(&samples()) {
        let (corpus, counts) = Corpus::of(store, Cut::Each { max_length: 3 }, false);
        let expected = [
            sample(&[5, 6, u32::MAX], &[0, 1, 1], None),
            sample(&[9, 8, 7], &[0, 1, 1], Some(&[1.0, 0.5, 0.5])),
            sample(&[1, 2], &[0, 1], None),
        ];
        assert_eq!(corpus, Corpus::from(expected.as_slice()));
        let expected = Counts {
            n_tokens: 8,
            n_trained: 5,
            n_truncated: 2,
            n_dropped: 2,
        };
        assert_eq!(counts, expected);
    }
}

#[test]
fn weights_of_one_alone_are_no_weights() {
    let plain = Corpus::from(vec![sample(&[4, 5], &[0, 1], Some(&[7.0, 1.0]))]);
    assert_eq!(plain.sample(0).weights, None);
    // Cut before the only one that counts otherwise.
    for store in both(&samples()) {
        let (corpus, _) = Corpus::of(store, Cut::Each { max_length: 2 }, false);
        assert_eq!(corpus.sample(1).weights, Some(vec![1.0, 0.5]));
    }
}

#[test]
fn prompts_are_trained_on_request_and_the_rest_keeps_its_weights() {
    for store in both(&samples()) {
        let (corpus, counts) = Corpus::of(store, Cut::Each { max_length: 6 }, true);
        assert_eq!(corpus.len(), 4);
        assert_eq!(
            corpus.sample(2),
            sample(
                &[9, 8, 7, 6, 5, 4],
                &[0, 1, 1, 1, 1, 1],
                Some(&[1.0, 0.5, 0.5, 0.25, 1.0, 1.0])
            )
        );
        assert_eq!((counts.n_trained, counts.n_dropped), (2 + 5 + 5 + 1, 1));
    }
}

#[test]
fn blocks_go_across_samples_and_train_all_but_their_first() {
    let documents = [
        sample(&[1, 2, 3], &[0, 1, 1], None),
        sample(&[], &[], None),
        sample(&[4, 5, 6, 7, 8, 9], &[0, 1, 1, 1, 1, 1], None),
    ];
    for store in both(&documents) {
        let blocks = |length| {
            let (corpus, _) = Corpus::of(Arc::clone(&store), Cut::Blocks { length }, false);
            corpus.iter().map(|block| block.tokens).collect::<Vec<_>>()
        };
        assert_eq!(blocks(4), [vec![1, 2, 3, 4], vec![5, 6, 7, 8]]);
        assert_eq!(blocks(5), [vec![1, 2, 3, 4, 5], vec![6, 7, 8, 9]]);
        let (corpus, counts) = Corpus::of(store, Cut::Blocks { length: 5 }, false);
        assert_eq!(corpus.sample(1).trained, [false, true, true, true]);
        assert_eq!((counts.n_tokens, counts.n_trained), (9, 7));
    }
}

#[test]
fn a_selection_of_a_selection_and_a_join_share_what_they_are_of() {
    for store in both(&samples()) {
        let corpus = all(&store);
        let some = corpus.select(|i| i % 2 == 0);
        assert_eq!(some.len(), 3);
        let fewer = some.select(|i| i > 0);
        assert_eq!(fewer.sample(0), samples()[2]);
        assert_eq!(fewer.sample(1), samples()[4]);
        let joined = Corpus::join([fewer, Corpus::from(Vec::new()), corpus.clone()]);
        assert_eq!(joined.len(), 7);
        assert_eq!(joined.sample(1), samples()[4]);
        assert_eq!(joined.sample(2), samples()[0]);
        assert_eq!(joined.n_inputs(4), 6);
        // Two numbers, and the store once.
        let expected = corpus.resident_bytes() + 2 * 4;
        assert_eq!(joined.resident_bytes(), expected);
    }
}

#[test]
fn pages_that_were_let_go_are_read_again() {
    let many: Vec<_> = (0..3000_u32)
        .map(|i| Sample::all_trained((i..i + 20).collect()))
        .collect();
    let [memory, mapped] = both(&many).map(|store| all(&store));
    // Much more than may stay resident, by the count of what a read brings in.
    for _ in 0..2 {
        assert_eq!(memory, mapped);
    }
}
