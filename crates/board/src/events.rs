//! What a page is told while it is open: one stream of server-sent events.
//!
//! - `list`: runs and comparisons of the list that are new or have changed, and those
//!   that are gone;
//! - `curves`: all curves of a chosen run, at the beginning and whenever its file began
//!   anew;
//! - `points`: what has been added to them.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream::{Stream, unfold};
use olora_web::{
    Stop,
    axum::response::sse::Event,
    tokio::{task::spawn_blocking, time::timeout},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    board::{Board, Listing, held},
    curve::Point,
    place::Place,
    tracked::{Mark, News},
};

/// How often files are looked at: lines come a few a second at most.
const PAUSE: Duration = Duration::from_millis(400);

/// How often the list is.
const LIST: Duration = Duration::from_secs(1);

/// Looks at the files for one page.
struct Watch {
    board: Arc<Board>,
    runs: Vec<Watched>,
    /// What the page knows of the list, and when it was told.
    listing: Arc<Listing>,
    listed: Option<Instant>,
    waiting: VecDeque<Event>,
}

/// A run that a page shows.
struct Watched {
    path: String,
    place: Place,
    /// What the page knows of it.
    mark: Option<Mark>,
}

/// Events until the server stops or the page is closed.
pub(crate) fn events(
    board: Arc<Board>,
    runs: Vec<(String, Place)>,
    stop: Stop,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let runs = runs.into_iter();
    let watch = Watch {
        board,
        runs: runs
            .map(|(path, place)| Watched {
                path,
                place,
                mark: None,
            })
            .collect(),
        listing: Arc::default(),
        listed: None,
        waiting: VecDeque::new(),
    };
    unfold((watch, stop), |(mut watch, stop)| async move {
        loop {
            if let Some(event) = watch.waiting.pop_front() {
                return Some((Ok(event), (watch, stop)));
            }
            let look = spawn_blocking(move || {
                watch.look();
                watch
            });
            watch = look.await.ok()?;
            if watch.waiting.is_empty() && timeout(PAUSE, stop.stopped()).await.is_ok() {
                return None;
            }
        }
    })
}

impl Watch {
    fn look(&mut self) {
        if self.listed.is_none_or(|listed| listed.elapsed() >= LIST) {
            let now = self.board.listing();
            if self.listed.is_none() || !Arc::ptr_eq(&now, &self.listing) {
                if let Some(change) = change(&self.listing, &now, self.listed.is_none()) {
                    self.tell("list", &change);
                }
                self.listing = now;
            }
            self.listed = Some(Instant::now());
        }
        for place in 0..self.runs.len() {
            let Watched { path, place, mark } = &mut self.runs[place];
            let tracked = self.board.tracked(path, place);
            let tracked = held(&tracked);
            let news = tracked.since(*mark);
            *mark = Some(tracked.mark());
            drop(tracked);
            let path = path.clone();
            match news {
                News::Nothing => {}
                News::All(curves) => {
                    let mut told = json!(curves);
                    told["path"] = path.into();
                    self.tell("curves", &told);
                }
                News::Points(added) => {
                    let mut points: HashMap<String, Vec<Point>> = HashMap::new();
                    for (name, point) in added {
                        points.entry(name).or_default().push(point);
                    }
                    self.tell("points", &json!({"path": path, "points": points}));
                }
            }
        }
    }

    fn tell(&mut self, name: &str, data: &Value) {
        // It has no line break in it: JSON writes those as `\n`.
        let event = Event::default().event(name).data(data.to_string());
        self.waiting.push_back(event);
    }
}

/// What of a list is not as it was; all of it the first time.
fn change(before: &Listing, now: &Listing, is_first: bool) -> Option<Value> {
    let (runs, gone) = changed(&before.runs, &now.runs, |run| &run.path);
    let (comparisons, gone_comparisons) =
        changed(&before.comparisons, &now.comparisons, |one| &one.path);
    let is_same =
        runs.is_empty() && gone.is_empty() && comparisons.is_empty() && gone_comparisons.is_empty();
    if is_same && before.is_cut == now.is_cut && !is_first {
        return None;
    }
    Some(json!({
        "directory": now.directory,
        "is_cut": now.is_cut,
        "runs": runs,
        "gone": gone,
        "comparisons": comparisons,
        "gone_comparisons": gone_comparisons,
    }))
}

/// What is new or other than it was, and the paths of what is gone.
fn changed<'a, T: PartialEq + Serialize>(
    before: &'a [T],
    now: &'a [T],
    path: impl Fn(&T) -> &str,
) -> (Vec<&'a T>, Vec<&'a str>) {
    let known: HashMap<&str, &T> = before.iter().map(|one| (path(one), one)).collect();
    let there: HashMap<&str, &T> = now.iter().map(|one| (path(one), one)).collect();
    let new = now.iter().filter(|one| known.get(path(one)) != Some(one));
    let gone = known.keys().filter(|path| !there.contains_key(*path));
    (new.collect(), gone.copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::ComparisonEntry;

    fn listing(paths: &[(&str, usize)]) -> Listing {
        let comparisons = paths.iter().map(|(path, n_runs)| ComparisonEntry {
            path: (*path).to_owned(),
            n_runs: *n_runs,
            has_report: false,
        });
        Listing {
            comparisons: comparisons.collect(),
            ..Listing::default()
        }
    }

    #[test]
    fn only_what_has_changed_is_told() {
        let before = listing(&[("a", 1), ("b", 1), ("c", 1)]);
        let now = listing(&[("a", 1), ("b", 2), ("d", 1)]);
        let told = change(&before, &now, false).unwrap();
        assert_eq!(told["comparisons"][0]["path"], "b");
        assert_eq!(told["comparisons"][1]["path"], "d");
        assert_eq!(told["gone_comparisons"], json!(["c"]));
        assert_eq!(change(&now, &now, false), None);
    }

    #[test]
    fn an_empty_list_is_told_once() {
        let empty = Listing::default();
        assert!(change(&empty, &empty, true).is_some());
    }
}
