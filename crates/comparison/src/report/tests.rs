use std::collections::BTreeMap;

use super::*;
use crate::protocol::write_json;

/// A run of two steps whose losses are 3 and `last`.
fn trial(variant: &str, rate: f64, seed: u64, last: f64) -> Trial {
    let recipe = "name = \"x\"\nmodel.path = \"base\"\ndata.train = \"train.jsonl\"";
    Trial {
        variant: variant.to_owned(),
        rank: 8,
        learning_rate: rate,
        seed,
        fingerprint: "0".to_owned(),
        diverged: None,
        validation: vec![(0, 3.0), (2, last)],
        training: Vec::new(),
        measures: BTreeMap::new(),
        steps: 2,
        tokens: 10,
        trained_params: 100,
        attach_seconds: 1.0,
        train_seconds: 4.0,
        wall_seconds: 6.0,
        peak_memory: Some(1 << 20),
        device: "cpu".to_owned(),
        finished: "2026-01-02T03:04:05Z".to_owned(),
        versions: BTreeMap::new(),
        recipe: Recipe::parse(recipe, "test", &[]).unwrap(),
    }
}

fn report(trials: &[Trial]) -> Result<Report, ComparisonError> {
    chosen_by(trials, 0, false)
}

/// With so many seeds that choose and are not reported, from 1 on.
fn chosen_by(
    trials: &[Trial],
    tuning_seeds: usize,
    by_length: bool,
) -> Result<Report, ComparisonError> {
    let directory = tempfile::tempdir().unwrap();
    for (index, trial) in trials.iter().enumerate() {
        let path = directory.path().join(format!("cells/{index}.json"));
        write_json(&path, trial).unwrap();
    }
    let protocol = Protocol {
        tuning_seed: 1,
        tuning_seeds,
        by_length,
        fingerprint: "0".to_owned(),
        recipe: common(&trials[0].recipe, by_length).unwrap(),
    };
    protocol.establish(directory.path()).unwrap();
    Report::read(directory.path())
}

fn three_seeds() -> Vec<Trial> {
    vec![
        trial("olora", 1e-4, 1, 1.5),
        trial("olora", 1e-3, 1, 1.0),
        trial("olora", 1e-2, 1, 2.5),
        trial("olora", 1e-3, 2, 1.1),
        trial("olora", 1e-3, 3, 0.9),
        trial("lora", 1e-3, 1, 2.1),
        trial("lora", 1e-2, 1, 2.0),
        trial("lora", 1e-2, 2, 2.0),
        trial("lora", 1e-2, 3, 2.0),
    ]
}

#[test]
fn each_method_is_judged_at_its_best_rate_of_the_first_seed() {
    let report = report(&three_seeds()).unwrap();
    let rates: Vec<(String, f64, usize)> = report
        .groups
        .iter()
        .map(|group| (group.variant.to_string(), group.rate, group.trials.len()))
        .collect();
    assert_eq!(
        rates,
        [("lora".to_owned(), 1e-2, 3), ("olora".to_owned(), 1e-3, 3)]
    );
    assert_eq!(report.reference, Variant::LORA);
    // LoRA's best is the highest that was tried, OLoRA's is not.
    let text = report.markdown();
    assert!(
        text.contains("lora at rank 8 was best at the highest rate tried, 1e-2"),
        "{text}"
    );
    assert!(!text.contains("olora at rank 8 was best at"), "{text}");
}

/// Differences -1.0, -0.9, -1.1; 2.0 is met after 1.0, 2/1.9 and 2/2.1 steps
/// of 2 seconds, after a start of one.
#[test]
fn differences_and_steps_are_taken_seed_by_seed() {
    let report = report(&three_seeds()).unwrap();
    let standing = report.standing(&report.groups[1]).unwrap();
    let loss = standing.loss.unwrap();
    assert!((loss.mean + 1.0).abs() < 1e-9 && loss.is_clear());
    assert!((loss.half_width - 4.302_653 * 0.1 / 3_f64.sqrt()).abs() < 1e-6);
    for (found, expected) in standing.steps.iter().zip([1.0, 2.0 / 1.9, 2.0 / 2.1]) {
        assert!((found.unwrap() - expected).abs() < 1e-9, "{found:?}");
    }
    assert!((standing.seconds[0].unwrap() - 3.0).abs() < 1e-9);
    let text = report.markdown();
    let sentence = "**olora at rank 8**: its last loss is lower by 1.0000 ± 0.2484; its mean loss over the \
                    run is lower by 0.5000 ± 0.1242; all seeds stay at or below lora's last loss after 1.0 ± 0.1 \
                    of 2 steps.";
    assert!(text.contains(sentence), "{text}");
}

#[test]
fn what_cannot_be_told_apart_is_said_to_be_so() {
    let mut trials = three_seeds();
    for (index, last) in [(1, 2.3), (3, 1.7), (4, 2.1), (0, 2.9)] {
        trials[index].validation[1].1 = last;
    }
    let report = report(&trials).unwrap();
    let text = report.markdown();
    assert!(
        text.contains("its last loss cannot be told from lora's (+0.0333 ±"),
        "{text}"
    );
    assert!(
        text.contains("1 of 3 seeds end at or below lora's last loss"),
        "{text}"
    );
}

#[test]
fn runs_on_other_data_are_not_compared() {
    let mut trials = three_seeds();
    trials[3].fingerprint = "1".to_owned();
    let error = report(&trials).unwrap_err().to_string();
    assert!(
        error.contains("is of another recipe, of other data"),
        "{error}"
    );
}

#[test]
fn runs_of_another_length_are_not_compared() {
    let mut trials = three_seeds();
    trials[3].recipe.training.max_steps = Some(400);
    let error = report(&trials).unwrap_err().to_string();
    assert!(
        error.contains("is of another recipe, of other data"),
        "{error}"
    );
}

#[test]
fn a_seed_that_diverged_is_left_out_and_named() {
    let mut trials = three_seeds();
    // LoRA's second seed.
    trials[7].diverged = Some("the loss became NaN".to_owned());
    let report = report(&trials).unwrap();
    let standing = report.standing(&report.groups[1]).unwrap();
    assert_eq!(standing.steps.len(), 2);
    assert!(standing.steps.iter().all(|steps| steps.unwrap() > 0.9));
    let text = report.markdown();
    assert!(text.contains("lora at rank 8 diverged on seed 2"), "{text}");
    assert!(
        text.contains("| lora | 1e-2 | 2, 1 more diverged | 2.0000"),
        "{text}"
    );
    assert!(!text.contains("inf") && !text.contains("NaN"), "{text}");
}

#[test]
fn a_method_that_diverged_at_every_rate_is_named() {
    let mut trials = three_seeds();
    for trial in &mut trials[..5] {
        trial.diverged = Some("the loss became NaN".to_owned());
    }
    let text = report(&trials).unwrap().markdown();
    assert!(
        text.contains("olora at rank 8 diverged at every rate"),
        "{text}"
    );
    assert!(text.contains("| olora | diverged at all |"), "{text}");
    assert!(!text.contains("NaN"), "{text}");
}

#[test]
fn seeds_that_choose_are_not_reported_and_diverged_ones_are_counted_at_one_rate() {
    let mut trials = Vec::new();
    for (variant, best, losses) in [("lora", 1e-2, [2.0, 2.2]), ("olora", 1e-3, [1.0, 1.4])] {
        for rate in [1e-3, 1e-2] {
            let place = usize::from(rate != best);
            // By the mean of both: seed 1 alone would choose the other.
            trials.push(trial(
                variant,
                rate,
                1,
                losses[place] + if place == 0 { 0.5 } else { 0.0 },
            ));
            trials.push(trial(
                variant,
                rate,
                2,
                losses[place] - if place == 0 { 0.5 } else { 0.0 },
            ));
        }
        for seed in [3, 4, 5] {
            trials.push(trial(variant, best, seed, losses[0] + 0.1 * seed as f64));
        }
    }
    // LoRA's rate for OLoRA too, where one diverges.
    for seed in [3, 4, 5] {
        let mut other = trial("olora", 1e-2, seed, 1.9);
        other.diverged = (seed == 4).then(|| "the loss became NaN".to_owned());
        trials.push(other);
    }
    let report = chosen_by(&trials, 2, false).unwrap();
    let json = report.to_json();
    for (group, rate) in [(0, 1e-2), (1, 1e-3)] {
        assert_eq!(json["groups"][group]["learning_rate"], rate);
        assert_eq!(json["groups"][group]["seeds"], json!([3, 4, 5]));
        assert!(json["groups"][group]["p_holm"].is_null() == (group == 0));
    }
    let text = report.markdown();
    assert!(
        text.contains("those seeds are not among those that are averaged"),
        "{text}"
    );
    let at_one_rate = text.split("### At one rate for all").nth(1).unwrap();
    assert!(at_one_rate.contains("| 1e-2 | lora | 3 | 2.4000"), "{text}");
    assert!(
        at_one_rate.contains("| 1e-2 | olora | 2, 1 more diverged | 1.9000"),
        "{text}"
    );
    let svg = pictures::rates(&report).figure.svg().unwrap();
    assert!(svg.contains("last loss by learning rate"));
    assert!(svg.contains("mean of the 2 seeds that choose"));
}

#[test]
fn a_run_with_a_schedule_of_its_own_is_interpolated_between_lengths() {
    let mut trials = Vec::new();
    for (variant, losses) in [("lora", [2.0, 1.0]), ("olora", [1.0, 0.5])] {
        for (steps, loss) in [2, 4].into_iter().zip(losses) {
            for seed in [1, 2, 3] {
                let mut one = trial(variant, 1e-3, seed, loss);
                one.recipe.training.max_steps = Some(steps);
                (one.steps, one.validation) = (steps, vec![(0, 3.0), (steps, loss)]);
                trials.push(one);
            }
        }
    }
    let text = chosen_by(&trials, 1, true).unwrap().markdown();
    assert!(text.contains("## Rank 8, 4 steps"), "{text}");
    // OLoRA is there after the shorter run, LoRA at 1.25 times it between the two.
    assert!(text.contains("| olora | 2.0 ± 0.0 | 2.0 ± 0.0 |"), "{text}");
    assert!(text.contains("| lora | 3.4 ± 0.0 | 4.0 ± 0.0 |"), "{text}");
}

#[test]
fn one_method_alone_has_pictures() {
    let report = report(&three_seeds()[5..]).unwrap();
    for picture in [
        pictures::losses(&report),
        pictures::steps(&report),
        pictures::rates(&report),
    ] {
        let svg = picture.figure.svg().unwrap();
        assert!(svg.contains("lora") && !svg.contains("NaN"));
    }
    // Nothing was logged of training.
    assert_eq!(pictures::training(&report).figure.svg(), None);
}

/// OLoRA ends below LoRA's 2.0 on two of three seeds.
#[test]
fn a_method_that_is_not_there_on_all_seeds_has_no_bar() {
    let mut trials = three_seeds();
    trials[4].validation[1].1 = 2.4;
    let report = report(&trials).unwrap();
    let picture = pictures::steps(&report);
    let svg = picture.figure.svg().unwrap();
    assert!(
        svg.contains("not reached in 2 steps by 1 of 3 seeds"),
        "{svg}"
    );
    let csv = picture.table.csv();
    assert!(csv.contains("\n8,2,olora,0.001,3,,,2\n"), "{csv}");
    assert!(csv.contains("\n8,2,lora,0.01,1,2,5,2\n"), "{csv}");
}

#[test]
fn a_rate_that_diverged_is_an_arrow_in_the_picture_and_inf_in_its_table() {
    let mut trials = three_seeds();
    trials[2].diverged = Some("the loss became NaN".to_owned());
    let picture = pictures::rates(&report(&trials).unwrap());
    let svg = picture.figure.svg().unwrap();
    assert!(svg.contains("arrow at the top: diverged"));
    let csv = picture.table.csv();
    assert!(csv.contains("\n8,2,olora,0.001,0.01,inf\n"), "{csv}");
}

#[test]
fn losses_are_drawn_over_steps_and_over_seconds() {
    let picture = pictures::losses(&report(&three_seeds()).unwrap());
    let svg = picture.figure.svg().unwrap();
    for said in [
        "rank 8: validation loss",
        "rank 8: validation loss over time",
        "seconds of training",
        "mean of 3 seeds; band: lowest to highest of the seeds",
    ] {
        assert!(svg.contains(said), "{said}");
    }
    // The start of one second, and two steps of two.
    let csv = picture.table.csv();
    assert!(csv.contains("\n8,2,lora,0.01,2,5,2,2,2,3\n"), "{csv}");
}

#[test]
fn a_base_that_is_packed_is_said_to_be() {
    let mut trials = three_seeds();
    let text = report(&trials).unwrap().markdown();
    assert!(text.contains("| base | `base` |"), "{text}");
    for trial in &mut trials {
        trial.recipe.model.quantize = "nf4".parse().unwrap();
    }
    let text = report(&trials).unwrap().markdown();
    assert!(
        text.contains("| base | `base`, `model.quantize = \"nf4\"` |"),
        "{text}"
    );
}
