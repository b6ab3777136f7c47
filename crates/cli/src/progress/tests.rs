use std::collections::BTreeMap;

use olora_model::Dtype;
use olora_runs::{MemoryEstimate, Precision, Progress, StepReport, Summary};
use olora_training::Evaluation;

use super::*;

/// Everything that was said: what it was, and the words.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<(Line, String)>>>);

impl Said {
    fn take(&self) -> Vec<(Line, String)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn words(&self) -> Vec<String> {
        self.take().into_iter().map(|(_, words)| words).collect()
    }
}

/// As on a terminal, where there is a bar below the lines, and what it says.
fn display() -> (Display, Said) {
    let said = Said::default();
    let heard = said.clone();
    let display = Display {
        quiet: false,
        draws: true,
        has_result: true,
        go_on: "Go on",
        lines: Box::new(move |kind, head, text| {
            heard
                .0
                .lock()
                .unwrap()
                .push((kind, format!("{head}{text}")));
        }),
        state: Mutex::default(),
        total_steps: AtomicUsize::new(0),
    };
    (display, said)
}

fn precision() -> Precision {
    Precision {
        base: Dtype::F32,
        compute: Dtype::F32,
        in_bf16: None,
        fallback: Vec::new(),
    }
}

fn ready(total_steps: usize) -> Event {
    Event::Ready(RunPlan {
        directory: "runs/mine".into(),
        n_params: 1000,
        n_trained_params: 100,
        n_adapted_layers: 4,
        attach_seconds: 0.5,
        total_steps,
        batches_per_epoch: 10,
        epochs: 2.0,
        sequences_per_step: 8,
        in_pairs: false,
        n_samples: 80,
        precision: precision(),
        memory: MemoryEstimate::default(),
        device_memory: None,
    })
}

fn report(step: usize) -> StepReport {
    StepReport {
        step,
        loss: 1.25,
        learning_rate: 2e-4,
        grad_norm: 0.5,
        tokens: 400,
        tokens_per_second: 200.4,
        seconds: 2.0,
        peak_memory: Some(310_000_000),
        device_memory: None,
        measures: BTreeMap::new(),
        ranks: None,
    }
}

fn progress(step: usize, left: f64) -> Event {
    Event::Progress(Progress {
        step,
        total_steps: 20,
        seconds_left: Some(left),
    })
}

pub(super) fn summary() -> Summary {
    Summary {
        name: "mine".to_owned(),
        directory: "runs/mine".into(),
        result: "runs/mine/adapter".into(),
        finished: true,
        fingerprint: "0".to_owned(),
        steps: 20,
        stopped_early: false,
        train_loss: Some(0.5),
        validation_loss_before: Some(2.0),
        validation_loss: Some(1.0),
        best_step: Some(10),
        best_validation_loss: Some(0.9),
        concern: None,
        objective: None,
        validation_measures_before: BTreeMap::new(),
        validation_measures: BTreeMap::new(),
        tokens: 4000,
        tokens_per_second: 199.6,
        train_seconds: 20.0,
        wall_seconds: 75.0,
        attach_seconds: 0.5,
        peak_memory: Some(310_000_000),
        peak_device_memory: None,
        estimated_memory: MemoryEstimate {
            weights: 300_000_000,
            ..MemoryEstimate::default()
        },
        estimated_peak: 300_000_000,
        first_step_seconds: None,
        kernel_choices: 0,
        precision: precision(),
        n_params: 1000,
        n_trained_params: 100,
        device: "cpu".to_owned(),
        ranks: None,
        versions: BTreeMap::new(),
    }
}

#[test]
fn losses_norm_and_memory_stay_above_the_bar() {
    let (display, said) = display();
    Observer::on(&display, &ready(20));
    said.take();
    Observer::on(&display, &progress(10, 100.0));
    Observer::on(&display, &Event::Step(report(10)));
    let words = said.words();
    let [line] = words.as_slice() else {
        panic!("{words:?}");
    };
    assert!(
        line.starts_with(
            "step 10/20 | loss 1.2500 | lr 2.00e-4 | grad norm 0.500 | 200 tok/s | peak 310 MB | "
        ),
        "{line}"
    );
}

#[test]
fn a_line_says_how_long_it_takes_and_still_takes() {
    let (display, said) = display();
    Observer::on(&display, &ready(20));
    said.take();
    Observer::on(&display, &progress(10, 100.4));
    Observer::on(&display, &Event::Step(report(10)));
    let words = said.words();
    assert!(words[0].ends_with(" | 0 s, 1 min 40 s left"), "{words:?}");
}

#[test]
fn checkpoints_and_evaluations_stay_above_the_bar() {
    let (display, said) = display();
    Observer::on(&display, &ready(20));
    said.take();
    let evaluation = Evaluation {
        loss: 1.5,
        perplexity: Some(4.4817),
        count: 96.0,
        measures: BTreeMap::new(),
    };
    Observer::on(
        &display,
        &Event::Evaluated {
            step: 10,
            evaluation,
        },
    );
    let path = "runs/mine/checkpoints/step-000010".into();
    Observer::on(&display, &Event::Checkpoint { step: 10, path });
    assert_eq!(
        said.words(),
        [
            "step 10: validation loss 1.5000, perplexity 4.482 over 96 tokens",
            "step 10: checkpoint runs/mine/checkpoints/step-000010"
        ]
    );
}

#[test]
fn a_plan_is_said_part_by_part() {
    let (display, said) = display();
    Observer::on(&display, &ready(20));
    let words = said.words();
    assert_eq!(words[0], "adapters on 4 layers, initialised in 0.50 s");
    assert_eq!(
        words[1],
        "trainable: 100 parameters of 1000 parameters (10.00 %)"
    );
    assert_eq!(
        words[4],
        "plan: 20 steps of 8 sequences, 2.00 epochs over 80 samples"
    );
    assert_eq!(words[5], "run directory: runs/mine");
}

#[test]
fn notes_and_details_are_told_apart() {
    let (display, said) = display();
    Observer::on(&display, &Event::Note("odd".to_owned()));
    Observer::on(&display, &Event::Detail("more".to_owned()));
    let stage = "evaluation";
    Observer::on(
        &display,
        &Event::Took {
            stage,
            seconds: 1.5,
        },
    );
    assert_eq!(
        said.take(),
        [
            (Line::Note, "note: odd".to_owned()),
            (Line::Detail, "more".to_owned()),
            (Line::Detail, "evaluation: 1.50 s".to_owned()),
        ]
    );
}

#[test]
fn what_comes_of_a_run_is_said_where_stdout_is_not_beside_it() {
    let (mut display, said) = display();
    let finished = Event::Finished(Box::new(summary()));
    Observer::on(&display, &finished);
    assert_eq!(said.words(), [""; 0]);
    display.has_result = false;
    Observer::on(&display, &finished);
    assert_eq!(
        said.words(),
        [
            "done: 20 steps, 4000 tokens in 20.0 s of training (200 tok/s), 75.0 s in all, peak 310 MB \
          (estimated 300 MB)\nvalidation loss: 2.0000 before, 1.0000 after (lowest 0.9000 at step 10)\
          \nresult: runs/mine/adapter"
        ]
    );
}

#[test]
fn an_interruption_says_what_goes_on() {
    let (display, said) = display();
    Observer::on(&display, &ready(20));
    said.take();
    Observer::on(&display, &Event::Interrupted(7));
    let expected = "interrupted after step 7; a checkpoint is written. Go on";
    assert_eq!(said.words(), [expected]);
}

#[test]
fn the_full_screen_view_leaves_nothing_but_the_number_of_steps() {
    let (mut display, said) = display();
    display.quiet = true;
    Observer::on(&display, &ready(20));
    Observer::on(&display, &Event::Step(report(10)));
    assert_eq!((said.words().len(), display.total_steps()), (0, 20));
}

fn told(lines: &[(&'static str, String)]) -> Vec<String> {
    lines
        .iter()
        .map(|(head, text)| format!("{head}: {text}"))
        .collect()
}

#[test]
fn the_summary_of_a_finished_run_says_how_to_try_it() {
    assert_eq!(
        told(&result::lines(
            &summary(),
            20,
            "olora train mine.toml --resume"
        )),
        [
            "finished: 20 of 20 steps",
            "run directory: runs/mine",
            "training loss: 0.5000, the last",
            "validation loss: 2.0000 before, 1.0000 after (lowest 0.9000 at step 10)",
            "trained: 100 parameters of 1000 parameters (10.00 %)",
            "time: 20 s of training, 1 min 15 s in all; 4000 tokens, 200 tokens/s",
            "memory: peak 310 MB (estimated 300 MB)",
            "adapter: runs/mine/adapter",
            "to try it: olora generate --adapter runs/mine --prompt \"…\"",
        ]
    );
}

#[test]
fn the_summary_of_an_interrupted_run_says_what_goes_on() {
    let interrupted = Summary {
        finished: false,
        steps: 7,
        ..summary()
    };
    let lines = told(&result::lines(
        &interrupted,
        20,
        "olora train mine.toml --resume",
    ));
    assert_eq!(lines[0], "interrupted: 7 of 20 steps");
    assert!(
        lines.contains(&"to go on: olora train mine.toml --resume".to_owned()),
        "{lines:?}"
    );
    assert!(
        !lines.iter().any(|line| line.starts_with("adapter")),
        "{lines:?}"
    );
}

#[test]
fn a_run_of_every_weight_leaves_a_model() {
    let whole = Summary {
        result: "my runs/mine/model".into(),
        ..summary()
    };
    let lines = told(&result::lines(&whole, 20, ""));
    assert_eq!(
        lines[lines.len() - 2..],
        [
            "model: my runs/mine/model",
            "to try it: olora generate --model 'my runs/mine/model' --prompt \"…\"",
        ]
    );
}

#[test]
fn a_step_is_an_event_with_its_times() {
    let begin = Instant::now();
    let mut clock = Clock::default();
    clock.begin(begin);
    clock.set(Some(100.0), begin);
    let event = events::of(
        &Event::Step(report(10)),
        &clock,
        20,
        begin + Duration::from_secs(4),
    );
    let event = event.unwrap();
    for (key, value) in [
        ("event", serde_json::json!("step")),
        ("step", 10.into()),
        ("total_steps", 20.into()),
        ("loss", 1.25.into()),
        ("grad_norm", 0.5.into()),
        ("elapsed", 4.0.into()),
        ("seconds_left", 96.0.into()),
    ] {
        assert_eq!(event[key], value, "{key}");
    }
}

#[test]
fn an_evaluation_is_an_event() {
    let evaluation = Evaluation {
        loss: 1.5,
        perplexity: None,
        count: 96.0,
        measures: [("rewards/margins".to_owned(), 0.5)].into(),
    };
    let event = Event::Evaluated {
        step: 10,
        evaluation,
    };
    let event = events::of(&event, &Clock::default(), 20, Instant::now());
    assert_eq!(
        event.unwrap(),
        serde_json::json!({
            "event": "evaluation", "step": 10, "loss": 1.5, "count": 96,
            "measures": { "rewards/margins": 0.5 },
        })
    );
}

#[test]
fn a_trial_that_diverged_has_no_loss() {
    let event = ComparisonEvent::TrialFinished {
        name: "lora-r8",
        loss: f64::INFINITY,
        seconds: 2.0,
    };
    assert_eq!(
        events::of_comparison(&event).unwrap(),
        serde_json::json!({
            "event": "trial_finished", "name": "lora-r8", "loss": null, "seconds": 2.0,
        })
    );
}
