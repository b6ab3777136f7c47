//! The order of a run, its resumption and its refusals.

use super::*;

/// Sample `i` begins with token `i` and has a length all its own.
fn samples(n: u32) -> Vec<Sample> {
    let tokens = |i: u32| (0..i * 7 % n + 2).map(|j| i + j).collect();
    (0..n).map(|i| Sample::all_trained(tokens(i))).collect()
}

fn firsts(schedule: &Schedule, batches: Range<usize>) -> Vec<u32> {
    batches
        .flat_map(|i| schedule.get(i).unwrap().rows.concat())
        .map(|sample| sample.tokens[0])
        .collect()
}

#[test]
fn each_epoch_has_every_sample_once_and_an_order_of_its_own() {
    let schedule = Schedule::new(samples(103), 4, 42, 78).unwrap();
    assert_eq!(schedule.n_batches_per_epoch(), 26);
    let epochs: Vec<_> = (0..3)
        .map(|e| firsts(&schedule, e * 26..(e + 1) * 26))
        .collect();
    for epoch in &epochs {
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..103).collect::<Vec<_>>());
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    // Going back to an epoch gives the same order, and so does a second schedule.
    let again = Schedule::new(samples(103), 4, 42, 78).unwrap();
    assert_eq!(firsts(&schedule, 0..26), epochs[0]);
    assert_eq!(firsts(&again, 26..52), epochs[1]);
    let other = Schedule::new(samples(103), 4, 43, 78).unwrap();
    assert_ne!(firsts(&other, 0..26), epochs[0]);
}

#[test]
fn grouping_by_length_pads_less() {
    let grouped = Schedule::new(samples(1000), 8, 1, 125)
        .unwrap()
        .padding_share();
    let best = Schedule::sequential(samples(1000), 8)
        .unwrap()
        .padding_share();
    assert!(
        best > 0.0 && best < grouped && grouped < 0.05,
        "{best} {grouped}"
    );
    // Batches do not come shortest first: what a window sorts, the batches' shuffle undoes.
    let schedule = Schedule::new(samples(1000), 8, 1, 125).unwrap();
    let lengths: Vec<_> = (0..125)
        .map(|i| schedule.get(i).unwrap().rows[0][0].len())
        .collect();
    assert!(!lengths[..50].is_sorted());
}

#[test]
fn sequential_is_every_sample_once_shortest_first() {
    let schedule = Schedule::sequential(samples(10), 3).unwrap();
    let lengths: Vec<_> = (0..schedule.len())
        .flat_map(|i| schedule.get(i).unwrap().rows.concat())
        .map(|s| s.len())
        .collect();
    assert_eq!(lengths, (2..12).collect::<Vec<_>>());
}

#[test]
fn the_loader_keeps_the_order_and_a_slice_is_the_tail() {
    // More batches than Burn queues, so that several workers would show.
    let schedule = || Schedule::new(samples(50), 4, 7, 500).unwrap();
    let expected: Vec<_> = (0..500)
        .map(|i| Batch::from_samples(&schedule().get(i).unwrap().rows.concat(), 0))
        .collect();
    let loader = loader(schedule(), 0);
    let all: Vec<_> = loader.iter().map(Result::unwrap).collect();
    assert_eq!(all, expected);
    let tail: Vec<_> = loader.slice(217, 500).iter().map(Result::unwrap).collect();
    assert_eq!(tail, expected[217..]);
}

#[test]
fn what_cannot_be_scheduled_is_refused() {
    let error = Schedule::new(samples(3), 0, 0, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`batch size` is 0, but must be at least 1"
    );
    let error = Schedule::sequential(Vec::new(), 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`number of samples` is 0, but must be at least 1"
    );
    let error = Schedule::sequential(samples(3), 1)
        .unwrap()
        .get(3)
        .unwrap_err();
    assert_eq!(error.to_string(), "`micro-batch` is 3, but must be below 3");
}

fn packed(n_batches: usize) -> Schedule {
    Schedule::packed(samples(103), 4, 128, 7, n_batches).unwrap()
}

#[test]
fn packed_epochs_have_every_sample_once_and_as_many_batches() {
    let per_epoch = packed(1).n_batches_per_epoch();
    assert!(per_epoch < 103_usize.div_ceil(4), "{per_epoch}");
    let schedule = packed(3 * per_epoch);
    let epochs: Vec<_> = (0..3)
        .map(|e| firsts(&schedule, e * per_epoch..(e + 1) * per_epoch))
        .collect();
    for epoch in &epochs {
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..103).collect::<Vec<_>>());
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
}

#[test]
fn packed_batches_hold_what_unpacked_ones_do_and_nothing_across_samples() {
    /// What the model reads of a sample, and where it is judged by what,
    /// counted from the sample's own beginning.
    type Document = (Vec<i32>, Vec<(usize, i32)>);
    fn documents(batch: &Batch) -> Vec<Document> {
        let mut documents: Vec<Document> = Vec::new();
        for row in 0..batch.n_rows {
            let whole_row = || {
                // Padding is 0 here, and no token is.
                let row = &batch.inputs[row * batch.seq_len..(row + 1) * batch.seq_len];
                vec![row.iter().filter(|&&token| token != 0).count()]
            };
            let mut start = row * batch.seq_len;
            for length in batch
                .segments
                .as_ref()
                .map_or_else(whole_row, |s| s[row].clone())
            {
                let range = start..start + length;
                let pairs = batch
                    .target_positions
                    .iter()
                    .zip(&batch.targets)
                    .take(batch.n_trained);
                let within = pairs
                    .filter(|(at, _)| range.contains(&(**at as usize)))
                    .map(|(at, target)| (*at as usize - start, *target));
                documents.push((batch.inputs[range.clone()].to_vec(), within.collect()));
                start += length;
            }
            assert!(start <= (row + 1) * batch.seq_len);
        }
        // Nothing is judged outside of samples.
        let n_judged: usize = documents.iter().map(|(_, judged)| judged.len()).sum();
        assert_eq!(n_judged, batch.n_trained);
        documents
    }
    let samples: Vec<_> = (1..200_u32)
        .map(|i| {
            let tokens: Vec<_> = (0..2 + i * i % 50).map(|j| 1000 * i + j).collect();
            let trained = (0..tokens.len()).map(|j| j > tokens.len() / 3).collect();
            Sample::new(tokens, trained)
        })
        .collect();
    let documents_of = |schedule: Schedule| {
        let n = schedule.n_batches_per_epoch();
        let batches = loader(schedule, 0).slice(0, n);
        let mut all: Vec<_> = batches
            .iter()
            .flat_map(|b| documents(&b.unwrap()))
            .collect();
        all.sort();
        all
    };
    let packed = documents_of(Schedule::packed(samples.clone(), 4, 64, 1, 1000).unwrap());
    let plain = documents_of(Schedule::new(samples, 4, 1, 1000).unwrap());
    assert_eq!(packed.len(), 199);
    assert_eq!(packed, plain);
}

#[test]
fn a_packed_run_goes_on_in_the_middle_as_if_it_had_not_stopped() {
    let all: Vec<_> = loader(packed(60), 0).iter().map(Result::unwrap).collect();
    let tail = loader(packed(60), 0).slice(31, 60);
    let tail: Vec<_> = tail.iter().map(Result::unwrap).collect();
    assert_eq!(tail, all[31..]);
}

#[test]
fn packing_leaves_little_padding() {
    let share = packed(1).padding_share();
    assert!(share < 0.05, "{share}");
    // As many rows as the inputs fill, and few more.
    let n_inputs: usize = samples(103).iter().map(Sample::n_inputs).sum();
    let least = n_inputs.div_ceil(128);
    assert!(packed(1).n_rows_per_epoch() <= least + 1, "{least}");
}

/// Two sources of which the first tokens tell: below 100, and from 1000 on.
fn mixed(weights: [f64; 2]) -> Mixture {
    let second = samples(40).into_iter().map(|sample| {
        let tokens = sample.tokens.iter().map(|token| 1000 + token);
        Sample::all_trained(tokens.collect())
    });
    let sources = [Corpus::from(samples(30)), second.collect()];
    Mixture::new(sources.into_iter().zip(weights)).unwrap()
}

#[test]
fn mixed_epochs_hold_what_their_weights_say_and_end_where_they_say() {
    let mixture = mixed([0.3, 0.26]);
    for batch_size in [1, 4] {
        let n = |n_epochs: usize| {
            let rows = (0..n_epochs).map(|epoch| mixture.n_samples_in(epoch));
            rows.map(|n| n.div_ceil(batch_size)).sum::<usize>()
        };
        let schedule = Schedule::new(mixture.clone(), batch_size, 7, n(100)).unwrap();
        for epochs in [0, 1, 2, 17, 100] {
            assert_eq!(schedule.n_batches_in(epochs as f64), n(epochs), "{epochs}");
        }
        let half = ((n(4) - n(3)) as f64 * 0.5).round() as usize;
        assert_eq!(schedule.n_batches_in(3.5), n(3) + half);
        let mut counts = std::collections::BTreeMap::new();
        for epoch in 0..100 {
            let firsts = firsts(&schedule, n(epoch)..n(epoch + 1));
            assert_eq!(firsts.len(), mixture.n_samples_in(epoch));
            for first in firsts {
                *counts.entry(first).or_insert(0) += 1;
            }
        }
        let expected = |first: u32| if first < 1000 { 30 } else { 26 };
        assert_eq!(counts.len(), 70);
        for (first, n) in counts {
            assert_eq!(n, expected(first), "{first}");
        }
    }
}

#[test]
fn one_source_of_weight_1_is_in_the_order_of_no_mixture() {
    let plain = Schedule::new(samples(103), 4, 42, 78).unwrap();
    let sources = [(Corpus::from(samples(103)), 1.0)];
    let mixture = Mixture::new(sources).unwrap();
    let mixed = Schedule::new(mixture, 4, 42, 78).unwrap();
    assert_eq!(firsts(&mixed, 0..78), firsts(&plain, 0..78));
    assert_eq!(plain.n_batches_in(2.5), 65);
}

#[test]
fn a_mixed_run_goes_on_in_the_middle_as_if_it_had_not_stopped() {
    for packed in [false, true] {
        let schedule = || {
            let mixture = mixed([1.5, 0.26]);
            if packed {
                Schedule::packed(mixture, 4, 64, 3, 100).unwrap()
            } else {
                Schedule::new(mixture, 4, 3, 100).unwrap()
            }
        };
        let all: Vec<_> = loader(schedule(), 0).iter().map(Result::unwrap).collect();
        let tail = loader(schedule(), 0).slice(61, 100);
        let tail: Vec<_> = tail.iter().map(Result::unwrap).collect();
        assert_eq!(tail, all[61..]);
        let other = Schedule::new(mixed([1.5, 0.26]), 4, 4, 100).unwrap();
        assert_ne!(firsts(&other, 0..5), firsts(&schedule(), 0..5));
    }
}

#[test]
fn packed_mixtures_hold_each_epochs_samples_once_in_rows_that_fit() {
    let mixture = mixed([1.5, 0.26]);
    let schedule = Schedule::packed(mixture.clone(), 2, 64, 3, 1000).unwrap();
    let mut end = 0;
    for epoch in 0..10 {
        let start = end;
        end = schedule.n_batches_in((epoch + 1) as f64);
        let mut found = firsts(&schedule, start..end);
        found.sort_unstable();
        let expected = mixture.indices(3, epoch).unwrap().into_iter();
        let expected = expected.map(|i| mixture.corpus().sample(i as usize).tokens[0]);
        assert_eq!(found, expected.collect::<Vec<_>>());
        for i in start..end {
            for row in schedule.get(i).unwrap().rows {
                let length: usize = row.iter().map(Sample::n_inputs).sum();
                assert!(length <= 64, "{length}");
            }
        }
    }
}

#[test]
fn weights_go_with_their_samples() {
    let samples: Vec<_> = (0..9_u32)
        .map(|i| Sample {
            weights: (i % 2 == 1).then(|| vec![1.0, 0.5 * i as f32, 2.0]),
            ..Sample::all_trained(vec![i, i, i])
        })
        .collect();
    let batches = [
        loader(Schedule::new(samples.clone(), 3, 1, 3).unwrap(), 0),
        loader(Schedule::packed(samples, 3, 4, 1, 2).unwrap(), 0),
    ];
    for loader in batches {
        let mut n = 0;
        for batch in loader.iter().map(Result::unwrap) {
            let ones = vec![1.0; batch.targets.len()];
            let weights = batch.target_weights.unwrap_or(ones);
            for (pair, token) in weights.chunks(2).zip(batch.targets.chunks(2)) {
                let expected = match token[0] {
                    i if i % 2 == 1 => [0.5 * i as f32, 2.0],
                    _ => [1.0, 1.0],
                };
                assert_eq!(pair, expected);
                n += 1;
            }
        }
        assert_eq!(n, 9);
    }
}

#[test]
fn the_size_of_a_batch_is_known_without_its_tokens() {
    let masked: Vec<_> = samples(103)
        .into_iter()
        .map(|mut sample| {
            let n = sample.len();
            sample.trained = (0..n).map(|i| i > n / 2).collect();
            sample
        })
        .collect();
    let padding = Padding {
        id: 0,
        multiple: 16,
    };
    for schedule in [
        Schedule::new(masked.clone(), 4, 7, 40).unwrap(),
        Schedule::packed(masked, 4, 128, 7, 20).unwrap(),
    ] {
        for i in 0..schedule.len() {
            let item = schedule.get(i).unwrap();
            let expected = BatchSize::of(&item.batch(padding));
            assert_eq!(schedule.size(i, padding).unwrap(), expected, "{i}");
        }
        assert!(schedule.size(schedule.len(), padding).is_err());
    }
}
