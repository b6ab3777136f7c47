use std::sync::{Arc, Mutex};

use burn::train::metric::{MetricEntry, SerializedEntry};

use super::*;

/// What Burn's view makes of what it is told: places count pushes, splits keep the
/// total they were started with.
#[derive(Default)]
struct View {
    /// The next place, which both splits share.
    next: usize,
    /// Split, place and value of each point.
    points: Vec<(&'static str, usize, f64)>,
    epochs: (usize, usize),
    items: (usize, usize),
    is_valid: bool,
    label: String,
    iterations: usize,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<View>>);

impl Shared {
    fn push(&self, split: &'static str, state: MetricState) {
        let view = &mut *self.0.lock().unwrap();
        let MetricState::Numeric(_, value) = state else {
            return;
        };
        match value {
            Some(NumericEntry::Final(_)) => return,
            Some(value) => view.points.push((split, view.next, value.current())),
            None => {}
        }
        view.next += 1;
    }
}

impl MetricsRendererTraining for Shared {
    fn update_train(&mut self, state: MetricState) {
        self.push("train", state);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.push("valid", state);
    }
}

impl TrainingProgressLogger for Shared {
    fn start(&mut self, total: usize, epoch: usize, _: Option<usize>, label: Option<&str>) {
        let mut view = self.0.lock().unwrap();
        view.epochs = (epoch, total);
        view.label = label.unwrap_or_default().to_owned();
    }
    fn update_epoch(&mut self, _epoch: usize) {}
    fn start_split(&mut self, split: &str, total_items: usize) {
        let mut view = self.0.lock().unwrap();
        view.items = (0, total_items);
        view.is_valid = split == "valid";
    }
    fn update_split(&mut self, items_processed: usize) {
        self.0.lock().unwrap().items.0 = items_processed;
    }
    fn end_split(&mut self) {}
    fn end(&mut self) {}
    fn log_event_training(&mut self, _event: String) {
        self.0.lock().unwrap().iterations += 1;
    }
}

impl MetricsRendererEvaluation for Shared {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}
}

impl EvaluationProgressLogger for Shared {
    fn start_global_progress(&mut self, _total_tests: usize) {}
    fn start_test(&mut self, _name: &str, _total_items: usize) {}
    fn update_test_progress(&mut self, _items_processed: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _event: String) {}
}

impl MetricsRenderer for Shared {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, _definition: MetricDefinition) {}
}

fn loss(value: f64) -> MetricState {
    let id = MetricId::new(Arc::new("Loss".to_owned()));
    let entry = MetricEntry::new(id, SerializedEntry::new(String::new(), String::new()));
    MetricState::Numeric(entry, Some(NumericEntry::Value(value)))
}

/// Sixty steps in three epochs, and the view of them.
fn renderer() -> (BySteps, Shared, SecondsLeft) {
    renderer_after(0)
}

fn renderer_after(step: usize) -> (BySteps, Shared, SecondsLeft) {
    let epochs = Epochs {
        total_steps: 60,
        n_batches: 60,
        batches_per_epoch: 20,
        accumulation: 1,
    };
    let (view, left) = (Shared::default(), SecondsLeft::default());
    let mut renderer = BySteps::new(Box::new(view.clone()), epochs, left.clone(), step);
    renderer.start(1, 1, None, None);
    renderer.start_split("train", 60);
    (renderer, view, left)
}

/// As Burn's processor does it: the numbers, then how far it is.
fn log(renderer: &mut BySteps, step: usize, value: f64) {
    renderer.update_train(loss(value));
    renderer.update_split(step);
    renderer.log_event_training("Iteration".to_owned());
}

fn evaluate(renderer: &mut BySteps, step: usize, value: f64) {
    renderer.start_split("valid", 60);
    renderer.update_valid(loss(value));
    renderer.update_split(step);
    renderer.end_split();
}

#[test]
fn a_number_stands_at_its_step() {
    let (mut renderer, view, _) = renderer();
    evaluate(&mut renderer, 0, 5.0);
    for step in [10, 20, 30] {
        log(&mut renderer, step, 1.0);
    }
    evaluate(&mut renderer, 30, 4.0);
    log(&mut renderer, 40, 1.0);
    let expected = [
        ("valid", 0, 5.0),
        ("train", 10, 1.0),
        ("train", 20, 1.0),
        ("train", 30, 1.0),
        // Burn's own limit: the place is taken.
        ("valid", 31, 4.0),
        ("train", 40, 1.0),
    ];
    assert_eq!(view.0.lock().unwrap().points, expected);
}

#[test]
fn a_run_that_goes_on_begins_where_it_stands() {
    let (mut renderer, view, _) = renderer_after(45);
    assert_eq!(view.0.lock().unwrap().label, "step 45 of 60");
    log(&mut renderer, 50, 1.0);
    assert_eq!(view.0.lock().unwrap().points, [("train", 50, 1.0)]);
}

#[test]
fn epochs_and_steps_are_those_of_the_run() {
    let (mut renderer, view, left) = renderer();
    left.set(Some(75.0));
    log(&mut renderer, 30, 1.0);
    let view = view.0.lock().unwrap();
    assert_eq!((view.epochs, view.items), ((2, 3), (10, 20)));
    assert_eq!(view.label, "step 30 of 60, 1 min 15 s left");
}

#[test]
fn an_evaluation_leaves_the_totals_of_training() {
    let (mut renderer, view, _) = renderer();
    log(&mut renderer, 30, 1.0);
    renderer.start_split("valid", 60);
    let during = |view: &Shared| {
        let view = view.0.lock().unwrap();
        (view.is_valid, view.items)
    };
    assert_eq!(during(&view), (true, (0, 1)));
    renderer.update_split(30);
    renderer.end_split();
    assert_eq!(during(&view), (false, (10, 20)));
}

#[test]
fn logged_lines_are_not_counted_as_iterations() {
    let (mut renderer, view, _) = renderer();
    log(&mut renderer, 10, 1.0);
    assert_eq!(view.0.lock().unwrap().iterations, 0);
}
