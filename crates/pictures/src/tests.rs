//! Whole pictures.

use resvg::usvg::{Node, TextChunk, Tree};

use crate::{Axis, Bar, Bars, Curves, Figure, Line, Panel, Style, png, png::options, smoothed};

/// Losses of a run: from 3 down to 0.03, with a noise that is no chance.
fn run() -> Curves {
    let logged: Vec<(f64, f64)> = (1..=168)
        .map(|step| {
            let step = f64::from(step);
            (
                step,
                3.0 * (-step / 36.0).exp() * (1.0 + 0.3 * (7.0 * step).sin()),
            )
        })
        .collect();
    Curves {
        title: "quickstart: loss".to_owned(),
        note: "exponential smoothing, corrected for its start".to_owned(),
        x: Axis::whole("step").showing(0.0, 0.0),
        y: Axis::new("loss, nats per trained token"),
        lines: vec![
            Line::new("training", Style::nth(2).paler(), logged.clone()),
            Line::new(
                "training, smoothed 0.6",
                Style::nth(2),
                smoothed(&logged, 0.6),
            ),
        ],
    }
}

/// As of several seeds, some of which diverged at the highest rate, and none of a name that is short.
fn rates() -> Curves {
    let names = [
        "lora",
        "a-method-whose-name-goes-on+dora+rslora+c0.25",
        "olora",
    ];
    let lines = names.iter().enumerate().map(|(index, name)| {
        let losses = [2.0, 0.2, 0.1 + 0.01 * index as f64, f64::INFINITY];
        let points = [1e-4, 1e-3, 3e-3, 1e-2].into_iter().zip(losses).collect();
        Line::new(*name, Style::nth(index), points).with_chosen(Some(2))
    });
    Curves {
        title: "rank 8, 168 steps: a title that is longer than a panel is wide, and is broken"
            .to_owned(),
        note: "large and filled: the rate that was chosen; arrows: diverged".to_owned(),
        x: Axis::rate("learning rate"),
        y: Axis::new("loss after the last step, nats per trained token"),
        lines: lines.collect(),
    }
}

fn bar(index: usize, name: &str, reached: &[f64], missed: usize) -> Bar {
    Bar {
        name: name.to_owned(),
        style: Style::nth(index),
        reached: reached.to_vec(),
        missed,
        end: 168.0,
    }
}

fn bars(bars: Vec<Bar>) -> Bars {
    Bars {
        title: "steps to lora's last loss".to_owned(),
        note: String::new(),
        x: Axis::whole("steps"),
        unit: "steps".to_owned(),
        bars,
    }
}

fn some_bars() -> Bars {
    bars(vec![
        bar(0, "lora", &[168.0, 168.0, 168.0], 0),
        bar(
            1,
            "a-method-whose-name-goes-on+dora+rslora+c0.25+and-on",
            &[140.0, 90.0],
            1,
        ),
        bar(2, "pissa", &[], 3),
        bar(3, "eva", &[1.5, 2.0, 1.0], 0),
        bar(4, "diverged", &[], 0),
    ])
}

fn all() -> Figure {
    let row: Vec<Panel> = vec![run().into(), rates().into(), some_bars().into()];
    Figure::rows(vec![row.clone(), row])
}

/// The text nodes of a tree with where they are drawn.
fn texts(svg: &str) -> Vec<(String, [f32; 4])> {
    fn collect(node: &Node, all: &mut Vec<(String, [f32; 4])>) {
        match node {
            Node::Text(text) => {
                let at = text.abs_bounding_box();
                let said = text.chunks().iter().map(TextChunk::text).collect();
                all.push((said, [at.left(), at.top(), at.right(), at.bottom()]));
            }
            Node::Group(group) => group.children().iter().for_each(|node| collect(node, all)),
            Node::Path(_) | Node::Image(_) => {}
        }
    }
    let tree = Tree::from_str(svg, &options()).unwrap();
    let mut all = Vec::new();
    for node in tree.root().children() {
        collect(node, &mut all);
    }
    all
}

/// Of each `<rect …>`: its fill and its width.
fn rectangles(svg: &str) -> Vec<(String, f64)> {
    let value = |tag: &str, key: &str| {
        let from = tag.split(&format!(" {key}=\"")).nth(1).unwrap();
        from.split('"').next().unwrap().to_owned()
    };
    svg.lines()
        .filter(|line| line.starts_with("<rect"))
        .map(|tag| (value(tag, "fill"), value(tag, "width").parse().unwrap()))
        .collect()
}

/// By what draws them, for panels at every edge, and with names that are far too long.
#[test]
fn no_text_leaves_the_picture() {
    for figure in [all(), Figure::single(run()), Figure::single(some_bars())] {
        let svg = figure.svg().unwrap();
        let size = Tree::from_str(&svg, &options()).unwrap().size();
        let texts = texts(&svg);
        assert!(texts.len() > 10);
        for (text, [left, top, right, bottom]) in texts {
            assert!(
                left >= 0.0 && top >= 0.0 && right <= size.width() && bottom <= size.height(),
                "{text}: {left} {top} {right} {bottom}"
            );
        }
    }
}

#[test]
fn no_text_is_drawn_over_another() {
    let texts = texts(&all().svg().unwrap());
    for (index, (one, a)) in texts.iter().enumerate() {
        for (other, b) in &texts[..index] {
            let apart = a[2] <= b[0] || b[2] <= a[0] || a[3] <= b[1] || b[3] <= a[1];
            assert!(apart, "{one} {a:?} over {other} {b:?}");
        }
    }
}

#[test]
fn a_method_that_never_arrived_has_no_bar() {
    let figure = Figure::single(bars(vec![
        bar(0, "lora", &[168.0; 3], 0),
        bar(1, "olora", &[], 3),
        bar(2, "pissa", &[100.0], 2),
    ]));
    let svg = figure.svg().unwrap();
    let filled: Vec<(String, f64)> = rectangles(&svg)
        .into_iter()
        .filter(|(fill, _)| fill != "#ffffff")
        .collect();
    assert_eq!(filled.len(), 1, "{filled:?}");
    assert_eq!(filled[0].0, Style::nth(0).color);
    for told in [
        "not reached in 168 steps by any of 3 seeds",
        "not reached in 168 steps by 2 of 3 seeds",
    ] {
        assert!(svg.contains(told), "{told}");
    }
    // A dot for each seed that got there: three of lora's and one of pissa's.
    assert_eq!(svg.matches("<circle").count(), 4);
}

#[test]
fn bars_are_as_long_as_their_means() {
    let figure = Figure::single(bars(vec![
        bar(0, "lora", &[160.0, 176.0], 0),
        bar(1, "olora", &[40.0, 44.0], 0),
    ]));
    let filled: Vec<f64> = rectangles(&figure.svg().unwrap())
        .into_iter()
        .filter(|(fill, _)| fill != "#ffffff")
        .map(|(_, width)| width)
        .collect();
    assert!((filled[0] / filled[1] - 4.0).abs() < 0.01, "{filled:?}");
}

#[test]
fn nothing_is_drawn_of_nothing() {
    let nothing = Curves {
        lines: vec![Line::new("training", Style::nth(0), vec![(1.0, f64::NAN)])],
        ..run()
    };
    for figure in [
        Figure::single(nothing.clone()),
        Figure::single(bars(Vec::new())),
        Figure::single(bars(vec![bar(0, "lora", &[], 0)])),
        Figure::rows(Vec::new()),
    ] {
        assert!(figure.is_empty());
        assert_eq!(figure.svg(), None);
    }
    // Beside something it is said.
    let half = Figure::rows(vec![vec![nothing.into(), run().into()]]);
    assert!(!half.is_empty() && half.svg().unwrap().contains("nothing to show"));
}

#[test]
fn one_point_is_drawn_as_a_dot() {
    let one = Curves {
        lines: vec![Line::new(
            "training",
            Style::nth(2).unmarked(),
            vec![(1.0, 2.0)],
        )],
        ..run()
    };
    assert!(Figure::single(one).svg().unwrap().contains("<circle"));
}

#[test]
fn what_is_infinite_is_an_arrow_and_breaks_no_axis() {
    let finite = Curves {
        lines: vec![Line::new(
            "lora",
            Style::nth(0),
            vec![(1e-3, 2.0), (3e-3, 1.0)],
        )],
        ..rates()
    };
    let mut diverged = finite.clone();
    diverged.lines[0].points.push((1e-2, f64::INFINITY));
    let strokes = |curves: Curves| {
        let svg = Figure::single(curves).svg().unwrap();
        assert!(!svg.contains("inf") && !svg.contains("NaN"));
        svg.matches("<polyline").count()
    };
    assert_eq!(strokes(diverged), strokes(finite) + 1);
}

#[test]
fn a_name_cannot_break_the_picture() {
    let mut curves = run();
    curves.title = "a < b & c > \"d\"".to_owned();
    let svg = Figure::single(curves).svg().unwrap();
    assert!(
        texts(&svg)
            .iter()
            .any(|(text, _)| text == "a < b & c > \"d\"")
    );
}

#[test]
fn the_same_data_give_the_same_bytes() {
    let (one, other) = (all().svg().unwrap(), all().svg().unwrap());
    assert_eq!(one, other);
    assert_eq!(png(&one).unwrap(), png(&other).unwrap());
}
